"""Worker threads that serve sessions in turn, so that a busy one can't starve the others."""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

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
