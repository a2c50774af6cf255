"""What the testbed asks of this machine: commands, control groups, processes."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from offload.errors import InputError

from offload_runtimes.emulation.namespaces import Argv, Hierarchy, find_hierarchy

_MOUNTS = Path("/proc/mounts")
# What tc says, by version of it and of the kernel, when the kernel has no queue of a kind.
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
    """One sentence on why no testbed can be made here; None when nothing stands in the way."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the command {tool!r} is missing: install iproute2, {_WITHOUT}"
    if os.geteuid() != 0:
        return f"network namespaces need root: run it with sudo, {_WITHOUT}"
    return None


def run(command: Argv) -> str:
    """Run a command to its end and give its output.

    Raises:
        InputError: it failed; the sentence says what of the kernel is missing, where known.
    """
    try:
        env = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError as error:
        raise InputError(obstacle() or f"the command {command[0]!r} is missing") from error
    if done.returncode:
        raise InputError(_sentence(command, done.stderr.strip()))
    return done.stdout


def _sentence(command: Argv, said: str) -> str:
    kind = next((word for word in ("netem", "tbf") if word in command), None)
    if kind and any(word in said for word in _NO_QUEUE):
        use = {
            "tbf": _WITHOUT,
            "netem": "leave out the link's delay, or emulate the link instead",
        }[kind]
        return (
            f"this kernel has no {kind} queue, so the link can't be shaped: load sch_{kind}, {use}"
        )
    if "Operation not permitted" in said or "Permission denied" in said:
        return (
            f"the kernel does not permit {' '.join(command[:3])} here: use a real host, {_WITHOUT}"
        )
    return f"{' '.join(command)} failed: {said or 'it said nothing'}"


def namespaces() -> tuple[str, ...]:
    """Names of the network namespaces of this machine; none where they can't be listed."""
    with suppress(InputError):
        return tuple(line.split()[0] for line in run(("ip", "netns", "list")).splitlines() if line)
    return ()


def kill(processes: Iterable[int]) -> None:
    """End processes at once; those that are gone already do not matter."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def processes_in(namespace: str) -> tuple[int, ...]:
    """Processes that live in a network namespace."""
    with suppress(InputError):
        return tuple(int(word) for word in run(("ip", "netns", "pids", namespace)).split())
    return ()


def started_of(process: int) -> int | None:
    """When a process was started, in ticks since boot; None when there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def hierarchy() -> Hierarchy | None:
    """Where this machine's CPU controller is."""
    return find_hierarchy(_read(_MOUNTS), _read)


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
    found = hierarchy()
    if found is None:
        raise InputError("this machine has no CPU quotas (control groups): slow it by pacing")
    try:
        if found.version == 2:
            (found.root / "cgroup.subtree_control").write_text("+cpu")
        found.members(group).parent.mkdir(exist_ok=True)
        for path, content in found.quota(group, slowdown):
            path.write_text(content)
        found.members(group).write_text(str(process))
    except OSError as error:
        raise InputError(
            f"the CPU quota can't be set ({error.strerror}): slow the device by pacing"
        ) from error


def release(group: str) -> None:
    """Remove a control group, if it is there; what is still in it ends."""
    found = hierarchy()
    if found is None or not found.members(group).parent.is_dir():
        return
    kill(int(word) for word in _read(found.members(group)).split())
    for _ in range(100):
        try:
            found.members(group).parent.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)  # the kernel lets go of killed processes in a moment
        else:
            return


def groups() -> tuple[str, ...]:
    """Names of the control groups below the CPU controller's root."""
    found = hierarchy()
    if found is None or not found.root.is_dir():
        return ()
    return tuple(path.name for path in found.root.iterdir() if path.is_dir())
