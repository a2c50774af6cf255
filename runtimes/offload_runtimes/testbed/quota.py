"""A slow device by CPU quota: what to write to which control group file, version 1 or 2."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from offload.errors import InputError

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
