"""The device's own work: engines for segments, at this machine's pace or a slower one's."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from offload.bundle.bundle import Bundle, ModelValue
from offload.costs.encodings import RAW, encoding
from offload.errors import DeadlineError, InputError
from offload.planning.plan import Segment, Send
from offload.scheduling.timeline import Lane

from offload_runtimes.device.inference import FrameTensors
from offload_runtimes.emulate import Pacer
from offload_runtimes.engine import Array, Engine, EngineOptions, load
from offload_runtimes.protocol.messages import PackedTensor, pack

_COLD_RUNS = 2
_WARM_RUNS = 3
_ENOUGH_S = 0.5
_LEARN_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class SendNames:
    """A tensor to send, its names looked up once.

    Attributes:
        wire: what it is called while it crosses.
        codec: what encodes its bytes.
        guard: the scalar that is no finite number where it must not cross; None: none.
        send: what the plan says of it.
    """

    wire: str
    codec: str
    guard: str | None
    send: Send

    @classmethod
    def of(cls, send: Send) -> "SendNames":
        """What to do for a send of a plan."""
        return cls(send.wire, encoding(send.encoding).codec, send.guard, send)


class SegmentExecutor:
    """Loads segments and runs them on the tensors of an inference."""

    def __init__(self, bundle: Bundle, options: EngineOptions, pacer: Pacer) -> None:
        """Nothing is loaded yet; `pacer` makes every run take longer, if it is to."""
        self._bundle = bundle
        self._options = options
        self._pacer = pacer
        self._contents = {file.name: file.sha256 for file in bundle.files}
        self._loading = threading.Lock()
        self._engines: dict[str, Engine] = {}
        self._loads: dict[tuple[Segment, ...], Future[None]] = {}
        self._busy = 0  # runs and loads under way
        self._idle = threading.Condition()

    def load(self, segments: Iterable[Segment]) -> None:
        """Load and warm the engines of segments; those already loaded stay.

        Raises:
            InputError: onnxruntime refuses one.
        """
        with self._working(), self._loading:
            for segment in segments:
                if segment.part not in self._engines:
                    engine = load(self._bundle.segment_path(segment.part), self._options)
                    self._engines[segment.part] = engine
                    feeds = engine.zeros()
                    if feeds is not None:
                        with contextlib.suppress(InputError, DeadlineError):
                            self._learn(segment, feeds)

    def load_in_background(self, segments: Iterable[Segment]) -> "Future[None] | None":
        """Load engines on a thread of its own; None when all are loaded.

        The future raises InputError when onnxruntime refuses one.
        """
        missing = tuple(s for s in segments if s.part not in self._engines)
        if not missing:
            return None
        with self._idle:
            loading = self._loads.get(missing)
            if loading is None:
                loading = self._loads[missing] = Future()
                work = partial(self._load_then, missing, loading)
                threading.Thread(target=work, name="loading", daemon=True).start()
        return loading

    def _load_then(self, segments: tuple[Segment, ...], loading: "Future[None]") -> None:
        try:
            self.load(segments)
        except BaseException as error:  # noqa: BLE001  raised where the future is asked
            loading.set_exception(error)
        else:
            loading.set_result(None)
        with self._idle:
            del self._loads[segments]

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until nothing is loaded or computed."""
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, timeout_s)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        with self._idle:
            self._busy += 1
        try:
            yield
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def values(self) -> dict[str, ModelValue]:
        """Type and shape of every tensor that the loaded segments take or make."""
        loaded = self._engines.values()
        return {v.name: v for engine in loaded for v in (*engine.outputs, *engine.inputs)}

    def run(
        self,
        segment: Segment,
        inference: FrameTensors,
        until_s: float | None = None,
        unless: Iterable[str] = (),
    ) -> None:
        """Wait for a segment's inputs, compute it and put its outputs in.

        Args:
            segment: a loaded segment.
            inference: where its inputs are and its outputs go.
            until_s: stop then, by `time.monotonic`.
            unless: stop when all these tensors are there.

        Raises:
            DeadlineError: it was stopped.
            OffloadError: its inputs will not come, it cannot be computed, or the inference was
                cancelled.
        """
        engine = self._engines[segment.part]
        feeds = inference.take(segment.inputs, until_s)
        given = filter(inference.is_here, self._bundle.defaults_of(segment.part))
        feeds.update(inference.take(given))
        content = self._content(segment)
        if self._pacer.slowdown > 1 and self._pacer.warm_s(content) is None:
            self._learn(segment, feeds)
        left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
        call = engine.prepare(left_s)
        if unless:
            inference.watch(unless, call.stop)
        start_s = time.monotonic()
        with self._working(), inference.computing(call.stop):
            arrays = call.run(segment.outputs, feeds)
        self._pacer.learn(content, time.monotonic() - start_s)
        self._pacer.pace(content, start_s)
        inference.note(Lane.DEVICE, segment.id, start_s, time.monotonic())
        inference.put(dict(zip(segment.outputs, arrays, strict=True)))

    def pack(self, outgoing: SendNames, inference: FrameTensors) -> PackedTensor:
        """Encode a tensor that is here for its way up, at this device's pace.

        Raises:
            InputError: it holds NaN or infinity, and its encoding has no place for them.
            OffloadError: it will not come.
        """
        codec, guard, send = outgoing.codec, outgoing.guard, outgoing.send
        (array,) = inference.take((outgoing.wire,)).values()
        if guard is not None and not np.isfinite(inference.take((guard,))[guard]):
            raise InputError(
                f"tensor {send.tensor!r} holds NaN or infinity, which {send.encoding} cannot"
                " carry: split the model again with --encoding lossless"
            )
        if codec == RAW.codec:
            return pack(array, codec)
        start_s, own_s = time.monotonic(), time.thread_time()
        packed = pack(array, codec)
        name = f"encode {outgoing.wire}"
        self._pacer.learn(name, time.thread_time() - own_s)
        self._pacer.pace(name, start_s)
        inference.note(Lane.DEVICE, name, start_s, time.monotonic())
        return packed

    def estimate_s(self, segments: Iterable[Segment]) -> float | None:
        """What segments usually take here, one after another; None if one was never run."""
        known = [self._pacer.warm_s(self._content(segment)) for segment in segments]
        if any(seconds is None for seconds in known):
            return None
        return self._pacer.slowdown * sum(seconds or 0.0 for seconds in known)

    def rehearse(self, segments: Iterable[Segment], feeds: Mapping[str, Array]) -> float:
        """Run loaded segments one after another on a model's inputs, to learn their pace.

        Those that need something from the server are left out. Gives the seconds they took.
        """
        tensors, took_s = dict(feeds), 0.0
        for segment in segments:
            names = (*segment.inputs, *self._bundle.defaults_of(segment.part))
            needed = {name: tensors[name] for name in names if name in tensors}
            if not needed.keys() >= set(segment.inputs):
                continue
            start_s = time.monotonic()
            arrays = self._engines[segment.part].run(segment.outputs, needed)
            own_s = time.monotonic() - start_s
            self._pacer.learn(self._content(segment), own_s)
            took_s += own_s
            tensors.update(zip(segment.outputs, arrays, strict=True))
        return took_s

    def _content(self, segment: Segment) -> str:
        """What a segment computes, the same name in every bundle."""
        return self._contents[segment.file]

    def _learn(self, segment: Segment, feeds: Mapping[str, Array]) -> None:
        """Find out the segment's warm duration; slow segments are run less often."""
        began_s = time.monotonic()
        for number in range(_COLD_RUNS + _WARM_RUNS):
            start_s = time.monotonic()
            self._engines[segment.part].run(segment.outputs, feeds, _LEARN_LIMIT_S)
            end_s = time.monotonic()
            if number >= _COLD_RUNS or end_s - began_s > _ENOUGH_S:
                self._pacer.learn(self._content(segment), end_s - start_s)
            if end_s - began_s > _ENOUGH_S and number:
                return
