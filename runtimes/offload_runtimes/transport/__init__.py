"""The gRPC transport: settings and names that both ends share."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

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
    "GRPC_DNS_RESOLVER": "native",  # the system's, which resolves mDNS names
    # No log lines about forks and failed handshakes: our errors report them. A server sets it to
    # an empty text before, and counts failed handshakes (`serving/handshakes.py`).
    "GRPC_VERBOSITY": "NONE",
}

_TRIED = ((1, 70), (1, 85))  # the oldest and the newest version of gRPC that were tried


def experiments(version: str) -> dict[str, str]:
    """The variable that configures gRPC's experiments; empty for versions that were not tried.

    A version that lacks an experiment logs an error on stderr. Without the event engine, a client's
    polling thread reads the sockets itself. The event engine reads them on other threads, which
    then wake the polling thread: a frame of 74 kB takes 0.65 instead of 0.5 ms of a device's CPU.
    """
    found = re.search(r"(\d+)\.(\d+)", version)
    is_tried = found is not None and _TRIED[0] <= (int(found[1]), int(found[2])) <= _TRIED[1]
    return {"GRPC_EXPERIMENTS": "-event_engine_client"} if is_tried else {}


def _grpc_version() -> str:
    """The contents of gRPC's file with its version; empty: there is none.

    gRPC is not imported yet, and importing `importlib.metadata` would take 20 ms.
    """
    spec = find_spec("grpc")
    folders = (spec and spec.submodule_search_locations) or ()
    files = [Path(folder) / "_grpcio_metadata.py" for folder in folders]
    return "".join(file.read_text() for file in files if file.is_file())


_SETTINGS |= experiments(_grpc_version())
_added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
os.environ.update(_added)
try:
    import grpc  # noqa: F401
finally:
    for _name in _added:
        del os.environ[_name]
