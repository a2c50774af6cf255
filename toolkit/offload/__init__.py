"""onnx-offload's values and pure functions: no sockets, no clock, no printing."""
