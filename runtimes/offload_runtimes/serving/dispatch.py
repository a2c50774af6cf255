"""What a session's events lead to: replies, and segments that run in turn with other sessions'."""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from offload.errors import OffloadError, ServerError

from offload_runtimes.engine import Call
from offload_runtimes.serving.fair import FairWorkers
from offload_runtimes.serving.hosted import Hosted
from offload_runtimes.serving.observe import Observer
from offload_runtimes.session.server import (
    Close,
    Event,
    Over,
    Reply,
    Run,
    ServerSession,
    Switched,
)
from offload_runtimes.wire.transport import Connection

_SHORT_S = 0.0005  # below this, waking a worker costs more than a message that waits


class Served:
    """One session being served: the state machine, its lock, and what runs for it."""

    def __init__(self, number: int, connection: Connection, session: ServerSession) -> None:
        self.number = number
        self.connection = connection
        self.session = session
        self.lock = threading.RLock()
        self.calls: dict[int, list[Call]] = {}

    def forget(self, frame: int, call: Call) -> None:
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
        last_s: how long each part took when it was last run.
        asked_s: when it could have begun, by `time.monotonic`.
    """

    run: Run
    call: Call
    last_s: dict[str, float]
    asked_s: float

    @property
    def is_short(self) -> bool:
        """Whether the last run of its part was shorter than waking a worker."""
        return self.last_s.get(self.run.segment.part, _SHORT_S) < _SHORT_S


class Dispatcher:
    """Runs what sessions ask for on workers that they share, and sends what comes of it."""

    def __init__(
        self, hosted: Mapping[str, Hosted], workers: int, max_run_s: float, observer: Observer
    ) -> None:
        """`hosted` by digest; `workers` segments run at the same time, each for so long at most."""
        self._hosted = hosted
        self._max_run_s = max_run_s
        self._observer = observer
        self._workers = FairWorkers(workers)

    @property
    def waiting(self) -> int:
        """Segments that could run but wait for their turn."""
        return self._workers.waiting

    def drop(self, served: Served) -> None:
        """Forget what a session is waiting for."""
        self._workers.drop(served)

    def open(self) -> None:
        """Let the workers begin."""
        self._workers.open()

    def stop(self) -> None:
        """End the workers after what they are at."""
        self._workers.stop()

    def apply(self, served: Served, events: Iterable[Event]) -> list[Task]:
        """Do what the state machine asks for, but for the segments to run, which are returned.

        Called with the session's lock held; the segments are started without it.
        """
        tasks = []
        for event in events:
            match event:
                case Reply(data):
                    self._send(served, data)
                case Run():
                    tasks.append(self._task(served, event))
                case Over(frame, outcome):
                    self._observer.frame(served.session.bundle or "", outcome)
                    for call in served.calls.pop(frame, []):
                        call.stop()
                case Switched(before, after):
                    bundle = served.session.bundle or ""
                    self._observer.switched(served.number, bundle, before, after)
                case Close(data, error):
                    self._observer.failed(served.number, error)
                    self._send(served, data)
                    served.connection.close()
        return tasks

    def _send(self, served: Served, data: bytes) -> None:
        try:
            served.connection.send(data)
            self._observer.passed("out", len(data))
        except ServerError as error:  # the device is told where the stream still takes so much
            self.apply(served, served.session.close(error))
            served.connection.close()

    def _task(self, served: Served, run: Run) -> Task:
        assert served.session.bundle is not None  # or nothing could be run
        hosted = self._hosted[served.session.bundle]
        call = hosted.engines[run.segment.part].prepare(self._max_run_s)
        served.calls.setdefault(run.frame, []).append(call)
        return Task(run, call, hosted.last_s, time.monotonic())

    def start(self, served: Served, tasks: list[Task], *, here: bool = False) -> None:
        """Give segments to the workers; a short one may run `here`, on the caller's thread."""
        for task in tasks:
            job = partial(self._run, served, task)
            here = here and len(tasks) == 1 and task.is_short
            if not (here and self._workers.run_here(job)):
                self._workers.submit(served, job)

    def _run(self, served: Served, task: Task) -> None:
        run, start_s = task.run, time.monotonic()
        try:
            arrays = task.call.run(run.segment.outputs, run.feeds)
        except OffloadError as error:
            with served.lock:
                events = served.session.failed(run, error)
                if events:
                    self._observer.failed(served.number, error)
                more = self.apply(served, events)
        else:
            end_s = time.monotonic()
            task.last_s[run.segment.part] = end_s - start_s
            self._observer.computed(start_s - task.asked_s, end_s - start_s)
            outputs = dict(zip(run.segment.outputs, arrays, strict=True))
            with served.lock:
                events = served.session.finished(run, outputs, start_s, end_s)
                more = self.apply(served, events)
        with served.lock:
            served.forget(run.frame, task.call)
        self.start(served, more)
