"""A session that is served, and a segment to run for it."""

import threading
from dataclasses import dataclass

from offload_runtimes.engine import size_bytes
from offload_runtimes.serving.lately import Lately
from offload_runtimes.serving.together import Share
from offload_runtimes.session.server import Run, ServerSession
from offload_runtimes.wire.transport import Connection


class Served:
    """One session being served: the state machine, its lock, and what runs for it.

    Attributes:
        begun_s: when the first segment of each frame in flight could run, by `time.monotonic`.
        spoils: a frame of its own made a run for several fail: its frames run alone from then on.
    """

    def __init__(self, number: int, connection: Connection, session: ServerSession) -> None:
        self.number = number
        self.connection = connection
        self.session = session
        self.lock = threading.RLock()
        self.calls: dict[int, list[Share]] = {}
        self.begun_s: dict[int, float] = {}
        self.spoils = False

    def forget(self, frame: int, call: Share) -> None:
        """Note that a call is over."""
        calls = self.calls.get(frame, [])
        if call in calls:
            calls.remove(call)
        if not calls:
            self.calls.pop(frame, None)


@dataclass(frozen=True, slots=True)
class Task:
    """A segment to run for a session.

    Attributes:
        run: the segment and its inputs.
        call: its run, which can be stopped.
        lately: how long its bundle's parts took when they were last run.
        asked_s: when it could have begun, by `time.monotonic`.
    """

    run: Run
    call: Share
    lately: Lately
    asked_s: float

    @property
    def is_short(self) -> bool:
        """Whether it should take less time than waking a worker."""
        return self.lately.is_short(self.run.segment.part, self._size_bytes)

    def took(self, seconds: float) -> None:
        """Note how long it took, run alone."""
        self.lately.took(self.run.segment.part, self._size_bytes, seconds)

    @property
    def _size_bytes(self) -> int:
        return sum(map(size_bytes, self.run.feeds.values()))
