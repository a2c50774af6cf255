"""Turn a session's events into replies and segment runs, on workers that serve sessions in turn."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from offload.errors import OffloadError, ServerError

from offload_runtimes.protocol.server_state import (
    Close,
    Event,
    FrameOver,
    PlanSwitched,
    Reply,
    RunSegment,
)
from offload_runtimes.serving.batching import RunShare
from offload_runtimes.serving.bundles import LoadedBundle
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.shared_runs import (
    BatchKey,
    BatchMember,
    BatchRunner,
    SegmentTask,
    SessionState,
)

Job = Callable[[], object]
LOG = logging.getLogger("offload.server")


class FairWorkers:
    """Runs jobs on a few threads; every key with work gets one turn per round.

    Jobs of one key start in the order given. What a job raises is logged and ends that job only.
    """

    def __init__(self, workers: int) -> None:
        self._queues: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._free = workers
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(workers)
        ]

    def open(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def submit(self, key: Hashable, job: Job) -> None:
        """Queue a job behind the others of its key; nothing comes of it after `stop`."""
        with self._lock:
            if self._stopped:
                return
            self._queues.setdefault(key, deque()).append(job)
            self._changed.notify()

    def run_here(self, job: Job) -> bool:
        """Run a job on the caller's thread if a worker is free and nothing waits; else say no.

        It counts as one of the workers while it runs.
        """
        with self._lock:
            if not self._free or self._queues or self._stopped:
                return False
            self._free -= 1
        try:
            _do(job)
        finally:
            with self._lock:
                self._free += 1
                if self._queues:
                    self._changed.notify()
        return True

    def drop(self, key: Hashable) -> None:
        """Forget the jobs of a key that haven't begun."""
        with self._lock:
            self._queues.pop(key, None)

    @property
    def waiting(self) -> int:
        """Jobs that haven't begun."""
        with self._lock:
            return sum(len(jobs) for jobs in self._queues.values())

    def stop(self) -> None:
        """End the threads after the jobs they are at; queued jobs are forgotten."""
        with self._lock:
            self._stopped = True
            self._queues.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            _do(job)
            del job  # with a session and its tensors: the next may be long in coming
            with self._lock:
                self._free += 1

    def _next(self) -> Job | None:
        with self._lock:
            while not (self._queues and self._free) and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            key, jobs = self._queues.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._queues[key] = jobs
            self._free -= 1
            return job


def _do(job: Job) -> None:
    try:
        job()
    except BaseException:
        LOG.exception("a job raised")


class Dispatcher:
    """Runs what sessions ask for on workers that they share, and sends what comes of it.

    Whatever a segment raises fails its frame alone; whatever else goes wrong ends its session
    alone. No exception reaches a worker.
    """

    def __init__(
        self,
        hosted: Mapping[str, LoadedBundle],
        workers: int,
        max_run_s: float,
        observer: Observer,
        batches: BatchRunner,
    ) -> None:
        """`hosted` by digest; `workers` segments run at the same time, each for so long at most."""
        self._hosted = hosted
        self._max_run_s = max_run_s
        self._observer = observer
        self._workers = FairWorkers(workers)
        self._batches = batches

    @property
    def waiting(self) -> int:
        """Segments that could run but wait for their turn."""
        spent = self._batches.spent
        return max(0, self._workers.waiting - spent)

    def drop(self, served: SessionState) -> None:
        """Forget what a session is waiting for."""
        self._workers.drop(served)
        self._batches.drop(served)

    def open(self) -> None:
        """Let the workers begin."""
        self._workers.open()

    def stop(self) -> None:
        """End the workers after what they are at."""
        self._batches.stop()
        self._workers.stop()

    def apply(self, served: SessionState, events: Iterable[Event]) -> list[SegmentTask]:
        """Do what the state machine asks for, but for the segments to run, which are returned.

        Called with the session's lock held; the segments are started without it.
        """
        tasks = []
        for event in events:
            match event:
                case Reply(data):
                    self._send(served, data)
                case RunSegment():
                    tasks.append(self._task(served, event))
                case FrameOver(frame, outcome):
                    begun_s = served.begun_s.pop(frame, None)
                    latency_s = None if begun_s is None else time.monotonic() - begun_s
                    self._observer.frame(served.session.bundle or "", outcome, latency_s)
                    for call in served.calls.pop(frame, []):
                        call.stop()
                case PlanSwitched(before, after):
                    bundle = served.session.bundle or ""
                    self._observer.switched(served.number, bundle, before, after)
                case Close(data, error):
                    begun = served.session.bundle is not None
                    self._observer.failed(served.number, error, begun=begun)
                    self._send(served, data)
                    served.connection.close()
        return tasks

    def _send(self, served: SessionState, data: bytes) -> None:
        try:
            served.connection.send(data)
            self._observer.passed("out", len(data))
        except ServerError as error:  # the device is told where the stream still takes so much
            self.apply(served, served.session.close(error))
            served.connection.close()

    def _task(self, served: SessionState, run: RunSegment) -> SegmentTask:
        assert served.session.bundle is not None  # or nothing could be run
        hosted = self._hosted[served.session.bundle]
        call = RunShare(hosted.engines[run.segment.part].prepare(self._max_run_s))
        served.calls.setdefault(run.frame, []).append(call)
        now_s = time.monotonic()
        served.begun_s.setdefault(run.frame, now_s)
        return SegmentTask(run, call, hosted.lately, now_s)

    def start(self, served: SessionState, tasks: list[SegmentTask], *, here: bool = False) -> None:
        """Give segments to the workers; a short one may run `here`, on the caller's thread."""
        for task in tasks:
            kind = self._batches.add(served, task)
            job: Job = partial(self._run, served, task)
            if kind is not None:
                job, here = partial(self._turn, served, kind), here and not self._batches.waits
            job = partial(self._supervised, served, job)
            here = here and len(tasks) == 1 and task.is_short
            if not (here and self._workers.run_here(job)):
                self._workers.submit(served, job)

    def _supervised(self, served: SessionState, job: Job) -> None:
        """Do a job; when it raises, end the session, which may have lost a message by now."""
        try:
            job()
        except BaseException as error:  # noqa: BLE001  the worker serves other sessions, too
            self._observer.broke(served.number, error)
            with served.lock:
                self.apply(served, served.session.close(_unexpected("the session", error)))
            self.drop(served)

    def _turn(self, served: SessionState, kind: BatchKey) -> None:
        """Run a session's task with those of others; where that fails, each alone."""
        members = self._batches.take(kind, served)
        wanted = [member for member in members if not member.task.call.stopped]
        spoiled = None
        if self._batches.fits(wanted):
            spoiled = self._together(kind, wanted)
            if spoiled is None:
                members = [member for member in members if member not in wanted]
        alone = []
        for member in members:
            self._batches.ran(member.rows)
            done = self._run(member.served, member.task, blamed=spoiled is not None)
            alone.append(done)
        if spoiled is not None:
            self._batches.learn(kind, spoiled, alone)

    def _together(self, kind: BatchKey, members: Sequence[BatchMember]) -> OffloadError | None:
        """Run several as one; why that failed."""
        start_s = time.monotonic()
        try:
            made = self._batches.run(kind, members, self._max_run_s)
        except BaseException as error:  # noqa: BLE001  each of them is run alone then
            return _said(kind.part, error)
        end_s = time.monotonic()
        self._batches.ran(sum(member.rows for member in members))
        for member, arrays in zip(members, made, strict=True):
            self._finished(member.served, member.task, arrays, start_s, end_s)
        return None

    def _run(self, served: SessionState, task: SegmentTask, *, blamed: bool = False) -> bool:
        """Run a segment alone; whether it made its outputs. `blamed` to have spoiled others'."""
        run, start_s = task.run, time.monotonic()
        try:
            arrays = task.call.run(run.segment.outputs, run.feeds)
        except BaseException as error:  # noqa: BLE001  it fails the frame, not the worker
            served.spoils = served.spoils or (blamed and not task.call.stopped)
            self._failed(served, task, error)
            return False
        end_s = time.monotonic()
        task.took(end_s - start_s)
        self._finished(served, task, arrays, start_s, end_s)
        return True

    def _finished(
        self,
        served: SessionState,
        task: SegmentTask,
        values: Sequence[Any],
        start_s: float,
        end_s: float,
    ) -> None:
        self._observer.computed(start_s - task.asked_s, end_s - start_s)
        outputs = dict(zip(task.run.segment.outputs, values, strict=True))
        with served.lock:
            try:
                events = served.session.finished(task.run, outputs, start_s, end_s)
            except BaseException as error:  # noqa: BLE001  it fails the frame, not the worker
                self._failed(served, task, error)
                return
            more = self.apply(served, events)
            served.forget(task.run.frame, task.call)
        self.start(served, more)

    def _failed(self, served: SessionState, task: SegmentTask, error: BaseException) -> None:
        if not isinstance(error, OffloadError):
            self._observer.broke(served.number, error)
        said = _said(task.run.segment.part, error)
        with served.lock:
            events = served.session.failed(task.run, said)
            if events:
                self._observer.failed(served.number, said)
            more = self.apply(served, events)
            served.forget(task.run.frame, task.call)
        self.start(served, more)


def _said(part: str, error: BaseException) -> OffloadError:
    """What the device is told of an error of a segment."""
    return error if isinstance(error, OffloadError) else _unexpected(part, error)


def _unexpected(what: str, error: BaseException) -> ServerError:
    text = " ".join(str(error).split())[:200]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ServerError(f"{what} failed on the server ({said}): see the server's log")
