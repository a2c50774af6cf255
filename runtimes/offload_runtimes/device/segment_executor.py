"""Run the device's segments on the tensors of one frame, and encode tensors for the server."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle, ModelValue
from offload.costs.encodings import RAW, encoding
from offload.errors import DeadlineError, InputError, OffloadError
from offload.planning.plan import Segment, Send
from offload.scheduling.timeline import Lane, Span, Timeline

from offload_runtimes.engine import Array, Call, Engine, EngineOptions, load
from offload_runtimes.protocol.messages import PackedTensor, pack

_COLD_RUNS = 2
_WARM_RUNS = 3
_WARM_UP_S = 0.5  # no further warm-up runs after this time
_WARM_UP_RUN_S = 60.0  # limit of one warm-up run


class FrameTensors:
    """The tensors of one frame: some threads put them in, others wait for them.

    Attributes:
        started_s: when the frame began, by `time.monotonic`.
        plan: index of the bundle's plan that the frame follows.
        rows: of a micro-batch; 0: it is not one.
        number: the frame's number in the session with the server; 0 before it has one.
        uploads: when each tensor was sent to the server, by `time.monotonic`, and its bytes.
        cancelled: why the frame was cancelled; empty if it was not.
    """

    def __init__(self, feeds: Mapping[str, Array], plan: int = 0, rows: int = 0) -> None:
        self.started_s = time.monotonic()
        self.plan = plan
        self.rows = rows
        self.number = 0
        self.uploads: dict[str, tuple[float, int]] = {}
        self.cancelled = ""
        self._stops: set[Callable[[], None]] = set()
        self._tensors = dict(feeds)
        self._error: OffloadError | None = None
        self._spans: list[tuple[Lane, str, float, float]] = []
        self._watchers: list[tuple[tuple[str, ...], Callable[[], None]]] = []
        self._waiting = 0
        self._lock = threading.Lock()  # not the Condition's RLock, which takes twice the time
        self._changed = threading.Condition(self._lock)

    def put(self, arrays: Mapping[str, Array]) -> None:
        """Add tensors; those that are already there are kept."""
        with self._lock:
            self._tensors = {**arrays, **self._tensors}
            if self._waiting:
                self._changed.notify_all()
            due = [call for names, call in self._watchers if self.has(names)]
        for call in due:
            call()

    def watch(self, names: Iterable[str], call: Callable[[], None]) -> None:
        """Call a function when all these tensors are available; at once if they are."""
        watcher = (tuple(names), call)
        with self._lock:
            self._watchers.append(watcher)
            complete = self.has(watcher[0])
        if complete:
            call()

    def fail(self, error: OffloadError) -> None:
        """Make everyone who waits for missing tensors raise this error."""
        with self._lock:
            self._error = self._error or error
            self._changed.notify_all()

    def forget_failure(self) -> None:
        """Let the frame go on with the next server, from the tensors that are available."""
        with self._lock:
            self._error = None
            self.uploads = {}

    def cancel(self, why: str) -> None:
        """Stop computations for the frame; threads that wait for its tensors get an InputError."""
        with self._lock:
            self.cancelled = self.cancelled or why
            stops = tuple(self._stops)
            self._changed.notify_all()
        for stop in stops:
            stop()

    def begin_computing(self, stop: Callable[[], None]) -> None:
        """Register `stop`, which is called if the frame is cancelled before `end_computing`.

        Raises:
            InputError: the frame was cancelled before.
        """
        with self._lock:
            if self.cancelled:
                raise InputError(self.cancelled)
            self._stops.add(stop)

    def end_computing(self, stop: Callable[[], None]) -> None:
        """Unregister `stop` after its computation has ended."""
        with self._lock:
            self._stops.discard(stop)

    def has(self, names: Iterable[str]) -> bool:
        """Whether all these tensors are available."""
        return all(map(self._tensors.__contains__, names))

    def is_here(self, name: str) -> bool:
        """Whether a tensor is available."""
        return name in self._tensors

    def take(self, names: Iterable[str], until_s: float | None = None) -> dict[str, Array]:
        """Wait for tensors and return them.

        Args:
            names: the tensors.
            until_s: give up then, by `time.monotonic`.

        Raises:
            DeadlineError: the time is over.
            OffloadError: the frame failed or was cancelled while tensors were missing.
        """
        requested = tuple(names)
        if not self.has(requested):
            with self._lock:
                self._wait(lambda: self.has(requested), until_s, raise_failure=True)
        tensors = self._tensors
        return {name: tensors[name] for name in requested}

    def wait_for(self, ready: Callable[[], bool], until_s: float | None) -> None:
        """Wait until `ready()`, which is called again for every new tensor and after `wake`.

        Raises:
            DeadlineError: the time is over.
            InputError: the frame was cancelled.
        """
        with self._lock:
            self._wait(ready, until_s, raise_failure=False)

    def wake(self) -> None:
        """Let the threads in `wait_for` check again."""
        with self._lock:
            self._changed.notify_all()

    def _wait(
        self, ready: Callable[[], bool], until_s: float | None, *, raise_failure: bool
    ) -> None:
        self._waiting += 1
        try:
            while not ready():
                if self.cancelled:
                    raise InputError(self.cancelled)
                if raise_failure and self._error is not None:
                    raise self._error
                left_s = None if until_s is None else until_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise DeadlineError("the answer did not come within the time allowed")
                self._changed.wait(left_s)
        finally:
            self._waiting -= 1

    def record(self, lane: Lane, name: str, start_s: float, end_s: float) -> None:
        """Add a span to the frame's timeline, in seconds by `time.monotonic`."""
        self._spans.append((lane, name, start_s, end_s))

    def timeline(self) -> Timeline:
        """The spans recorded so far, in seconds after the frame began."""
        began_s = self.started_s
        return Timeline.of(
            Span(lane, name, start_s - began_s, end_s - began_s)
            for lane, name, start_s, end_s in tuple(self._spans)
        )


class WarmRunTimes:
    """Durations of the last warm runs of each piece of work, by a key for its content."""

    WINDOW = 15

    def __init__(self) -> None:
        self._durations: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def add(self, key: str, duration_s: float) -> None:
        """Record how long a warm run took."""
        with self._lock:
            durations = self._durations.setdefault(key, [])
            durations.append(duration_s)
            del durations[: -self.WINDOW]

    def median_s(self, key: str) -> float | None:
        """Median duration of the last runs; None if there was none."""
        with self._lock:
            durations = self._durations.get(key)
            return sorted(durations)[len(durations) // 2] if durations else None


class _Working:
    """Counts the runs and loads in progress; use it in a `with` statement for each.

    A class, as a generator's block takes several times as long to enter and leave.
    """

    def __init__(self, idle: threading.Condition) -> None:
        self.count = 0
        self._idle = idle

    def __enter__(self) -> None:
        with self._idle:
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._idle:
            self.count -= 1
            if not self.count:
                self._idle.notify_all()


class SegmentExecutor:
    """Loads segments and runs them on the tensors of a frame."""

    def __init__(
        self, bundle: Bundle, options: EngineOptions, run_times: WarmRunTimes | None = None
    ) -> None:
        """Nothing is loaded yet; run times are recorded in `run_times`."""
        self._bundle = bundle
        self._options = options
        self._run_times = run_times or WarmRunTimes()
        self._digests = {file.name: file.sha256 for file in bundle.files}
        self._loading = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._loads: dict[tuple[Segment, ...], Future[None]] = {}
        self._idle = threading.Condition()
        self._working = _Working(self._idle)

    def load(self, segments: Iterable[Segment]) -> None:
        """Load and warm the engines of segments; loaded ones stay.

        Raises:
            InputError: onnxruntime refuses one.
        """
        with self._working, self._loading:
            for segment in segments:
                if segment.part not in self._engines:
                    engine = load(self._bundle.segment_path(segment.part), self._options)
                    self._engines[segment.part] = engine
                    feeds = engine.zeros()
                    if feeds is not None:
                        with contextlib.suppress(InputError, DeadlineError):
                            self.warm_up(segment, feeds)

    def load_in_background(self, segments: Iterable[Segment]) -> "Future[None] | None":
        """Load engines on another thread; None if all are loaded.

        The future raises InputError if onnxruntime refuses one.
        """
        missing = tuple(s for s in segments if s.part not in self._engines)
        if not missing:
            return None

        def work(loading: "Future[None]") -> None:
            try:
                self.load(missing)
            except BaseException as error:  # noqa: BLE001  raised by loading.result()
                loading.set_exception(error)
            else:
                loading.set_result(None)
            with self._idle:
                del self._loads[missing]

        with self._idle:
            loading = self._loads.get(missing)
            if loading is None:
                loading = self._loads[missing] = Future()
                threading.Thread(target=work, args=(loading,), name="loading", daemon=True).start()
        return loading

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until nothing is being loaded or computed."""
        with self._idle:
            self._idle.wait_for(lambda: self._working.count == 0, timeout_s)

    def values(self) -> dict[str, ModelValue]:
        """Type and shape of the inputs and outputs of all loaded segments."""
        loaded = self._engines.values()
        return {v.name: v for engine in loaded for v in (*engine.outputs, *engine.inputs)}

    def run(
        self,
        segment: Segment,
        frame: FrameTensors,
        until_s: float | None = None,
        unless: Iterable[str] = (),
    ) -> float:
        """Wait for a segment's inputs, run it and add its outputs to the frame.

        Args:
            segment: a loaded segment.
            frame: the frame.
            until_s: stop then, by `time.monotonic`.
            unless: stop when all these tensors are available.

        Returns:
            The seconds of the run.

        Raises:
            DeadlineError: it was stopped.
            OffloadError: its inputs will not come, it cannot be computed, or the frame was
                cancelled.
        """
        engine = self._engines[segment.part]
        feeds = self._feeds(segment, frame, until_s)
        call = engine.prepare(None if until_s is None else max(until_s - time.monotonic(), 0.0))
        if unless:
            frame.watch(unless, call.stop)
        start_s = time.monotonic()
        with self._working:
            frame.begin_computing(call.stop)
            try:
                arrays = self.compute(segment, call, feeds, frame.rows)
            finally:
                frame.end_computing(call.stop)
        end_s = time.monotonic()
        frame.record(Lane.DEVICE, segment.id, start_s, end_s)
        frame.put(dict(zip(segment.outputs, arrays, strict=True)))
        return end_s - start_s

    def _feeds(
        self, segment: Segment, frame: FrameTensors, until_s: float | None = None
    ) -> dict[str, Array]:
        """A segment's inputs, and its inputs with a default that the caller gave."""
        feeds = frame.take(segment.inputs, until_s)
        defaults = filter(frame.is_here, self._bundle.defaults_of(segment.part))
        feeds.update(frame.take(defaults))
        return feeds

    def compute(
        self, segment: Segment, call: Call, feeds: Mapping[str, Array], rows: int
    ) -> list[Array]:
        """Run a segment and record its run time, of micro-batches by their rows."""
        start_s = time.monotonic()
        arrays = call.run(segment.outputs, feeds)
        self._run_times.add(self._key(segment, rows), time.monotonic() - start_s)
        return arrays

    def pack(self, send: Send, frame: FrameTensors) -> PackedTensor:
        """Encode a tensor of the frame for the server.

        Raises:
            InputError: it holds NaN or infinity, and its encoding cannot represent them.
            OffloadError: it will not come.
        """
        wire, guard = send.wire, send.guard
        array = frame.take((wire,))[wire]
        if guard is not None and not np.isfinite(frame.take((guard,))[guard]):
            raise InputError(
                f"tensor {send.tensor!r} holds NaN or infinity, which {send.encoding} cannot"
                " represent: split the model again with --encoding lossless"
            )
        if not send.is_encoded:
            return pack(array, RAW.codec)
        start_s = time.monotonic()
        packed = self.encode(send, array)
        frame.record(Lane.DEVICE, f"encode {wire}", start_s, time.monotonic())
        return packed

    def encode(self, send: Send, array: Any) -> PackedTensor:
        """Encode a tensor with its codec."""
        return pack(array, encoding(send.encoding).codec)

    def probe_s(self, segment: Segment) -> float | None:
        """Run a segment on zeros, and return its seconds.

        None: it is not loaded, its inputs have no fixed shapes, or it does not take zeros.
        """
        engine = self._engines.get(segment.part)
        feeds = engine.zeros() if engine else None
        if engine is None or feeds is None:
            return None
        start_s = time.monotonic()
        try:
            with self._working:
                self.compute(segment, engine.prepare(_WARM_UP_RUN_S), feeds, 0)
        except (InputError, DeadlineError):
            return None
        return time.monotonic() - start_s

    def estimate_s(self, segments: Iterable[Segment], rows: int = 0) -> float | None:
        """Usual time of several segments, one after another; None if one was never run here.

        `rows`: of a micro-batch; 0: it is not one.
        """
        total_s = 0.0
        for segment in segments:
            median_s = self._run_times.median_s(self._key(segment, rows))
            if median_s is None:
                return None
            total_s += median_s
        return total_s

    def rehearse(
        self, segments: Iterable[Segment], feeds: Mapping[str, Array], rows: int = 0
    ) -> float:
        """Run loaded segments one after another on a model's inputs, to learn their run times.

        `rows`: of a micro-batch; 0: it is not one. Segments that need a tensor from the
        server are left out. Returns the seconds of the runs.
        """
        frame, total_s = FrameTensors(feeds), 0.0
        for segment in segments:
            if not frame.has(segment.inputs):
                continue
            inputs = self._feeds(segment, frame)
            start_s = time.monotonic()
            arrays = self._engines[segment.part].run(segment.outputs, inputs)
            duration_s = time.monotonic() - start_s
            self._run_times.add(self._key(segment, rows), duration_s)
            total_s += duration_s
            frame.put(dict(zip(segment.outputs, arrays, strict=True)))
        return total_s

    def warm_up(self, segment: Segment, feeds: Mapping[str, Array], rows: int = 0) -> None:
        """Run a segment a few times to learn its warm run time; slow segments less often."""
        began_s = time.monotonic()
        for number in range(_COLD_RUNS + _WARM_RUNS):
            start_s = time.monotonic()
            self._engines[segment.part].run(segment.outputs, feeds, _WARM_UP_RUN_S)
            end_s = time.monotonic()
            is_slow = end_s - began_s > _WARM_UP_S
            if number >= _COLD_RUNS or is_slow:
                self._run_times.add(self._key(segment, rows), end_s - start_s)
            if is_slow and number:
                return

    def _key(self, segment: Segment, rows: int = 0) -> str:
        """Digest of the segment's file: equal for equal segments of several bundles."""
        digest = self._digests[segment.file]
        return f"{digest} {rows} rows" if rows else digest
