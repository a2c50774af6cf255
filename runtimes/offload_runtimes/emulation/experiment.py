"""Run bundles in two processes, a server and a device, in namespaces or on loopback."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offload.costs.link import Link
from offload.errors import OffloadError, ServerError
from offload.planning.plan import Side
from offload.records import from_json, to_json
from offload.scheduling.timeline import Timeline

from offload_runtimes.emulation.host import Argv
from offload_runtimes.emulation.testbed import Testbed


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """One bundle to run.

    Attributes:
        label: what its runs are called.
        bundle: its folder, as the device sees it.
        feeds: .npz with its inputs.
        expected: .npz with the whole model's outputs.
    """

    label: str
    bundle: str
    feeds: str
    expected: str


@dataclass(frozen=True, slots=True)
class ExperimentJob:
    """Bundles to run in turn.

    Attributes:
        entries: the bundles.
        server: `HOST:PORT` that serves them.
        repeats: runs of each, after one to warm up.
        budget_s: stop after the round in which this time is over, but not before three rounds.
        slowdown: emulate, by pacing, a device that is slower by this factor.
        threads: of one kernel.
        link: emulate this link; None: use the link to the server as it is.
        whole: label of the entry that runs the whole model on the device; empty: none does.
        whole_s: seconds that the whole model takes on this machine. Pacing starts from it, so that
            a temporarily slow machine does not make the device slower.
    """

    entries: tuple[BundleEntry, ...]
    server: str
    repeats: int
    budget_s: float
    slowdown: float
    threads: int | None = None
    link: Link | None = None
    whole: str = ""
    whole_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One inference.

    Attributes:
        label: of the entry.
        number: 0 for the run to warm up.
        latency_s: from the call to its result.
        difference: largest difference from the whole model's outputs, relative to the largest
            value; finite, as JSON has no infinity (1e308 if the shapes differ).
        timeline: measured.
    """

    label: str
    number: int
    latency_s: float
    difference: float
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class LocalHost:
    """This machine, or a side of a testbed on it: namespaces share this machine's files."""

    testbed: Testbed | None = None
    side: Side = Side.DEVICE

    def command(self, argv: Sequence[str]) -> Argv:
        """The command itself, run in the side's namespace if there is a testbed."""
        return self.testbed.command(self.side, argv) if self.testbed else tuple(argv)

    def bring(self, path: Path) -> str:
        """The path itself."""
        return str(path.resolve())


_PACKAGE = "offload_runtimes.workers"
_GRACE_S = 20.0


@dataclass(frozen=True)
class HostPair:
    """Where the two sides run.

    Attributes:
        device: the device's host.
        server: the server's host.
        listen: address of the server, as the device reaches it.
        port: of the server; 0 takes a free one.
        slow: called with the device's process number once it is ready, to set a CPU quota.
    """

    device: LocalHost = field(default_factory=LocalHost)
    server: LocalHost = field(default_factory=LocalHost)
    listen: str = "127.0.0.1"
    port: int = 0
    slow: Callable[[int], None] | None = None


def run_job(rig: HostPair, job: ExperimentJob, bundles: Sequence[str]) -> Iterator[MeasuredRun]:
    """Serve bundles, run the job against the server, yield each run as it ends.

    Args:
        rig: where the sides run.
        job: what to run; its `server` is filled in here.
        bundles: folders of the bundles that need a server, as the server sees them.

    Raises:
        OffloadError: a side cannot start, or fails.
        ServerError: a side dies during the job.
    """
    threads = str(job.threads or 0)
    serve = (sys.executable, "-m", f"{_PACKAGE}.server_worker", f"{rig.listen}:{rig.port}", threads)
    drive = (sys.executable, "-m", f"{_PACKAGE}.device_worker")
    with _process(rig.server.command((*serve, *bundles)), "server") as server:
        address = _next(server, "server")["listening"] if bundles else ""
        with _process(rig.device.command(drive), "device") as device:
            _write(device, json.dumps(to_json(replace(job, server=address))))
            process = _next(device, "device")["ready"]
            if rig.slow:
                rig.slow(process)
            _write(device, "go")
            for line in _lines(device, "device"):
                yield from_json(MeasuredRun, line)


@contextmanager
def _process(command: Sequence[str], name: str) -> Iterator["subprocess.Popen[str]"]:
    """A child process whose input closes with the block; it is killed if it does not end then.

    It has a session of its own, so that ^C reaches only this process, which ends it and reports
    one error.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
    except OSError as error:
        raise OffloadError(f"the {name} cannot be started: {error}") from error
    with child:
        try:
            yield child
        except BaseException:
            child.kill()
            raise
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _write(child: "subprocess.Popen[str]", line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _lines(child: "subprocess.Popen[str]", name: str) -> Iterator[dict[str, Any]]:
    """The JSON lines that a side prints, until it exits with 0."""
    assert child.stdout is not None
    for line in child.stdout:
        value = json.loads(line)
        if "error" in value:
            raise ServerError(f"the {name} stopped: {value['error']}")
        yield value
    if child.wait():
        raise ServerError(f"the {name} died with exit code {child.returncode}: try again")


def _next(child: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
    for value in _lines(child, name):
        return value
    raise ServerError(f"the {name} ended before it was ready: try again")
