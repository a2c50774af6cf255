"""The gRPC transport: the same connections as in `transport`, over HTTP/2."""

SESSION = "/onnx_offload.v1.Runtime/Session"
PROBE = "/onnx_offload.v1.Runtime/Probe"
SERVICE = "onnx_offload.v1.Runtime"
PROBE_LIMIT_BYTES = 8 * 1024 * 1024
