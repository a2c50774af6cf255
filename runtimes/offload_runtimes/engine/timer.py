"""One thread that calls functions at given times: the deadlines of runs."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST_CANCELLED = 64


@dataclass(slots=True)
class _Timer:
    call: Callable[[], None] | None


class TimerThread:
    """Calls short functions at given times, on a thread of its own.

    Starting a thread for every deadline costs 0.1 ms; this thread is started once, at the first
    use. Times are `time.monotonic` seconds; functions due together run in order of setting.
    """

    def __init__(self) -> None:
        # By time, then by number: timers set earlier come first.
        self._entries: list[tuple[float, int, _Timer]] = []
        self._cancelled = 0
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def at(self, due_s: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call a function at a time; returns a function that cancels the call."""
        with self._lock:
            timer = _Timer(call)
            entry = due_s, next(self._numbers), timer
            heapq.heappush(self._entries, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="alarm", daemon=True)
                self._thread.start()
            if self._entries[0] is entry:  # else the thread wakes in time anyway
                self._changed.notify()

        def cancel() -> None:
            with self._lock:
                timer.call = None
                self._cancelled += 1
                # Most deadlines are cancelled: without this they would pile up until they are due.
                if self._cancelled > max(_MOST_CANCELLED, len(self._entries) // 2):
                    self._entries = [each for each in self._entries if each[2].call is not None]
                    heapq.heapify(self._entries)
                    self._cancelled = 0

        return cancel

    def _run(self) -> None:
        while True:
            with self._lock:
                while (wait_s := self._wait_s()) != 0:
                    self._changed.wait(wait_s)
                call = heapq.heappop(self._entries)[2].call
            if call is not None:
                call()

    def _wait_s(self) -> float | None:
        """Seconds until a call is due; None: there is none.

        Removes cancelled calls before they are due, so that the thread does not wake for each.
        """
        while self._entries and self._entries[0][2].call is None:
            heapq.heappop(self._entries)
            self._cancelled -= 1
        return max(self._entries[0][0] - time.monotonic(), 0.0) if self._entries else None


ALARM = TimerThread()
