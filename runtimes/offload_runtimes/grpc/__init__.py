"""The gRPC transport: the same connections as in `transport`, over HTTP/2."""

SESSION = "/onnx_offload.v1.Runtime/Session"
PROBE = "/onnx_offload.v1.Runtime/Probe"
SERVICE = "onnx_offload.v1.Runtime"
PROBE_LIMIT_BYTES = 8 * 1024 * 1024
FRAME_BYTES = 256 * 1024  # of HTTP/2; its default of 16 kB costs 5 % of a message of 1 MB
VERSION_KEY = "onnx-offload-version"  # metadata of a stream: the version of the device
