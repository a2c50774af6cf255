"""The server's sessions, bundles, workers, batching, metrics and logs."""
