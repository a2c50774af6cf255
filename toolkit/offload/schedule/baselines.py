"""Orders that need no thought: nothing overlapped, and the file's own order."""

from offload.schedule.found import Found
from offload.schedule.instance import Instance


def serial(instance: Instance, _budget_s: float = 0.0) -> Found:
    """The layers' own order with nothing overlapped: the device waits for each upload."""
    return Found(instance.topological, overlap=False)


def fifo(instance: Instance, _budget_s: float = 0.0) -> Found:
    """The layers' own order (the smallest topological one), uploads overlapped. O(V + E)."""
    return Found(instance.topological)
