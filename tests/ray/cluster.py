"""`offload serve --engine ray` from an environment with Ray, and what its processes do."""

import csv
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / "build/ray/bin/python"
_COMMAND = "from offload_cli.main import main; main()"
_REPLICA = "ray::ServeReplica:onnx-offload"
_OF_RAY = ("ray::", "raylet", "gcs_server", "haproxy", "ray/dashboard", "ray/_private")
_METRICS_PORT = 9200
_START_S = 90.0
_END_S = 60.0


def has_ray() -> bool:
    return PYTHON.exists()


def offload(*words: str | Path, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the command in the environment with Ray."""
    return subprocess.run(
        [PYTHON, "-c", _COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@dataclass
class RayServer:
    """A running `offload serve --engine ray`.

    Attributes:
        address: of the ingress.
        cluster: of the Ray cluster.
        process: the command.
    """

    address: str
    cluster: str
    process: "subprocess.Popen[str]"

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: a signal to all processes of the group; wait for the end."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(_END_S)

    def replicas(self) -> list[int]:
        """Process ids of the replicas."""
        return [pid for pid, command in processes() if command.startswith(_REPLICA)]

    def ready(self) -> set[str]:
        """Names of the replicas that HAProxy sends streams to."""
        with (
            suppress(OSError),
            urllib.request.urlopen("http://127.0.0.1:8404/stats;csv", timeout=2) as page,
        ):
            rows = csv.DictReader(page.read().decode().removeprefix("# ").splitlines())
            return {
                row["svname"]
                for row in rows
                if row["pxname"].startswith("grpc-")
                and row["status"] == "UP"
                and row["svname"].startswith("SERVE_REPLICA")
            }
        return set()

    def sessions(self, count: int = 2) -> list[int]:
        """Open sessions of each replica."""
        numbers = []
        for port in range(_METRICS_PORT, _METRICS_PORT + count):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                found = re.search(r"(?m)^offload_sessions (\d+)", page.read().decode())
            assert found
            numbers.append(int(found[1]))
        return numbers


def processes() -> Iterator[tuple[int, str]]:
    """Process id and command line of each process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield int(folder.name), text


def left_over() -> list[str]:
    """Command lines of processes of Ray."""
    own = {os.getpid(), os.getppid()}
    return [
        command
        for pid, command in processes()
        if pid not in own and any(word in command for word in _OF_RAY) and "pytest" not in command
    ]


@contextmanager
def ray_server(bundles: Sequence[Path], *words: str, replicas: int = 2) -> Iterator[RayServer]:
    """Serve until the block ends; then no process of it may be left."""
    command: list[str | Path] = [PYTHON, "-c", _COMMAND, "serve", *bundles, "--engine", "ray"]
    command += ["--replicas", str(replicas), "--listen", "127.0.0.1:0", "--threads", "1"]
    command += ["--metrics", f"127.0.0.1:{_METRICS_PORT}", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"on (127\.0\.0\.1:\d+)", line)
        assert found, f"it did not start: {line}{process.stderr.read()}"
        remark = process.stderr.readline()
        while "cluster" not in remark:
            assert remark
            remark = process.stderr.readline()
        server = RayServer(found[1], remark.split()[-1], process)
        wait_until(lambda: len(server.ready()) == replicas, "all replicas are ready")
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
    wait_until(lambda: not left_over(), "no process is left", 10.0)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = _START_S) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.05)
