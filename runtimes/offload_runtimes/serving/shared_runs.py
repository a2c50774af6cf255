"""Sessions that are served, and runs of a segment for several of them."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from offload.errors import OffloadError

from offload_runtimes.engine import Array, size_bytes
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import RunSegment, ServerSession
from offload_runtimes.serving.batching import (
    Batching,
    BatchQueue,
    RunShare,
    Shapes,
    SharedRun,
    rows_of,
    shapes_of,
)
from offload_runtimes.serving.bundles import LoadedBundle, RunTimes
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.transport.connection import Connection


class SessionState:
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
        self.calls: dict[int, list[RunShare]] = {}
        self.begun_s: dict[int, float] = {}
        self.spoils = False

    def forget(self, frame: int, call: RunShare) -> None:
        """Note that a call is over."""
        calls = self.calls.get(frame, [])
        if call in calls:
            calls.remove(call)
        if not calls:
            self.calls.pop(frame, None)


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """A segment to run for a session.

    Attributes:
        run: the segment and its inputs.
        call: its run, which can be stopped.
        lately: how long its bundle's parts took when they were last run.
        asked_s: when it could have begun, by `time.monotonic`.
    """

    run: RunSegment
    call: RunShare
    lately: RunTimes
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


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What tasks must share to run together: bundle, part, and all sizes but those of axis 0."""

    digest: str
    part: str
    shapes: Shapes


@dataclass(frozen=True, slots=True, eq=False)
class BatchMember:
    """A session's task among others that run together, with so many rows."""

    served: SessionState
    task: SegmentTask
    rows: int


class BatchRunner:
    """Lets tasks of several sessions run as one, where a bundle and its trial allow it."""

    def __init__(
        self,
        batching: Batching,
        hosted: Mapping[str, LoadedBundle],
        observer: Observer,
        memory: MemoryBudget,
        crowd: Callable[[str], Iterable[SessionState]],
    ) -> None:
        """`crowd` tells the sessions that may join in on a bundle; `memory` holds joined inputs."""
        self._hosted = hosted
        self._observer = observer
        self._memory = memory
        self._crowd = crowd
        self._gathered: BatchQueue[SessionState, BatchMember] = BatchQueue(batching)
        self.waits = batching.wait_s > 0
        self._is_on = batching.rows > 1
        for digest in hosted:
            self.report(digest)

    @property
    def spent(self) -> int:
        """Turns still to come for tasks that others took along."""
        return self._gathered.spent

    def report(self, digest: str) -> None:
        """Log which parts of a bundle run rows of several sessions at once, where any may."""
        host = self._hosted[digest]
        for part in host.engines if self._is_on else ():
            self._observer.batching(digest, part, host.alone.get(part, ""))

    def add(self, served: SessionState, task: SegmentTask) -> BatchKey | None:
        """Let a task wait for others of its kind; None: it must run alone."""
        digest, part = served.session.bundle or "", task.run.segment.part
        if served.spoils or part in self._hosted[digest].alone:
            return None
        rows = rows_of(task.run.feeds)
        if rows is None:
            return None
        kind = BatchKey(digest, part, shapes_of(task.run.feeds))
        self._gathered.add(kind, served, BatchMember(served, task, rows), rows)
        return kind

    def take(self, kind: BatchKey, served: SessionState) -> list[BatchMember]:
        """Whom to run together now that a session has its turn; none: others took it along."""
        return self._gathered.take(kind, served, partial(self._crowd, kind.digest))

    def fits(self, members: Sequence[BatchMember]) -> bool:
        """Whether there are several, and memory for their inputs joined."""
        free_bytes = self._memory.limit_bytes - self._memory.held_bytes
        return len(members) > 1 and _joined_bytes(members) <= free_bytes

    def run(
        self, kind: BatchKey, members: Sequence[BatchMember], max_run_s: float
    ) -> list[list[Array]]:
        """Run several as one; what each of them made.

        Raises:
            InputError: it cannot be computed.
            DeadlineError: it took too long, or nobody wants it any more.
        """
        call = self._hosted[kind.digest].engines[kind.part].prepare(max_run_s)
        joint = SharedRun(call, [member.task.call for member in members])
        outputs = members[0].task.run.segment.outputs
        feeds = [member.task.run.feeds for member in members]
        account = self._memory.reserve(lambda: None)
        account.hold(_joined_bytes(members), idle=False)
        try:
            return joint.run(outputs, feeds, [member.rows for member in members])
        finally:
            account.hold(0)

    def ran(self, rows: int) -> None:
        """Count rows that ran at once."""
        self._observer.batched(rows)

    def learn(self, kind: BatchKey, failed: OffloadError, alone: Iterable[bool]) -> None:
        """After a run for several failed: where none of them did alone, the part cannot take so
        many rows, and runs frames alone from now on.
        """
        if all(alone):
            self._hosted[kind.digest].alone[kind.part] = str(failed)
            self._observer.batching(kind.digest, kind.part, str(failed))

    def drop(self, served: SessionState) -> None:
        """Forget what a session is waiting for."""
        self._gathered.drop(served)

    def stop(self) -> None:
        """Let no worker wait for more."""
        self._gathered.stop()


def _joined_bytes(members: Sequence[BatchMember]) -> int:
    return sum(size_bytes(value) for member in members for value in member.task.run.feeds.values())
