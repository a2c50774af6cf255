"""The gRPC transport: the same connections as in `transport`, over HTTP/2."""

import os

SESSION = "/onnx_offload.v1.Runtime/Session"
PROBE = "/onnx_offload.v1.Runtime/Probe"
SERVICE = "onnx_offload.v1.Runtime"
PROBE_LIMIT_BYTES = 8 * 1024 * 1024
FRAME_BYTES = 256 * 1024  # of HTTP/2; its default of 16 kB costs 5 % of a message of 1 MB
VERSION_KEY = "onnx-offload-version"  # metadata of a stream: the version of the device

# gRPC reads its settings while it is imported, and never again. What the user has set stands.
_SETTINGS = {
    # A child of fork that connects: epoll's global state refers to threads of the parent, and
    # aborted 1 child in 15.
    "GRPC_POLL_STRATEGY": "poll",
    "GRPC_DNS_RESOLVER": "native",  # the system's, which knows names of mDNS
    # No lines about forks and failed handshakes: our errors say it. A process that serves sets it
    # to nothing before, and counts failed handshakes (`serving/handshakes.py`).
    "GRPC_VERBOSITY": "NONE",
}


def _import_with_settings() -> None:
    added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        import grpc  # noqa: F401
    finally:
        for name in added:
            del os.environ[name]


_import_with_settings()
