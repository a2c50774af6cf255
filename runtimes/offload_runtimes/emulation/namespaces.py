"""The commands that make and remove a testbed: namespaces, links, CPU quotas; nothing runs here."""

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side

Argv = tuple[str, ...]

INTERFACE = "veth0"
# A larger burst lets half of a small upload through at once; a longer queue only adds delay.
_BURST = "3kb"
_QUEUE = "200ms"
_NAME = re.compile(r"offload-(?P<name>.+)-(?:device|server)")
_RUN = re.compile(r"run-(?P<pid>\d+)-(?P<started>\d+)")
# 198.18.0.0/15 is set aside for tests of networks (RFC 2544): 2^15 links of four addresses.
_FIRST_ADDRESS = (198 << 24) + (18 << 16)
_LINKS = 1 << 15


@dataclass(frozen=True, slots=True)
class TestbedNames:
    """Names and addresses of one testbed, all derived from its name.

    Attributes:
        name: unique on this machine; `run-PID-STARTED` when it belongs to a process.
    """

    name: str

    @classmethod
    def of_process(cls, pid: int, started: int) -> "TestbedNames":
        """The testbed of one process, known by its number and when it was started."""
        return cls(f"run-{pid}-{started}")

    @property
    def owner(self) -> tuple[int, int] | None:
        """Process and start of it, if the testbed is to go with that process."""
        found = _RUN.fullmatch(self.name)
        return (int(found["pid"]), int(found["started"])) if found else None

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


def up_commands(layout: TestbedNames, link: Link) -> tuple[Argv, ...]:
    """Make both namespaces, join them, and shape the link."""
    device, server = (layout.namespace(side) for side in Side)
    return (
        ("ip", "netns", "add", device),
        ("ip", "netns", "add", server),
        ("ip", "link", "add", *_end(device), "type", "veth", "peer", "name", *_end(server)),
        *(command for side in Side for command in _interface(layout, side)),
        *shape_commands(layout, link),
    )


def _end(namespace: str) -> Argv:
    return (INTERFACE, "netns", namespace)


def _interface(layout: TestbedNames, side: Side) -> tuple[Argv, ...]:
    within = ("ip", "-n", layout.namespace(side))
    return (
        (*within, "addr", "add", f"{layout.address(side)}/30", "dev", INTERFACE),
        (*within, "link", "set", "lo", "up"),
        (*within, "link", "set", INTERFACE, "up"),
    )


def shape_commands(layout: TestbedNames, link: Link) -> tuple[Argv, ...]:
    """Give the link these rates, and its start-up time as a delay, each way."""
    ways = (
        (Side.DEVICE, link.up_bps, link.up_start_s),
        (Side.SERVER, link.down_bps, link.down_start_s),
    )
    return tuple(command for way in ways for command in _shape(layout, *way))


def _shape(layout: TestbedNames, side: Side, rate_bps: float, start_s: float) -> tuple[Argv, ...]:
    change = ("tc", "-n", layout.namespace(side), "qdisc", "replace", "dev", INTERFACE)
    rate = (*change, "root", "handle", "1:", "tbf", "rate", f"{rate_bps:.0f}bit")
    commands: tuple[Argv, ...] = ((*rate, "burst", _BURST, "latency", _QUEUE),)
    if start_s > 0:
        delay = (*change, "parent", "1:1", "netem", "delay", f"{start_s * 1e6:.0f}us")
        commands += ((*delay, "limit", "10000"),)
    return commands


def down_commands(layout: TestbedNames, present: Iterable[str]) -> tuple[Argv, ...]:
    """Remove those of its namespaces that are there; the link goes with them."""
    there = set(present)
    spaces = (layout.namespace(side) for side in Side)
    return tuple(("ip", "netns", "del", space) for space in spaces if space in there)


def testbed_names(names: Iterable[str]) -> tuple[TestbedNames, ...]:
    """The testbeds that names of namespaces or control groups belong to, in order of name."""
    spaces = (_NAME.fullmatch(name) for name in names)
    return tuple(
        TestbedNames(name) for name in sorted({found["name"] for found in spaces if found})
    )


def leftovers(
    names: Iterable[str], started_of: Callable[[int], int | None]
) -> tuple[TestbedNames, ...]:
    """Testbeds whose process is gone, or whose number is another process's by now.

    Args:
        names: of the namespaces that are there.
        started_of: when a process was started; None when there is no such process.
    """
    return tuple(
        layout
        for layout in testbed_names(names)
        if layout.owner and started_of(layout.owner[0]) != layout.owner[1]
    )


# The kernel's smallest quota; shorter periods throttle more evenly.
_LEAST_QUOTA_US = 1_000
_LEAST_PERIOD_US = 5_000
_MOST_PERIOD_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where the kernel's CPU controller is mounted.

    Attributes:
        version: of the control groups, 1 or 2.
        root: the folder that holds the groups.
    """

    version: int
    root: Path

    def quota(self, group: str, slowdown: float) -> tuple[tuple[Path, str], ...]:
        """Files and contents that give a group 1 / slowdown of one CPU.

        Raises:
            InputError: the kernel has no quota that small.
        """
        period_us = max(_LEAST_PERIOD_US, round(_LEAST_QUOTA_US * slowdown))
        if not slowdown >= 1 or period_us > _MOST_PERIOD_US:
            raise InputError(
                f"a CPU quota can slow a device 1 to {_MOST_PERIOD_US // _LEAST_QUOTA_US} times,"
                f" not {slowdown:g}: slow it by pacing"
            )
        quota_us = round(period_us / slowdown)
        folder = self.root / group
        if self.version == 1:
            return (
                (folder / "cpu.cfs_period_us", str(period_us)),
                (folder / "cpu.cfs_quota_us", str(quota_us)),
            )
        return ((folder / "cpu.max", f"{quota_us} {period_us}"),)

    def members(self, group: str) -> Path:
        """The file that a process's number is written to, to put it in the group."""
        return self.root / group / "cgroup.procs"


def find_hierarchy(mounts: str, read: Callable[[Path], str]) -> Hierarchy | None:
    """The CPU controller's place, from the text of /proc/mounts; None when there is none.

    Args:
        mounts: one file system a line: device, place, type, options.
        read: the text of a file, empty when there is none.
    """
    rows = [line.split() for line in mounts.splitlines()]
    for row in rows:
        if len(row) > 3 and row[2] == "cgroup" and "cpu" in row[3].split(","):
            return Hierarchy(1, Path(row[1]))
    for row in rows:
        if len(row) > 2 and row[2] == "cgroup2":
            root = Path(row[1])
            if "cpu" in read(root / "cgroup.controllers").split():
                return Hierarchy(2, root)
    return None
