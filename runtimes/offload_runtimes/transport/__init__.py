"""The gRPC transport: settings and names that both ends share."""

import os

SESSION = "/onnx_offload.v1.Runtime/Session"
PROBE = "/onnx_offload.v1.Runtime/Probe"
SERVICE = "onnx_offload.v1.Runtime"
KSERVE = "inference.GRPCInferenceService"
PROBE_LIMIT_BYTES = 8 * 1024 * 1024
FRAME_BYTES = 256 * 1024  # of HTTP/2; the default of 16 kB costs 5 % of the time of a 1 MB message
VERSION_KEY = "onnx-offload-version"  # metadata of a stream: the version of the device

# gRPC reads its settings once, when it is imported. Variables that the user has set are kept.
_SETTINGS = {
    # For children of fork that connect: epoll's global state refers to threads of the parent, and
    # 1 child in 15 was aborted.
    "GRPC_POLL_STRATEGY": "poll",
    # A client's polling thread reads the sockets itself. The event engine has threads for that,
    # which then wake the polling thread: with it, a frame of 74 kB takes a device 0.65 instead of
    # 0.5 ms of CPU.
    "GRPC_EXPERIMENTS": "-event_engine_client",
    "GRPC_DNS_RESOLVER": "native",  # the system's, which resolves mDNS names
    # No log lines about forks and failed handshakes: our errors report them. A server sets it to
    # an empty text before, and counts failed handshakes (`serving/handshakes.py`).
    "GRPC_VERBOSITY": "NONE",
}


_added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
os.environ.update(_added)
try:
    import grpc  # noqa: F401
finally:
    for _name in _added:
        del os.environ[_name]
