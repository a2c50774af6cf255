"""One inference on the device: its tensors as they come to be, and when everything happened."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from offload.errors import DeadlineError, InputError, OffloadError
from offload.scheduling.timeline import Lane, Span, Timeline

from offload_runtimes.engine import Array


class FrameTensors:
    """The tensors of one frame; threads put them in, others wait for them.

    Attributes:
        started_s: when it began, by `time.monotonic`.
        plan: which of the bundle's plans it follows.
        number: the frame's number in the session with the server; 0 before it has one.
        cancelled: why nobody waits for its outputs any more; empty: somebody does.
    """

    def __init__(self, feeds: Mapping[str, Array], plan: int = 0) -> None:
        self.started_s = time.monotonic()
        self.plan = plan
        self.number = 0
        self.cancelled = ""
        self._stops: set[Callable[[], None]] = set()
        self._tensors = dict(feeds)
        self._error: OffloadError | None = None
        self._spans: list[tuple[Lane, str, float, float]] = []
        self._watchers: list[tuple[tuple[str, ...], Callable[[], None]]] = []
        self._waiting = 0
        self._lock = threading.Lock()  # entered many times a frame: a Condition would cost twice
        self._changed = threading.Condition(self._lock)

    def put(self, arrays: Mapping[str, Array]) -> None:
        """Add tensors; the first of a name stays."""
        with self._lock:
            self._tensors = {**arrays, **self._tensors}
            if self._waiting:
                self._changed.notify_all()
            due = [call for names, call in self._watchers if self.has(names)]
        for call in due:
            call()

    def watch(self, names: Iterable[str], call: Callable[[], None]) -> None:
        """Call a function when all these tensors are here, at once if they are."""
        entry = (tuple(names), call)
        with self._lock:
            self._watchers.append(entry)
            complete = self.has(entry[0])
        if complete:
            call()

    def fail(self, error: OffloadError) -> None:
        """Let everyone who waits raise this error."""
        with self._lock:
            self._error = self._error or error
            self._changed.notify_all()

    def cancel(self, why: str) -> None:
        """Stop what is computed for it; who waits for its tensors gets an InputError."""
        with self._lock:
            self.cancelled = self.cancelled or why
            stops = tuple(self._stops)
            self._changed.notify_all()
        for stop in stops:
            stop()

    @contextlib.contextmanager
    def computing(self, stop: Callable[[], None]) -> Iterator[None]:
        """While something is computed for it that `stop` ends early.

        Raises:
            InputError: it was cancelled before.
        """
        with self._lock:
            if self.cancelled:
                raise InputError(self.cancelled)
            self._stops.add(stop)
        try:
            yield
        finally:
            with self._lock:
                self._stops.discard(stop)

    def is_here(self, name: str) -> bool:
        """Whether a tensor is here."""
        return name in self._tensors

    def has(self, names: Iterable[str]) -> bool:
        """Whether all these tensors are here."""
        return all(map(self._tensors.__contains__, names))

    def take(self, names: Iterable[str], until_s: float | None = None) -> dict[str, Array]:
        """Wait for tensors and give them.

        Args:
            names: the tensors.
            until_s: give up then, by `time.monotonic`.

        Raises:
            DeadlineError: the time is over.
            OffloadError: the inference failed while tensors were missing.
        """
        wanted = tuple(names)
        if not self.has(wanted):
            self._wait(wanted, until_s)
        tensors = self._tensors
        return {name: tensors[name] for name in wanted}

    def wait_for(self, ready: Callable[[], bool], until_s: float | None) -> None:
        """Wait until `ready`, which is asked again whenever a tensor comes and after `wake`.

        Raises:
            DeadlineError: the time is over.
            InputError: the inference was cancelled.
        """
        with self._lock:
            self._await(ready, until_s, lambda: None)

    def wake(self) -> None:
        """Let those who wait look again."""
        with self._lock:
            self._changed.notify_all()

    def _wait(self, wanted: tuple[str, ...], until_s: float | None) -> None:
        with self._lock:
            self._await(lambda: self.has(wanted), until_s, lambda: self._error)

    def _await(
        self,
        ready: Callable[[], bool],
        until_s: float | None,
        error: Callable[[], OffloadError | None],
    ) -> None:
        self._waiting += 1
        try:
            while not ready():
                if self.cancelled:
                    raise InputError(self.cancelled)
                if (why := error()) is not None:
                    raise why
                left_s = None if until_s is None else until_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise DeadlineError("the answer did not come within the time allowed")
                self._changed.wait(left_s)
        finally:
            self._waiting -= 1

    def note(self, lane: Lane, name: str, start_s: float, end_s: float) -> None:
        """Record what happened, in seconds by `time.monotonic`."""
        self._spans.append((lane, name, start_s, end_s))

    def timeline(self) -> Timeline:
        """What was recorded so far."""
        began_s = self.started_s
        return Timeline.of(
            Span(lane, name, start_s - began_s, end_s - began_s)
            for lane, name, start_s, end_s in tuple(self._spans)
        )
