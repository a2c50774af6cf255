"""Measure the memory of a client's process before it has loaded a model."""

import subprocess
import sys

from offload.errors import OffloadError

_TIMEOUT_S = 60.0
# Run in a process of its own, with all that an inference uses: engine, connection, threads.
_CLIENT = """
import sys
from pathlib import Path
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.measure.probe import probe
load(sys.stdin.buffer.read(), EngineOptions(threads=int(sys.argv[2]) or None)).warm()
probe(sys.argv[1], sizes_bytes=[1000], repeats=1)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status.get("VmHWM", status["VmRSS"]).split()[0]) * 1024)
"""


def client_bytes(model: bytes, threads: int | None = None) -> int | None:
    """Peak resident bytes of a client that runs a tiny model and talks to a server.

    None where that cannot be measured (no Linux, no loopback, no second process).
    """
    from offload_runtimes.server import Server  # not on top: planning starts without gRPC

    try:
        with Server([]) as server:
            command = [sys.executable, "-c", _CLIENT, server.address, str(threads or 0)]
            done = subprocess.run(
                command, input=model, capture_output=True, check=True, timeout=_TIMEOUT_S
            )
            return int(done.stdout)
    except (OffloadError, OSError, subprocess.SubprocessError, ValueError):
        return None
