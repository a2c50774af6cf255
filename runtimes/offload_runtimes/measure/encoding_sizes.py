"""Measure what each tensor takes under each encoding, and cache it."""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from offload.bundle.boundary_ops import identity_model
from offload.bundle.engine_input import whole_input
from offload.costs.encoding_table import HALF_LIMIT, EncodedSize, EncodingTable
from offload.costs.encodings import ENCODINGS, RAW, Encoding, TensorFormat
from offload.costs.quantization import Affine, Bounds
from offload.errors import InputError
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.planning.plan import Send
from offload.records import read_object

from offload_runtimes.engine import Array, EngineOptions, load
from offload_runtimes.measure import Progress
from offload_runtimes.measure.cache import cached, feeds_digest
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.inner_tensors import inner_tensors
from offload_runtimes.measure.profile import machine_name
from offload_runtimes.protocol.codecs import codec, has_pictures, reference_s, suits

# What is smaller costs the link next to nothing, encoded or not.
LEAST_BYTES = 256
_WHOLE_RUNS = 3
_REFERENCE_SHAPE = (1, 16, 128, 128)  # 1 MiB of float


def measure_encodings(
    model: Model,
    graph: Graph,
    calibration: Calibration,
    allowed: Iterable[Encoding],
    options: EngineOptions,
    types: Mapping[str, Tensor] | None = None,
    progress: Progress = lambda _: None,
) -> EncodingTable:
    """Run the model on the calibration inputs and encode all that could cross.

    Whole numbers and truth values are only compressed; so is what was not finite, or constant
    at 0, and tensors of less than 256 bytes cross as they are. Two passes over the inputs where
    a range is needed for quantisation, else one. O(inputs x bytes of all tensors).

    Args:
        model: from a file.
        graph: its layers.
        calibration: the inputs.
        allowed: encodings to measure.
        options: how onnxruntime runs.
        types: types of tensors that shape inference can't follow.
        progress: called with a phrase before each step.

    Raises:
        InputError: the model refuses an input.
    """
    wanted = [encoding for encoding in allowed if encoding is not RAW]
    if any(encoding.is_picture for encoding in wanted) and not has_pictures():
        raise InputError("png and jpeg need Pillow: pip install 'pillow>=10.1'")
    names = [n for n in (*graph.inputs, *graph.producer) if _may_change(graph.tensors[n])]
    survey = EncodingSurvey.of(wanted)
    if any(encoding.form is not TensorFormat.PLAIN for encoding in wanted):
        progress("finding the range of every tensor")
        for values in _values(model, graph, names, calibration, options, types or {}):
            survey.bound(values)
    if wanted:
        progress("encoding every tensor")
        for values in _values(model, graph, names, calibration, options, types or {}):
            survey.encode(values)
    whole_s = _whole_s(model, calibration, options)
    return EncodingTable(survey.entries(), reference_s(), whole_s, len(calibration.feeds))


def _may_change(tensor: Tensor) -> bool:
    return tensor.dtype not in (None, "string") and (tensor.size_bytes or 0) >= LEAST_BYTES


def _whole_s(model: Model, calibration: Calibration, options: EngineOptions) -> float:
    engine, seconds = load(whole_input(model), options), []
    for _ in range(_WHOLE_RUNS):
        start_s = time.perf_counter()
        engine.run(None, calibration.feeds[0])
        seconds.append(time.perf_counter() - start_s)
    return min(seconds)


def _values(
    model: Model,
    graph: Graph,
    names: Sequence[str],
    calibration: Calibration,
    options: EngineOptions,
    types: Mapping[str, Tensor],
) -> Iterator[Mapping[str, Array]]:
    """The tensors of each input, some at a time."""
    given = [name for name in names if name in graph.inputs]
    for feeds in calibration.feeds:
        yield {name: feeds[name] for name in given}
    made = [name for name in names if name in graph.producer]
    yield from inner_tensors(model, graph, made, calibration.feeds, options, types)


@dataclass
class _EncodingSamples:
    """One tensor under one encoding so far."""

    sizes: list[int] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)


@dataclass
class EncodingSurvey:
    """What was seen of all tensors.

    Attributes:
        wanted: encodings to try.
        seconds: per form, seconds per byte of a float tensor to encode and to decode.
    """

    wanted: Sequence[Encoding]
    seconds: Mapping[TensorFormat, tuple[float, float]]
    bounds: dict[str, Bounds] = field(default_factory=dict)
    seen: dict[tuple[str, str], _EncodingSamples] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: Sequence[Encoding]) -> "EncodingSurvey":
        """An empty one; times the forms' nodes."""
        forms = dict.fromkeys(encoding.form for encoding in wanted)
        return cls(wanted, {form: form_seconds(form) for form in forms})

    def bound(self, values: Mapping[str, Array]) -> None:
        """Learn the range of float tensors."""
        for name, array in values.items():
            if array.dtype == np.float32:
                found = Bounds.of(array)
                known = self.bounds.get(name)
                self.bounds[name] = known.joined(found) if known else found

    def encode(self, values: Mapping[str, Array]) -> None:
        """Encode tensors every way that suits them."""
        for name, array in values.items():
            for form in self.seconds:
                changed = changed_to(form, array, self.bounds.get(name))
                if changed is not None:
                    self._compress(name, form, array.nbytes, np.ascontiguousarray(changed))

    def _compress(self, name: str, form: TensorFormat, raw_bytes: int, changed: Array) -> None:
        data = changed.reshape(-1).view(np.uint8).data
        costs = [seconds * raw_bytes for seconds in self.seconds[form]]
        for encoding in (e for e in self.wanted if e.form is form):
            if not suits(encoding.codec, changed.dtype.name, changed.shape):
                continue
            seen = self.seen.setdefault((name, encoding.name), _EncodingSamples())
            # One thread's own time: what else the machine does is not the encoding's cost.
            tool, start_s = codec(encoding.codec), time.thread_time()
            packed = tool.encode(data, changed.shape)
            packed_s = time.thread_time()
            tool.decode(packed, len(data), changed.shape)
            end_s = time.thread_time()
            seen.sizes.append(len(packed))
            del packed  # the next encoding needs room of the same size
            seen.encode_s.append(costs[0] + packed_s - start_s)
            seen.decode_s.append(costs[1] + end_s - packed_s)

    def entries(self) -> dict[str, tuple[EncodedSize, ...]]:
        """By tensor, its encodings."""
        found: dict[str, list[EncodedSize]] = {}
        for (name, key), seen in self.seen.items():
            encoding = ENCODINGS[key]
            found.setdefault(name, []).append(
                EncodedSize(
                    encoding,
                    round(statistics.fmean(seen.sizes)),
                    round(float(np.quantile(seen.sizes, 0.95))),
                    statistics.median(seen.encode_s),
                    statistics.median(seen.decode_s),
                    affine_for(encoding.form, self.bounds.get(name)),
                )
            )
        return {name: tuple(each) for name, each in found.items()}


def affine_for(form: TensorFormat, bounds: Bounds | None) -> Affine | None:
    """Scale and zero point of a form; None where it needs none, or the values allow none."""
    return bounds.affine(form) if form.quantises and bounds else None


def changed_to(form: TensorFormat, array: Array, bounds: Bounds | None) -> Array | None:
    """A tensor in a form; None where it doesn't suit: not float, not finite, out of range."""
    if form is TensorFormat.PLAIN:
        return array
    if array.dtype != np.float32 or bounds is None or not array.size:
        return None
    if form is TensorFormat.HALF:
        return array.astype(np.float16) if bounds.magnitude <= HALF_LIMIT else None
    affine = affine_for(form, bounds)
    return None if affine is None else affine.quantised(array)


def form_seconds(form: TensorFormat) -> tuple[float, float]:
    """Seconds per byte of float that a form's nodes take here: to encode, to decode."""
    if form is TensorFormat.PLAIN:
        return 0.0, 0.0
    count = _REFERENCE_SHAPE[1] if form is TensorFormat.CHANNELS else 1
    affine = Affine((0.01,) * count, (0,) * count) if form.quantises else None
    name = next(each.name for each in ENCODINGS.values() if each.form is form)
    send = Send("t", None, name, affine=affine)
    engine = load(
        identity_model(send, _REFERENCE_SHAPE).SerializeToString(), EngineOptions(threads=1)
    )
    feeds = {"t": np.random.default_rng(0).random(_REFERENCE_SHAPE, np.float32)}
    first = [name for name in (send.wire, send.guard) if name is not None]
    encode_s = _best_s(lambda: engine.run(first, feeds))
    both_s = _best_s(lambda: engine.run([*first, "decoded"], feeds))
    size_bytes = feeds["t"].nbytes
    return encode_s / size_bytes, max(both_s - encode_s, 0.0) / size_bytes


def _best_s(call: Callable[[], object]) -> float:
    found = []
    for _ in range(7):
        start_s = time.thread_time()
        call()
        found.append(time.thread_time() - start_s)
    return min(found)


def cached_encodings(
    model: Model,
    graph: Graph,
    calibration: Calibration,
    allowed: Iterable[Encoding],
    options: EngineOptions,
    types: Mapping[str, Tensor] | None = None,
    progress: Progress = lambda _: None,
    *,
    again: bool = False,
) -> EncodingTable:
    """`measure_encodings`, cached by model, calibration, encodings and machine.

    With `again` it is measured even when a catalogue is there.
    """
    wanted = tuple(allowed)

    def measured() -> EncodingTable:
        return measure_encodings(model, graph, calibration, wanted, options, types, progress)

    path = encodings_cache_path(graph, calibration, wanted, options)
    return cached(path, _read, measured, again=again, progress=progress)


def _read(path: Path) -> EncodingTable:
    return EncodingTable.from_json(read_object(path, "catalogue", "offload split --again"))


def encodings_cache_path(
    graph: Graph, calibration: Calibration, allowed: Iterable[Encoding], options: EngineOptions
) -> Path:
    """The cache's file for a catalogue: one a model, calibration, set of encodings and machine."""
    asked = (machine_name(), options, sorted(graph.producer), sorted(e.name for e in allowed))
    data = hashlib.sha256((repr(asked) + feeds_digest(calibration.feeds)).encode())
    name = f"{graph.digest[:16]}-{data.hexdigest()[:16]}.json"
    return Path("encodings") / name
