"""Run a job on a testbed: a server process at one place, a device process at another."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from offload.costs.link import Link
from offload.errors import InputError, OffloadError, ServerError
from offload.planning.plan import Side
from offload.scheduling.timeline import Timeline

from offload_runtimes.emulation import host
from offload_runtimes.emulation.namespaces import Argv, TestbedNames


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
        repeats: runs of each after one that warms up.
        budget_s: stop after the round in which so many seconds are over, at least three rounds.
        slowdown: emulate, by pacing, a device so many times slower.
        threads: of one kernel.
        link: emulate this link; None: the way to the server is slow enough by itself.
        whole: label of the entry that runs the whole model on the device; empty: none does.
        whole_s: the seconds that it takes this machine: what pacing starts from, so that a machine
            that is slower for a while does not make the device slower.
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

    def to_line(self) -> str:
        """One line of JSON; `from_line` reads it."""
        return json.dumps({**asdict(self), "link": self.link.to_json() if self.link else None})

    @classmethod
    def from_line(cls, line: str) -> "ExperimentJob":
        """Read what `to_line` wrote."""
        value = json.loads(line)
        entries = tuple(BundleEntry(**entry) for entry in value.pop("entries"))
        link = value.pop("link")
        return cls(entries=entries, link=Link.from_json(link) if link else None, **value)


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One inference.

    Attributes:
        label: of the entry.
        number: 0 for the run that warmed up.
        latency_s: from the call to its answer.
        difference: largest difference from the whole model's outputs, relative to the largest.
        timeline: measured.
    """

    label: str
    number: int
    latency_s: float
    difference: float
    timeline: Timeline

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` reads it."""
        return {
            "label": self.label,
            "number": self.number,
            "latency_s": self.latency_s,
            # JSON has no infinity; answers of another shape count as entirely different.
            "difference": min(self.difference, 1e308),
            "timeline": self.timeline.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "MeasuredRun":
        """Read what `to_json` wrote."""
        return cls(**{**value, "timeline": Timeline.from_json(value["timeline"])})


class Host(Protocol):
    """Where commands run and files are."""

    def command(self, argv: Sequence[str]) -> Argv:
        """The command that runs `argv` there."""

    def bring(self, path: Path) -> str:
        """See that a file or folder is there, and give its path there."""


@dataclass(frozen=True, slots=True)
class LocalHost:
    """This machine, as it is."""

    def command(self, argv: Sequence[str]) -> Argv:
        """The command itself."""
        return tuple(argv)

    def bring(self, path: Path) -> str:
        """It is here."""
        return str(path.resolve())


@dataclass(frozen=True, slots=True)
class NamespaceHost:
    """A side of a testbed on this machine."""

    layout: TestbedNames
    side: Side

    def command(self, argv: Sequence[str]) -> Argv:
        """Run in the side's namespace."""
        return ("ip", "netns", "exec", self.layout.namespace(self.side), *argv)

    def bring(self, path: Path) -> str:
        """Namespaces share the files of this machine."""
        return str(path.resolve())


@dataclass(frozen=True, slots=True)
class SshHost:
    """A host reached by SSH, with onnx-offload installed.

    Attributes:
        host: as `ssh` takes it, like `pi@192.0.2.7`.
        folder: where files are put there.
    """

    host: str
    folder: str = "offload-experiments"

    def command(self, argv: Sequence[str]) -> Argv:
        """Run over SSH; it ends when the connection does, since its input ends."""
        return ("ssh", "-o", "BatchMode=yes", self.host, shlex.join(argv))

    def copy_commands(self, path: Path) -> tuple[Argv, ...]:
        """Put a file or folder into the folder there, in place of an older one."""
        target = shlex.quote(f"{self.folder}/{path.name}")
        make = f"mkdir -p {shlex.quote(self.folder)} && rm -rf {target}"
        return (
            ("ssh", "-o", "BatchMode=yes", self.host, make),
            ("scp", "-q", "-r", str(path), f"{self.host}:{self.folder}/{path.name}"),
        )

    def clear(self) -> None:
        """Remove all that was brought; a host that is gone keeps it."""
        with suppress(InputError):
            host.run(
                ("ssh", "-o", "BatchMode=yes", self.host, f"rm -rf {shlex.quote(self.folder)}")
            )

    def bring(self, path: Path) -> str:
        """Copy it.

        Raises:
            InputError: the host can't be reached, or the disk there refuses.
        """
        for command in self.copy_commands(path):
            host.run(command)
        return f"{self.folder}/{path.name}"


_PACKAGE = "offload_runtimes.emulation"
_GRACE_S = 20.0


@dataclass(frozen=True)
class HostPair:
    """Where the two sides run.

    Attributes:
        device: the device's place.
        server: the server's place.
        listen: host of the server, as the device reaches it.
        port: of the server; 0 takes a free one.
        slow: called with the device's process number once it is ready, to put it under a quota.
        python: the interpreter on remote places.
    """

    device: Host = field(default_factory=LocalHost)
    server: Host = field(default_factory=LocalHost)
    listen: str = "127.0.0.1"
    port: int = 0
    slow: Callable[[int], None] | None = None
    python: str = sys.executable


def run_job(rig: HostPair, job: ExperimentJob, bundles: Sequence[str]) -> Iterator[MeasuredRun]:
    """Serve bundles, run the job against them, give each run as it ends.

    Args:
        rig: where the sides run.
        job: what to run; its `server` is filled in here.
        bundles: folders of the bundles that need a server, as the server sees them.

    Raises:
        OffloadError: a side could not start, or failed.
        ServerError: a side died in the middle.
    """
    threads = str(job.threads or 0)
    serve = (rig.python, "-m", f"{_PACKAGE}.server_worker", f"{rig.listen}:{rig.port}", threads)
    with _process(rig.server.command((*serve, *bundles)), "server") as server:
        address = _next(server, "server")["listening"] if bundles else ""
        with _process(rig.device.command((rig.python, "-m", f"{_PACKAGE}.device_worker")), "device") as it:
            _write(it, replace(job, server=address).to_line())
            ready = _next(it, "device")["ready"]
            if rig.slow:
                rig.slow(ready)
            _write(it, "go")
            for line in _lines(it, "device"):
                yield MeasuredRun.from_json(line)


@contextmanager
def _process(command: Sequence[str], name: str) -> Iterator["subprocess.Popen[str]"]:
    """A child whose input ends with the block; one that does not end by then is killed.

    It has a session of its own: ^C is for us, who end it, and say one sentence.
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
        raise OffloadError(f"the {name} can't be started: {error}") from error
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
    """What a side says, until it ends well."""
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
