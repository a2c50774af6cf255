"""Run bundles: the engine, the wire, the client on the device and the server."""
