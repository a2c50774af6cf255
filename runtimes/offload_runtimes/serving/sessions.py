"""Sessions of a server, their segments to run, and batches of them."""

import itertools
import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from offload.errors import OffloadError

from offload_runtimes.engine import Array, Call, rows_of, size_bytes
from offload_runtimes.protocol.kserve_state import InferenceRequest
from offload_runtimes.protocol.server_state import RunSegment, ServerSession
from offload_runtimes.serving.batching import Shapes, join_rows, shapes_of, split_rows
from offload_runtimes.serving.bundles import LoadedBundle
from offload_runtimes.transport.connection import Connection

BatchKey: TypeAlias = tuple[str, str, Shapes]  # digest of the bundle, part, sizes but axis 0


class SessionState:
    """A session of a server: its protocol state, its lock, and the segments that run for it.

    Attributes:
        number: counts sessions, for the log.
        protocol: the state machine, used with the lock held.
        tasks: the segments of each frame in flight.
        ready_s: when the first segment of each frame in flight could run, by `time.monotonic`.
        runs_alone: a frame of this session made a batch fail, so its frames run alone from now on.
    """

    def __init__(
        self,
        number: int,
        connection: Connection,
        protocol: ServerSession | InferenceRequest,
        turn: Hashable = None,
    ) -> None:
        """A session; `turn` None: it has its own."""
        self.number = number
        self._turn = turn
        self.connection = connection
        self.protocol = protocol
        self.lock = threading.RLock()
        self.tasks: dict[int, list[SegmentTask]] = {}
        self.ready_s: dict[int, float] = {}
        self.runs_alone = False

    @property
    def turn(self) -> Hashable:
        """What takes turns among the workers: the session, or what it shares one with."""
        return self if self._turn is None else self._turn

    def forget(self, task: "SegmentTask") -> None:
        """Remove a task that has ended."""
        frame = task.run.frame
        tasks = self.tasks.get(frame, [])
        if task in tasks:
            tasks.remove(task)
        if not tasks:
            self.tasks.pop(frame, None)


class RunningRequest:
    """A request of KServe v2 whose segments run on the thread that received it.

    Attributes:
        bundle: digest of the bundle that it runs.
        queue_s: seconds that its segments waited for their turn.
        compute_s: seconds that they ran.
        is_stopped: whether `stop` was called.
        why: why it was stopped, which is its answer; None: its client has gone.
    """

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle
        self.queue_s = self.compute_s = 0.0
        self.is_stopped = False
        self.why: OffloadError | None = None
        self._call: Call | None = None

    def stops(self, call: Call) -> None:
        """Stop this call, which is about to run a segment, when the request is stopped."""
        self._call = call
        if self.is_stopped:  # `stop` may have come before the call was set
            call.stop()

    def stop(self, why: OffloadError | None = None) -> None:
        """Stop the request; may be called on any thread."""
        self.why = why
        self.is_stopped = True
        if self._call is not None:
            self._call.stop()


class OpenSessions:
    """The sessions of a server that are open now, and the requests of KServe v2 under way.

    Attributes:
        running: the requests that run on the threads that received them.
    """

    def __init__(self) -> None:
        self.running: set[RunningRequest] = set()
        self._sessions: set[SessionState] = set()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        """The number of the next session."""
        return next(self._numbers)

    def add(self, session: SessionState) -> None:
        """A session has begun."""
        with self._lock:
            self._sessions.add(session)

    def discard(self, session: SessionState) -> None:
        """A session is over."""
        with self._lock:
            self._sessions.discard(session)

    def __len__(self) -> int:
        return len(self._sessions) + len(self.running)

    def __iter__(self) -> Iterator[SessionState]:
        """The sessions that are open at the call."""
        with self._lock:
            return iter(tuple(self._sessions))


@dataclass(slots=True, eq=False)
class SegmentTask:
    """A segment to run for a session, alone or in a batch.

    Attributes:
        session: the session.
        run: the segment and its inputs.
        bundle: the bundle of the segment.
        call: runs it alone; can be stopped.
        ready_s: when it could have begun, by `time.monotonic`.
        is_brief: it runs on gRPC's polling thread, and is stopped after 20 ms.
        batch: the batch that it is part of, while that runs.
        stopped: its outputs are not needed any more.
    """

    session: SessionState
    run: RunSegment
    bundle: LoadedBundle
    call: Call
    ready_s: float
    is_brief: bool = False
    batch: "Batch | None" = field(default=None, repr=False)
    stopped: bool = False

    @property
    def part(self) -> str:
        """The part of the bundle that it runs."""
        return self.run.segment.part

    @property
    def input_bytes(self) -> int:
        """Bytes of its inputs."""
        return sum(map(size_bytes, self.run.feeds.values()))

    @property
    def rows(self) -> int:
        """Rows of its inputs; 0 if they have none in common."""
        return rows_of(self.run.feeds) or 0

    def batch_key(self) -> BatchKey | None:
        """Key of the tasks that it can share a batch with; None: it must run alone."""
        if self.session.runs_alone or self.part in self.bundle.alone or not self.rows:
            return None
        return self.bundle.bundle.digest, self.part, shapes_of(self.run.feeds)

    def stop(self) -> None:
        """Keep it from beginning, or end it; a batch ends only when all its tasks are stopped."""
        self.stopped = True
        self.call.stop()
        batch = self.batch
        if batch is not None:
            batch.stop_if_unneeded()


class Batch:
    """One call that runs a segment for several tasks."""

    def __init__(self, call: Call, tasks: Sequence[SegmentTask], padding: int = 0) -> None:
        """A call for some tasks; `padding` rows are added, and their outputs are dropped."""
        self._call = call
        self._tasks = tasks
        self._padding = padding
        for task in tasks:
            task.batch = self
        self.stop_if_unneeded()

    def stop_if_unneeded(self) -> None:
        """End the call when all tasks are stopped."""
        if all(task.stopped for task in self._tasks):
            self._call.stop()

    def run(self) -> list[list[Array]]:
        """Each task's outputs; raises as `Call.run`, for all of them."""
        try:
            feeds = join_rows([task.run.feeds for task in self._tasks], self._padding)
            outputs = self._call.run(self._tasks[0].run.segment.outputs, feeds)
            rows = [task.rows for task in self._tasks]
            return split_rows(outputs, [*rows, self._padding])[: len(rows)]
        finally:
            for task in self._tasks:
                task.batch = None
