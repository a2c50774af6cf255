"""Testbeds: two network namespaces of one machine, joined by a shaped link."""

import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side

from offload_runtimes.emulation import host
from offload_runtimes.emulation.host import Argv

_INTERFACE = "veth0"
# A larger burst lets half of a small upload through at once; a longer queue only adds delay.
_BURST = "3kb"
_QUEUE = "200ms"
_NAMESPACE = re.compile(r"offload-(?P<name>.+)-(?:device|server)")
_PROCESS_NAME = re.compile(r"run-(?P<pid>\d+)-(?P<started>\d+)")
# 198.18.0.0/15 is reserved for network tests (RFC 2544): 2^15 links of four addresses.
_FIRST_ADDRESS = (198 << 24) + (18 << 16)
_LINKS = 1 << 15
_SCRATCH_PREFIX = "offload-bench-"


@dataclass(frozen=True)
class Testbed:
    """Two namespaces joined by a shaped link; all names and addresses follow from its name.

    Attributes:
        name: unique on this machine; `run-PID-STARTED` when it belongs to a process.
    """

    name: str

    @classmethod
    def of_process(cls, pid: int) -> "Testbed":
        """The testbed of one process, known by its number and its start time."""
        return cls(f"run-{pid}-{host.started_of(pid) or 0}")

    def is_leftover(self, started_of: Callable[[int], int | None] = host.started_of) -> bool:
        """Whether its process has ended, even if another process has its number now.

        Args:
            started_of: the start time of a process; None when there is no such process.
        """
        match = _PROCESS_NAME.fullmatch(self.name)
        return match is not None and started_of(int(match["pid"])) != int(match["started"])

    def namespace(self, side: Side) -> str:
        """The network namespace of a side."""
        return f"offload-{self.name}-{side.value}"

    @property
    def group(self) -> str:
        """The control group of the slow device."""
        return f"offload-{self.name}"

    def address(self, side: Side) -> str:
        """The address of a side on the link."""
        link = zlib.crc32(self.name.encode()) % _LINKS
        number = _FIRST_ADDRESS + 4 * link + (1 if side is Side.DEVICE else 2)
        return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))

    def command(self, side: Side, argv: Sequence[str]) -> Argv:
        """The command that runs `argv` on a side."""
        return ("ip", "netns", "exec", self.namespace(side), *argv)

    def shape(self, link: Link) -> None:
        """Change the rates of the link.

        Raises:
            InputError: this kernel cannot shape it.
        """
        for command in shape_commands(self, link):
            host.run(command)

    def slow(self, process: int, slowdown: float) -> None:
        """Give a process 1 / slowdown of one CPU; InputError without CPU quotas."""
        host.limit(self.group, process, slowdown)

    def down(self) -> None:
        """Remove the testbed and kill what runs in it; may be called twice."""
        present = host.namespaces()
        for side in Side:
            if self.namespace(side) in present:
                host.kill(host.processes_in(self.namespace(side)))
        host.release(self.group)
        for command in down_commands(self, present):
            host.run(command)


def up_commands(testbed: Testbed, link: Link) -> tuple[Argv, ...]:
    """Commands that make both namespaces, join them, and shape the link."""
    device, server = (testbed.namespace(side) for side in Side)
    ends = (_INTERFACE, "netns", device, "type", "veth", "peer", "name", _INTERFACE, "netns")
    commands: list[Argv] = [
        ("ip", "netns", "add", device),
        ("ip", "netns", "add", server),
        ("ip", "link", "add", *ends, server),
    ]
    for side in Side:
        ip = ("ip", "-n", testbed.namespace(side))
        commands += [
            (*ip, "addr", "add", f"{testbed.address(side)}/30", "dev", _INTERFACE),
            (*ip, "link", "set", "lo", "up"),
            (*ip, "link", "set", _INTERFACE, "up"),
        ]
    return (*commands, *shape_commands(testbed, link))


def shape_commands(testbed: Testbed, link: Link) -> tuple[Argv, ...]:
    """Commands that set the rates of the link, and its start-up time as a delay, each way."""
    commands: list[Argv] = []
    for side, rate_bps, start_s in (
        (Side.DEVICE, link.up_bps, link.up_start_s),
        (Side.SERVER, link.down_bps, link.down_start_s),
    ):
        tc = ("tc", "-n", testbed.namespace(side), "qdisc", "replace", "dev", _INTERFACE)
        rate = (*tc, "root", "handle", "1:", "tbf", "rate", f"{rate_bps:.0f}bit")
        commands.append((*rate, "burst", _BURST, "latency", _QUEUE))
        if start_s > 0:
            delay = (*tc, "parent", "1:1", "netem", "delay", f"{start_s * 1e6:.0f}us")
            commands.append((*delay, "limit", "10000"))
    return tuple(commands)


def down_commands(testbed: Testbed, present: Iterable[str]) -> tuple[Argv, ...]:
    """Commands that remove those of its namespaces that are present, and the link with them."""
    names = set(present)
    namespaces = (testbed.namespace(side) for side in Side)
    return tuple(("ip", "netns", "del", name) for name in namespaces if name in names)


def testbeds_of(names: Iterable[str]) -> tuple[Testbed, ...]:
    """The testbeds that namespaces of these names belong to, in order of name."""
    matches = map(_NAMESPACE.fullmatch, names)
    return tuple(map(Testbed, sorted({match["name"] for match in matches if match})))


def up(testbed: Testbed, link: Link) -> Testbed:
    """Make a testbed that stays until it is taken down.

    Raises:
        InputError: no root, a tool or a part of the kernel is missing, or the name is taken.
    """
    _check_able()
    if testbed in testbeds():
        raise InputError(
            f"a testbed named {testbed.name!r} is up already: take it down with"
            f" `offload testbed down --name {testbed.name}`, or choose another name"
        )
    try:
        for command in up_commands(testbed, link):
            host.run(command)
    except BaseException:
        testbed.down()
        raise
    return testbed


@contextmanager
def open_testbed(link: Link) -> Iterator[Testbed]:
    """A testbed of this process, taken down at the end of the block.

    Leftovers of killed processes are removed first.

    Raises:
        InputError: as `up`.
    """
    _check_able()
    sweep()
    testbed = up(Testbed.of_process(os.getpid()), link)
    try:
        yield testbed
    finally:
        testbed.down()


def sweep() -> tuple[Testbed, ...]:
    """Remove the testbeds of processes that have ended; returns them."""
    names = (*host.namespaces(), *(f"{group}-device" for group in host.groups()))
    removed = tuple(testbed for testbed in testbeds_of(names) if testbed.is_leftover())
    for testbed in removed:
        testbed.down()
    return removed


def testbeds() -> tuple[Testbed, ...]:
    """The testbeds of this machine that are up."""
    return testbeds_of(host.namespaces())


def named(name: str) -> Testbed:
    """The testbed of a name that a user chose.

    Raises:
        InputError: the name is not 1 to 40 letters, digits and dashes.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,39}", name) or name.startswith("run-"):
        raise InputError(
            f"testbed name {name!r} can't be used: take letters, digits and dashes, not run-..."
        )
    return Testbed(name)


def find(name: str) -> Testbed:
    """A testbed that is up.

    Raises:
        InputError: there is none of that name.
    """
    testbed = named(name)
    if testbed not in testbeds():
        raise InputError(f"no testbed named {name!r} is up: make it with `offload testbed up`")
    return testbed


def _check_able() -> None:
    reason = host.obstacle()
    if reason:
        raise InputError(reason)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process, removed at the end; those of killed processes are removed first."""
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_SCRATCH_PREFIX}*"):
        if Testbed(folder.name.removeprefix(_SCRATCH_PREFIX)).is_leftover():
            shutil.rmtree(folder, ignore_errors=True)
    folder = root / f"{_SCRATCH_PREFIX}{Testbed.of_process(os.getpid()).name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
