"""Run the segments that sessions ask for, on workers that serve sessions in turn."""

import logging
import math
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from offload.errors import DeadlineError, OffloadError, ServerError
from offload.planning.plan import Segment

from offload_runtimes.engine import size_bytes
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import (
    Close,
    Event,
    FrameOver,
    PlanSwitched,
    Reply,
    RunSegment,
)
from offload_runtimes.serving.batching import BatchQueue
from offload_runtimes.serving.bundles import LoadedBundle
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.serving.sessions import (
    Batch,
    BatchKey,
    RunningRequest,
    SegmentTask,
    SessionState,
)

Job = Callable[[], object]
LOG = logging.getLogger("offload.server")
_NEWEST = 0.2  # the weight of the newest job in the mean
# Limits of a run on gRPC's polling thread, which receives no messages meanwhile.
_BRIEF_WAIT_S = 0.002
_BRIEF_S = 0.02


class NotBriefError(Exception):
    """A run on gRPC's polling thread had to wait or run for too long."""


class _Turn:
    """An entry in a queue of jobs: a thread that waits to run a job itself."""

    def __init__(self) -> None:
        self.has_come = False
        self._over = threading.Lock()  # held while the thread waits
        self._over.acquire()

    def wait(self, limit_s: float) -> bool:
        """Wait for the turn; False if it was cancelled or did not come within the limit."""
        self._over.acquire(timeout=-1 if limit_s == math.inf else limit_s)
        return self.has_come

    def end(self, *, has_come: bool) -> None:
        """End the wait."""
        self.has_come = has_come
        self._over.release()


class FairWorkers:
    """Run jobs on a few threads; every key that has jobs gets one turn per round.

    Jobs of one key start in order. An error of a job is logged and ends that job only.
    """

    def __init__(self, workers: int) -> None:
        self._queues: OrderedDict[Hashable, deque[Job | _Turn]] = OrderedDict()
        self._free = self._count = workers
        self._running: list[int] = []  # hashes of keys: a reference would keep a session alive
        self._usual_s = 0.0  # of a job, a mean in which recent ones count more
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False
        # For each thread: jobs to run ahead of the queue, each with the event that says it is done.
        self._before: list[deque[tuple[Job, threading.Event]]] = [deque() for _ in range(workers)]
        self._threads = [
            threading.Thread(
                target=self._work, args=(number,), name=f"worker-{number}", daemon=True
            )
            for number in range(workers)
        ]

    def open(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, key: Hashable, job: Job) -> None:
        """Queue a job behind the others of its key; it is ignored after `stop`."""
        with self._lock:
            if self._stopped:
                return
            self._queues.setdefault(key, deque()).append(job)
            self._changed.notify()

    def run_here(self, key: Hashable, job: Job, limit_s: float = 0.0) -> bool:
        """Run a job on the caller's thread, which counts as a worker meanwhile.

        Returns False if it was not run: its turn does not come within `limit_s`, see `enter`.
        """
        if not self.enter(key, limit_s):
            return False
        self._do(hash(key), job)
        return True

    def enter(self, key: Hashable, limit_s: float = math.inf) -> bool:
        """Wait until the caller may run a job of a key; it counts as a worker until `leave`.

        Returns False if the caller must not run the job: the key was dropped, the workers were
        stopped, or the wait took longer than `limit_s`, or would by the estimate of `wait_s`.
        """
        with self._lock:
            if self._stopped:
                return False
            if self._free and not self._queues:
                self._begin(key)
                return True
            if self._wait_s(key) > limit_s:
                return False
            turn = _Turn()
            self._queues.setdefault(key, deque()).append(turn)
        if turn.wait(limit_s) or limit_s == math.inf:
            return turn.has_come
        with self._lock:
            jobs = self._queues.get(key)
            if jobs is not None and turn in jobs:
                jobs.remove(turn)
                if not jobs:
                    del self._queues[key]
            return turn.has_come  # it may have come just now

    def leave(self, key: Hashable, took_s: float) -> None:
        """Free the worker that `enter` took; the job ran for `took_s`."""
        self._end(hash(key), took_s)

    def on_every_worker(self, job: Job) -> None:
        """Run a job once on each thread, ahead of queued jobs; return when all have run it.

        The threads must have been started; `stop` ends the wait.
        """
        done = [threading.Event() for _ in self._threads]
        with self._lock:
            if self._stopped:
                return
            for waiting, event in zip(self._before, done, strict=True):
                waiting.append((job, event))
            self._changed.notify_all()
        for event in done:
            event.wait()

    def wait_s(self, key: Hashable) -> float:
        """Seconds that a job of a key would wait now for jobs of others, estimated.

        A waiting job counts as long as the usual one, a running one half of that.
        """
        with self._lock:
            return self._wait_s(key)

    def _wait_s(self, key: Hashable) -> float:
        """As `wait_s`, with the lock held."""
        if self._free:
            return 0.0
        running = sum(1 for other in self._running if other != hash(key))
        waiting = len(self._queues) - (key in self._queues)
        return (running / 2 + waiting) * self._usual_s / self._count

    def drop(self, key: Hashable) -> None:
        """Forget the jobs of a key that have not started."""
        with self._lock:
            _end_turns(self._queues.pop(key, ()))
            self._give_turns()

    @property
    def waiting(self) -> int:
        """Number of jobs that have not started."""
        with self._lock:
            return sum(len(jobs) for jobs in self._queues.values())

    def stop(self) -> None:
        """End the threads when their current jobs end; queued jobs are forgotten."""
        with self._lock:
            self._stopped = True
            for jobs in self._queues.values():
                _end_turns(jobs)
            self._queues.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for waiting in self._before:
            for _, event in waiting:
                event.set()

    def _work(self, number: int) -> None:
        while (item := self._next(number)) is not None:
            key, job = item
            if key is None:
                job()
            else:
                self._do(key, job)
            del item, job  # they refer to a session and its tensors; the next job may come late

    def _do(self, key: int, job: Job) -> None:
        """Run a job and free its worker; `key` is the hash of the job's key."""
        begun_s = time.monotonic()
        try:
            job()
        except BaseException:
            LOG.exception("a job raised an error")
        finally:
            self._end(key, time.monotonic() - begun_s)

    def _end(self, key: int, took_s: float) -> None:
        """Free the worker of a job that has ended; `key` is the hash of the job's key."""
        with self._lock:
            self._free += 1
            self._running.remove(key)
            self._usual_s += _NEWEST * (took_s - self._usual_s) if self._usual_s else took_s
            self._give_turns()

    def _begin(self, key: Hashable) -> None:
        """Take a free worker for a job."""
        self._free -= 1
        self._running.append(hash(key))

    def _give_turns(self) -> None:
        """While workers are free, start the waiting threads that are next, or wake a worker."""
        while self._free and self._queues:
            key, jobs = next(iter(self._queues.items()))
            turn = jobs[0]
            if not isinstance(turn, _Turn):
                self._changed.notify()
                return
            self._take(key)
            turn.end(has_come=True)

    def _take(self, key: Hashable) -> "Job | _Turn":
        """Take the first job of a key off the queue, and a free worker for it."""
        jobs = self._queues.pop(key)
        job = jobs.popleft()
        if jobs:
            self._queues[key] = jobs  # behind the other keys
        self._begin(key)
        return job

    def _next(self, number: int) -> tuple[int | None, Job] | None:
        """Wait for a job; None after `stop`. A call of its own, so that no key stays referenced.

        The hash is None for a job of `on_every_worker`.
        """
        before = self._before[number]
        with self._lock:
            while not (before or (self._queues and self._free)) and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            if before:
                return None, partial(_run_and_set, *before.popleft())
            key = next(iter(self._queues))
            job = self._take(key)
            assert not isinstance(job, _Turn)  # `_give_turns` has started those in front
            self._give_turns()
            return hash(key), job


def _end_turns(jobs: Iterable[Job | _Turn]) -> None:
    """Wake the threads that wait in a queue; their jobs will not run."""
    for job in jobs:
        if isinstance(job, _Turn):
            job.end(has_come=False)


def _run_and_set(job: Job, done: threading.Event) -> None:
    try:
        job()
    except Exception:
        LOG.exception("a job raised an error")
    finally:
        done.set()


class Dispatcher:
    """Run the segments of all sessions on shared workers, and send the results.

    An error of a segment fails its frame only; any other error ends its session only. No exception
    reaches a worker.
    """

    def __init__(
        self,
        bundles: Mapping[str, LoadedBundle],
        options: ServeOptions,
        observer: Observer,
        memory: MemoryBudget,
        sessions_on: Callable[[str], Iterable[SessionState]],
    ) -> None:
        """Prepare the workers.

        Args:
            bundles: the bundles served, by digest.
            options: number of workers, the time limit of a run, and batching.
            observer: counts and logs what happens.
            memory: limits the inputs that are joined for a batch.
            sessions_on: the open sessions on a bundle, by its digest, that may share a batch.
        """
        self._bundles = bundles
        self._max_run_s = options.max_run_s
        self._batch_rows = options.batch_rows
        self._observer = observer
        self._memory = memory
        self._sessions_on = sessions_on
        self._workers = FairWorkers(options.workers)
        self._queue: BatchQueue[SessionState, SegmentTask] = BatchQueue(
            options.batch_rows, options.batch_wait_s
        )
        self._waits_for_rows = options.batch_wait_s > 0

    @property
    def waiting(self) -> int:
        """Number of segments that could run but wait for a worker."""
        spent = self._queue.spent
        return max(0, self._workers.waiting - spent)

    def wait_s(self, session: "weakref.ref[SessionState]") -> float:
        """Seconds that a segment of a session would wait now for those of others, estimated."""
        alive = session()
        return 0.0 if alive is None else self._workers.wait_s(alive.turn)

    def drop(self, session: SessionState) -> None:
        """Forget the waiting segments of a session."""
        if session.turn is session:  # else others' segments wait there, too, and these are stopped
            self._workers.drop(session)
        self._queue.drop(session)

    def open(self) -> None:
        """Start the workers."""
        self._workers.open()

    def on_every_worker(self, job: Job) -> None:
        """Run a job once on each worker, see `FairWorkers.on_every_worker`."""
        self._workers.on_every_worker(job)

    def stop(self) -> None:
        """End the workers when their current runs end."""
        self._queue.stop()
        self._workers.stop()

    def runs_here(self, loaded: LoadedBundle, parts: Iterable[str]) -> bool:
        """Whether the thread that receives a request may run these parts itself.

        It may if they run on the CPU and never in batches.
        """
        for part in parts:  # noqa: SIM110  faster than `all`, for each request
            if part not in loaded.alone or loaded.engines[part].on_gpu:
                return False
        return True

    def compute(
        self,
        turn: Hashable,
        loaded: LoadedBundle,
        request: RunningRequest,
        segment: Segment,
        feeds: Mapping[str, Any],
        *,
        is_brief: bool = False,
    ) -> list[Any]:
        """Wait for a turn, and run a segment on the caller's thread, as `runs_here` allows.

        Args:
            turn: what takes turns among the workers.
            loaded: the bundle of the segment.
            request: what it runs for, and is stopped with.
            segment: the segment.
            feeds: its inputs.
            is_brief: wait for at most 2 ms and run for at most 20 ms.

        Raises:
            OffloadError: it failed, was stopped, or the server is shutting down.
            NotBriefError: only if `is_brief`: it would have to wait, or it took too long.
        """
        ready_s = time.monotonic()
        limit_s = min(self._max_run_s, _BRIEF_S) if is_brief else self._max_run_s
        call = loaded.engines[segment.part].prepare(limit_s)
        request.stops(call)
        if not self._workers.enter(turn, _BRIEF_WAIT_S if is_brief else math.inf):
            if is_brief:
                raise NotBriefError
            raise ServerError("the server is shutting down: try again")
        start_s = time.monotonic()
        try:
            arrays = call.run(segment.outputs, feeds)
        except DeadlineError as error:
            if not is_brief:
                raise
            loaded.last_runs[segment.part] = 0, _BRIEF_S
            raise NotBriefError from error
        except OffloadError:
            raise
        except Exception as error:
            self._observer.broke(0, error)
            raise _unexpected(segment.part, error) from error
        finally:
            end_s = time.monotonic()
            self._workers.leave(turn, end_s - start_s)
        loaded.last_runs[segment.part] = sum(map(size_bytes, feeds.values())), end_s - start_s
        request.queue_s += start_s - ready_s
        request.compute_s += end_s - start_s
        self._observer.computed(start_s - ready_s, end_s - start_s)
        return arrays

    def apply(self, session: SessionState, events: Iterable[Event]) -> list[SegmentTask]:
        """Carry out the protocol's events; the segments to run are returned, not started.

        Called with the session's lock held; the caller starts the segments without it.
        """
        tasks = []
        for event in events:
            match event:
                case Reply(data):
                    self._send(session, data)
                case RunSegment(frame, segment, _):
                    bundle = self._bundles[session.protocol.bundle or ""]
                    call = bundle.engines[segment.part].prepare(self._max_run_s)
                    task = SegmentTask(session, event, bundle, call, time.monotonic())
                    session.tasks.setdefault(frame, []).append(task)
                    session.ready_s.setdefault(frame, task.ready_s)
                    tasks.append(task)
                case FrameOver(frame, outcome, plan):
                    ready_s = session.ready_s.pop(frame, None)
                    latency_s = None if ready_s is None else time.monotonic() - ready_s
                    digest = session.protocol.bundle or ""
                    self._observer.frame(digest, plan, outcome, latency_s)
                    for task in session.tasks.pop(frame, []):
                        task.stop()
                case PlanSwitched(before, after):
                    digest = session.protocol.bundle or ""
                    loaded = self._bundles.get(digest)
                    if loaded is None or not loaded.bundle.shares:  # else it changes all the time
                        self._observer.switched(session.number, digest, before, after)
                case Close(data, error):
                    begun = session.protocol.bundle is not None
                    self._observer.failed(session.number, error, begun=begun)
                    self._send(session, data)
                    session.connection.close()
        return tasks

    def _send(self, session: SessionState, data: bytes) -> None:
        try:
            session.connection.send(data)
            self._observer.passed("out", len(data))
        except ServerError as error:  # the backlog is full; a last message may still fit
            self.apply(session, session.protocol.close(error))
            session.connection.close()

    def start(
        self,
        session: SessionState,
        tasks: list[SegmentTask],
        *,
        here: bool = False,
        is_brief: bool = False,
    ) -> None:
        """Queue segments for the workers, or run a short one on the caller's thread.

        Args:
            session: the session.
            tasks: its segments.
            here: a short one may run on the caller's thread.
            is_brief: wait for at most 2 ms and run for at most 20 ms on that thread.
        """
        for task in tasks:
            run_here = here and len(tasks) == 1
            key = task.batch_key()
            if key is None:
                run: Job = partial(self._run, task)
            else:
                self._queue.add(key, session, task, task.rows)
                run = partial(self._run_batch, key, session)
                run_here = run_here and not (self._waits_for_rows or is_brief)
            job = partial(self._supervise, session, run)
            run_here = run_here and task.bundle.runs_briefly(task.part, task.input_bytes)
            task.is_brief = run_here and is_brief
            wait_s = _BRIEF_WAIT_S if is_brief else 0.0
            if not (run_here and self._workers.run_here(session.turn, job, wait_s)):
                task.is_brief = False
                self._workers.submit(session.turn, job)

    def _supervise(self, session: SessionState, job: Job) -> None:
        """Do a job; if it raises, end the session, as a message of it may be lost."""
        try:
            job()
        except BaseException as error:  # noqa: BLE001  the worker serves other sessions, too
            self._observer.broke(session.number, error)
            with session.lock:
                self.apply(session, session.protocol.close(_unexpected("the session", error)))
            self.drop(session)

    def _run_batch(self, key: BatchKey, session: SessionState) -> None:
        """Run a session's oldest task of a key with those of other sessions in one call.

        If the call fails, each task runs alone. If none fails alone, the part cannot take that many
        rows, and its frames run alone from then on.
        """
        digest, part, _ = key
        tasks = self._queue.take(key, session, partial(self._sessions_on, digest))
        needed = [task for task in tasks if not task.stopped]
        failure = None
        free_bytes = self._memory.limit_bytes - self._memory.held_bytes
        if len(needed) > 1 and self._joined_bytes(needed) <= free_bytes:
            failure = self._run_together(needed)
            if failure is None:
                tasks = [task for task in tasks if task not in needed]
        succeeded = []
        for task in tasks:
            self._observer.batched(task.rows)
            succeeded.append(self._run(task, batch_failed=failure is not None))
        if failure is not None and all(succeeded):
            needed[0].bundle.alone[part] = str(failure)
            self._observer.batching(digest, part, str(failure))

    def _padding(self, tasks: Sequence[SegmentTask]) -> int:
        """Rows to add to a batch, where the part's batches all have the same number of rows."""
        is_padded = tasks[0].part in tasks[0].bundle.padded
        return self._batch_rows - sum(task.rows for task in tasks) if is_padded else 0

    def _joined_bytes(self, tasks: Sequence[SegmentTask]) -> int:
        """Bytes of the inputs of a batch, its padding included."""
        rows = sum(task.rows for task in tasks)
        size_bytes = sum(task.input_bytes for task in tasks)
        return size_bytes * (rows + self._padding(tasks)) // rows

    def _run_together(self, tasks: Sequence[SegmentTask]) -> OffloadError | None:
        """Run several tasks in one call; the error if that fails."""
        part, loaded = tasks[0].part, tasks[0].bundle
        reservation = self._memory.reserve(lambda: None)
        start_s = time.monotonic()
        try:
            engine = loaded.padded.get(part, loaded.engines[part])
            batch = Batch(engine.prepare(self._max_run_s), tasks, self._padding(tasks))
            reservation.hold(self._joined_bytes(tasks), idle=False)
            outputs = batch.run()
        except BaseException as error:  # noqa: BLE001  each of them is run alone then
            return _for_device(part, error)
        finally:
            reservation.hold(0)
        end_s = time.monotonic()
        self._observer.batched(sum(task.rows for task in tasks))
        for task, arrays in zip(tasks, outputs, strict=True):
            self._finish(task, arrays, start_s, end_s)
        return None

    def _run(self, task: SegmentTask, *, batch_failed: bool = False) -> bool:
        """Run a segment alone, perhaps after its batch failed; True if it succeeded."""
        start_s = time.monotonic()
        try:
            if task.is_brief:
                task.call.deadline_s = min(self._max_run_s, _BRIEF_S)
            arrays = task.call.run(task.run.segment.outputs, task.run.feeds)
        except BaseException as error:  # noqa: BLE001  it fails the frame, not the worker
            if task.is_brief and isinstance(error, DeadlineError) and not task.stopped:
                self._run_again(task)
                return False
            if batch_failed and not task.stopped:
                task.session.runs_alone = True
            self._fail(task, error)
            return False
        end_s = time.monotonic()
        task.bundle.last_runs[task.part] = task.input_bytes, end_s - start_s
        self._finish(task, arrays, start_s, end_s)
        return True

    def _run_again(self, task: SegmentTask) -> None:
        """Queue a segment for the workers after its run on the polling thread was stopped."""
        task.bundle.last_runs[task.part] = 0, _BRIEF_S
        task.is_brief = False
        task.call = task.bundle.engines[task.part].prepare(self._max_run_s)
        if task.stopped:  # perhaps just now, which stopped the call before
            task.call.stop()
        job = partial(self._supervise, task.session, partial(self._run, task))
        self._workers.submit(task.session.turn, job)

    def _finish(
        self, task: SegmentTask, values: Sequence[Any], start_s: float, end_s: float
    ) -> None:
        session = task.session
        self._observer.computed(start_s - task.ready_s, end_s - start_s)
        outputs = dict(zip(task.run.segment.outputs, values, strict=True))
        with session.lock:
            try:
                events = session.protocol.finished(task.run, outputs, start_s, end_s)
            except BaseException as error:  # noqa: BLE001  it fails the frame, not the worker
                self._fail(task, error)
                return
            more = self.apply(session, events)
            session.forget(task)
        self.start(session, more)

    def _fail(self, task: SegmentTask, error: BaseException) -> None:
        session = task.session
        if not isinstance(error, OffloadError):
            self._observer.broke(session.number, error)
        reported = _for_device(task.part, error)
        with session.lock:
            events = session.protocol.failed(task.run, reported)
            if events:
                self._observer.failed(session.number, reported)
            more = self.apply(session, events)
            session.forget(task)
        self.start(session, more)


def _for_device(part: str, error: BaseException) -> OffloadError:
    """The error that the device gets for an error of a segment."""
    return error if isinstance(error, OffloadError) else _unexpected(part, error)


def _unexpected(what: str, error: BaseException) -> ServerError:
    text = " ".join(str(error).split())[:200]
    cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ServerError(f"{what} failed on the server ({cause}): see the server's log")
