"""A server in a process of its own, to kill, stop and inspect."""

import os
import signal
import subprocess
import sys
from pathlib import Path

_CODE = """
import os, sys
from offload_runtimes.engine import EngineOptions
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.daemon import serve_until_asked
providers = tuple(os.environ.get("BENCH_PROVIDERS", "").split())
options = ServeOptions(EngineOptions(providers, threads=1), workers=int(sys.argv[3]),
                       batch_rows=int(sys.argv[4]))
server = Server([sys.argv[1]], sys.argv[2], options)
serve_until_asked(server, lambda address: print(address, flush=True))
"""


class Served:
    """One server process.

    Attributes:
        address: where it listens, the same after a restart.
    """

    def __init__(
        self, bundle: Path, listen: str = "127.0.0.1:0", workers: int = 1, batch: int = 1
    ) -> None:
        self._bundle = bundle
        self._workers = workers
        self._batch = batch
        self.address = listen
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [sys.executable, "-c", _CODE, str(self._bundle), self.address]
        # Two malloc arenas: else every short-lived thread may leave one behind.
        self._process = subprocess.Popen(
            [*command, str(self._workers), str(self._batch)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )
        assert self._process.stdout
        self.address = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM and wait."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
