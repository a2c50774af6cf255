"""This machine, for testbeds: commands, processes, and control groups for CPU quotas."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from offload.errors import InputError

Argv = tuple[str, ...]

_MOUNTS = Path("/proc/mounts")
# The smallest CPU quota of the kernel; shorter periods throttle more evenly.
_LEAST_QUOTA_US = 1_000
_LEAST_PERIOD_US = 5_000
_MOST_PERIOD_US = 1_000_000
# What tc prints, depending on its version and the kernel's, when the kernel lacks a queue.
_NO_QUEUE = (
    "qdisc kind is unknown",
    "RTNETLINK answers: No such file or directory",
    "RTNETLINK answers: Operation not supported",
    "Unknown qdisc",
    "Qdisc not supported",
    "Module sch_",
)
_WITHOUT = "or emulate the link instead, which needs none of this"


def obstacle() -> str | None:
    """Why this machine cannot have testbeds, in one sentence; None when it can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the command {tool!r} is missing: install iproute2, {_WITHOUT}"
    if os.geteuid() != 0:
        return f"network namespaces need root: run it with sudo, {_WITHOUT}"
    return None


def run(command: Argv) -> str:
    """Run a command and return its output.

    Raises:
        InputError: it failed; the text names the part of the kernel that is missing, where known.
    """
    try:
        env = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError as error:
        raise InputError(obstacle() or f"the command {command[0]!r} is missing") from error
    if not done.returncode:
        return done.stdout
    error_text = done.stderr.strip()
    kind = next((word for word in ("netem", "tbf") if word in command), None)
    if kind and any(phrase in error_text for phrase in _NO_QUEUE):
        advice = {
            "tbf": _WITHOUT,
            "netem": "leave out the link's delay, or emulate the link instead",
        }[kind]
        raise InputError(
            f"this kernel has no {kind} queue, so the link can't be shaped: load sch_{kind},"
            f" {advice}"
        )
    if "Operation not permitted" in error_text or "Permission denied" in error_text:
        raise InputError(
            f"the kernel does not permit {' '.join(command[:3])} here: use a real host, {_WITHOUT}"
        )
    raise InputError(f"{' '.join(command)} failed: {error_text or 'it printed no error'}")


def namespaces() -> tuple[str, ...]:
    """Names of this machine's network namespaces; none if they cannot be listed."""
    with suppress(InputError):
        return tuple(line.split()[0] for line in run(("ip", "netns", "list")).splitlines() if line)
    return ()


def kill(processes: Iterable[int]) -> None:
    """Kill processes; those that have ended are skipped."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def processes_in(namespace: str) -> tuple[int, ...]:
    """Numbers of the processes in a network namespace."""
    with suppress(InputError):
        return tuple(int(word) for word in run(("ip", "netns", "pids", namespace)).split())
    return ()


def started_of(process: int) -> int | None:
    """Start time of a process, in ticks since boot; None when there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


@dataclass(frozen=True, slots=True)
class CpuController:
    """The kernel's CPU controller (control groups), by its mount point.

    Attributes:
        version: of the control groups, 1 or 2.
        root: the folder that holds the groups.
    """

    version: int
    root: Path

    def quota(self, group: str, slowdown: float) -> tuple[tuple[Path, str], ...]:
        """Files and contents that give a group 1 / slowdown of one CPU.

        Raises:
            InputError: the kernel allows no quota that small.
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
        """The file that adds a process to the group when its number is written to it."""
        return self.root / group / "cgroup.procs"


def find_cpu_controller(mounts: str, read: Callable[[Path], str]) -> CpuController | None:
    """Find the CPU controller in the text of /proc/mounts; None when there is none.

    Args:
        mounts: one file system a line: device, mount point, type, options.
        read: returns the text of a file, empty when there is none.
    """
    rows = [line.split() for line in mounts.splitlines()]
    for row in rows:
        if len(row) > 3 and row[2] == "cgroup" and "cpu" in row[3].split(","):
            return CpuController(1, Path(row[1]))
    for row in rows:
        if len(row) > 2 and row[2] == "cgroup2":
            root = Path(row[1])
            if "cpu" in read(root / "cgroup.controllers").split():
                return CpuController(2, root)
    return None


def cpu_controller() -> CpuController | None:
    """This machine's CPU controller; None when there is none."""
    return find_cpu_controller(_read(_MOUNTS), _read)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def limit(group: str, process: int, slowdown: float) -> None:
    """Give a process, and those it starts, 1 / slowdown of one CPU.

    Raises:
        InputError: this machine has no CPU quotas, or none that small.
    """
    controller = cpu_controller()
    if controller is None:
        raise InputError("this machine has no CPU quotas (control groups): slow it by pacing")
    try:
        if controller.version == 2:
            (controller.root / "cgroup.subtree_control").write_text("+cpu")
        controller.members(group).parent.mkdir(exist_ok=True)
        for path, content in controller.quota(group, slowdown):
            path.write_text(content)
        controller.members(group).write_text(str(process))
    except OSError as error:
        raise InputError(
            f"the CPU quota can't be set ({error.strerror}): slow the device by pacing"
        ) from error


def release(group: str) -> None:
    """Remove a control group if it exists, and kill the processes in it."""
    controller = cpu_controller()
    if controller is None or not controller.members(group).parent.is_dir():
        return
    kill(int(word) for word in _read(controller.members(group)).split())
    for _ in range(100):
        try:
            controller.members(group).parent.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)  # killed processes leave the group a moment later
        else:
            return


def groups() -> tuple[str, ...]:
    """Names of the control groups below the CPU controller's root."""
    controller = cpu_controller()
    if controller is None or not controller.root.is_dir():
        return ()
    return tuple(path.name for path in controller.root.iterdir() if path.is_dir())
