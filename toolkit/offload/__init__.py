"""onnx-offload's values and pure functions: no sockets, no clock, no printing."""

__version__ = "0.1.0"
