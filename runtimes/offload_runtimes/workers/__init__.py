"""The two processes that an experiment starts: a device and a server."""
