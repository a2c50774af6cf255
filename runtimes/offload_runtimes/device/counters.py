"""Count and log what a session does."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

LOG = logging.getLogger("offload.device")
LOG.addHandler(logging.NullHandler())


class Outcome(StrEnum):
    """How one inference was computed.

    Attributes:
        SPLIT: by its plan, with the server (or without, if the plan needs none).
        RESUMED: begun with the server, finished on the device after the server was lost.
        HEDGED: finished on the device because the deadline was near.
        LOCAL: computed on the device from the start, as the server was away.
    """

    SPLIT = "split"
    RESUMED = "resumed"
    HEDGED = "hedged"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a session.

    Attributes:
        split, resumed, hedged, local: inferences by outcome, see Outcome. Each
            micro-batch of a shared batch counts as one.
        dropped: frames dropped by a stream with `latest=True`.
        losses: times that the server was lost.
        switches: changes of plan.
        by_plan: inferences answered by each plan, by its index; shorter if the last plans answered
            none.
        by_server: inferences answered with each server, by its address.
    """

    split: int = 0
    resumed: int = 0
    hedged: int = 0
    local: int = 0
    dropped: int = 0
    losses: int = 0
    switches: int = 0
    by_plan: tuple[int, ...] = ()
    by_server: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def runs(self) -> int:
        """Inferences answered."""
        return self.split + self.resumed + self.hedged + self.local


class Counters:
    """The counts of a session, increased by several threads.

    Attributes:
        counts: the counts now.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self._lock = threading.Lock()

    def answered(self, outcome: Outcome, plan: int, server: str | None) -> None:
        """Count an inference that was answered by a plan, with a server or without one."""
        with self._lock:
            counts = self.counts
            by_plan = [*counts.by_plan, *[0] * (plan + 1 - len(counts.by_plan))]
            by_plan[plan] += 1
            by_server = dict(counts.by_server)
            if server is not None:
                by_server[server] = by_server.get(server, 0) + 1
            self.counts = replace(
                counts,
                by_plan=tuple(by_plan),
                by_server=by_server,
                **{outcome.value: getattr(counts, outcome) + 1},
            )

    def add(self, name: str) -> None:
        """Increase a count, named as a field of Counts."""
        with self._lock:
            self.counts = replace(self.counts, **{name: getattr(self.counts, name) + 1})
