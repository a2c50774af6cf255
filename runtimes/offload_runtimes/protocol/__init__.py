"""The protocol between device and server, without I/O: messages, codecs, both ends' states."""
