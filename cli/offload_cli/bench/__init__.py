"""`offload bench`: every scheme on every network, measured on a shaped link."""
