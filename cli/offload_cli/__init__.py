"""The `offload` command: one file a verb."""
