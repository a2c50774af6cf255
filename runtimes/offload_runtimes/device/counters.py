"""What a session has done so far, counted."""

import threading
from dataclasses import dataclass, fields
from enum import StrEnum


class Outcome(StrEnum):
    """How one inference was computed.

    Attributes:
        SPLIT: as planned, the server doing its part (or the plan needing none).
        RESUMED: begun with the server, finished here when it was lost.
        HEDGED: finished here because the deadline was near.
        LOCAL: done here from the start, the server being away.
    """

    SPLIT = "split"
    RESUMED = "resumed"
    HEDGED = "hedged"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Counts:
    """Inferences answered, by outcome; frames dropped by a `latest` stream; servers lost; changes
    of plan.
    """

    split: int = 0
    resumed: int = 0
    hedged: int = 0
    local: int = 0
    dropped: int = 0
    losses: int = 0
    switches: int = 0

    @property
    def runs(self) -> int:
        """Inferences answered."""
        return self.split + self.resumed + self.hedged + self.local


class Counters:
    """Counts from several threads."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys((field.name for field in fields(Counts)), 0)
        self._lock = threading.Lock()

    def add(self, what: str) -> None:
        """Count one more of what a field of Counts is called."""
        with self._lock:
            self._counts[what] += 1

    @property
    def counts(self) -> Counts:
        """The counts now."""
        with self._lock:
            return Counts(**self._counts)
