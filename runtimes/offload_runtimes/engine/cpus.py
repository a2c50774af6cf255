"""How many cores this process may use: its affinity and its control group's quota."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_TOPOLOGY = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def allowed_cores(root: Path = Path("/")) -> int:
    """Physical cores among the CPUs that this process may run on, at most its quota of CPU time.

    `taskset`, cpusets and containers set the first, `cpu.max` of a control group the second.
    """
    cores = {_read(root / _TOPOLOGY.format(cpu)) or str(cpu) for cpu in os.sched_getaffinity(0)}
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([len(cores), *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in CPUs, of this process's control group and of those it is part of."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / controllers
        folder = mounted / group.lstrip("/")
        for each in (folder, *folder.parents):
            if controllers:  # version 1
                words = [_read(each / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                words = _read(each / "cpu.max").split()
            if len(words) == 2 and all(word.isdecimal() for word in words):
                yield int(words[0]) / int(words[1])
            if each == mounted:
                break


def _read(path: Path) -> str:
    """A file's text; empty when this kernel has no such file, or hides it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
