"""Count and log what a session does."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """The counts of a session, increased by several threads."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()  # by the names of the fields of Counts
        self._by_plan: list[int] = []
        self._by_server: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counts:
        """The counts now."""
        with self._lock:
            return Counts(
                **self._numbers, by_plan=tuple(self._by_plan), by_server=dict(self._by_server)
            )

    def answered(self, outcome: Outcome, plan: int, server: str | None) -> None:
        """Count an inference that was answered by a plan, with a server or without one."""
        with self._lock:
            self._numbers[outcome.value] += 1
            while len(self._by_plan) <= plan:
                self._by_plan.append(0)
            self._by_plan[plan] += 1
            if server is not None:
                self._by_server[server] += 1

    def add(self, name: str) -> None:
        """Increase a count, named as a field of Counts."""
        with self._lock:
            self._numbers[name] += 1
