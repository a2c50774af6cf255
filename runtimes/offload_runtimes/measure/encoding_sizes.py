"""Measure the size of each tensor under each encoding, and cache it."""

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
from offload_runtimes.measure.timing import machine_name
from offload_runtimes.protocol.codecs import codec, has_pictures, reference_s, suits

# Smaller tensors cost the link next to nothing, encoded or not.
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
    """Run the model on the calibration inputs and encode every tensor that could be sent.

    Integers and booleans are only compressed, as are tensors that were not finite or constant
    at 0; tensors of less than 256 bytes are not encoded. Two passes over the inputs where a range
    is needed for quantisation, else one. O(inputs x bytes of all tensors).

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
    encodings = [encoding for encoding in allowed if encoding is not RAW]
    if any(encoding.is_picture for encoding in encodings) and not has_pictures():
        raise InputError("png and jpeg need Pillow: pip install 'pillow>=10.1'")
    measurable = [
        name
        for name in (*graph.inputs, *graph.producer)
        if graph.tensors[name].dtype not in (None, "string")
        and (graph.tensors[name].size_bytes or 0) >= LEAST_BYTES
    ]
    inputs = [name for name in measurable if name in graph.inputs]
    inner = [name for name in measurable if name in graph.producer]

    def tensors() -> Iterator[Mapping[str, Array]]:
        """The tensors of each input, some at a time."""
        for feeds in calibration.feeds:
            yield {name: feeds[name] for name in inputs}
        yield from inner_tensors(model, graph, inner, calibration.feeds, options, types or {})

    survey = EncodingSurvey.of(encodings)
    if any(encoding.form is not TensorFormat.PLAIN for encoding in encodings):
        progress("finding the range of every tensor")
        for values in tensors():
            survey.bound(values)
    if encodings:
        progress("encoding every tensor")
        for values in tensors():
            survey.encode(values)
    engine, seconds = load(whole_input(model), options), []
    for _ in range(_WHOLE_RUNS):
        start_s = time.perf_counter()
        engine.run(None, calibration.feeds[0])
        seconds.append(time.perf_counter() - start_s)
    return EncodingTable(survey.entries(), reference_s(), min(seconds), len(calibration.feeds))


@dataclass
class EncodingSurvey:
    """Sizes and seconds of encoded tensors, collected over inputs.

    Attributes:
        encodings: to try.
        format_s: by format, seconds per byte of a float tensor to encode and to decode.
        bounds: range of each float tensor.
        samples: by tensor and encoding, bytes and seconds to encode and to decode, one an input.
    """

    encodings: Sequence[Encoding]
    format_s: Mapping[TensorFormat, tuple[float, float]]
    bounds: dict[str, Bounds] = field(default_factory=dict)
    samples: dict[tuple[str, str], list[tuple[int, float, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, encodings: Sequence[Encoding]) -> "EncodingSurvey":
        """An empty survey; times the nodes of each format."""
        for encoding in encodings:
            if encoding.is_picture:  # the first use imports Pillow: not the encoding's time
                tool, pixels, shape = codec(encoding.codec), bytes(8 * 8 * 3), (8, 8, 3)
                tool.decode(tool.encode(pixels, shape), len(pixels), shape)
        formats = dict.fromkeys(encoding.form for encoding in encodings)
        return cls(encodings, {form: form_seconds(form) for form in formats})

    def bound(self, values: Mapping[str, Array]) -> None:
        """Extend the range of float tensors."""
        for name, array in values.items():
            if array.dtype == np.float32:
                bounds = Bounds.of(array)
                known = self.bounds.get(name)
                self.bounds[name] = known.joined(bounds) if known else bounds

    def encode(self, values: Mapping[str, Array]) -> None:
        """Encode tensors with every encoding that suits them."""
        for name, array in values.items():
            for form in self.format_s:
                changed = changed_to(form, array, self.bounds.get(name))
                if changed is not None:
                    self._compress(name, form, array.nbytes, np.ascontiguousarray(changed))

    def _compress(self, name: str, form: TensorFormat, raw_bytes: int, changed: Array) -> None:
        data = changed.reshape(-1).view(np.uint8).data
        encode_s, decode_s = (seconds * raw_bytes for seconds in self.format_s[form])
        for encoding in (e for e in self.encodings if e.form is form):
            if not suits(encoding.codec, changed.dtype.name, changed.shape):
                continue
            # One thread's own time: other work on the machine is not the encoding's cost.
            tool, start_s = codec(encoding.codec), time.thread_time()
            packed = tool.encode(data, changed.shape)
            packed_s = time.thread_time()
            tool.decode(packed, len(data), changed.shape)
            end_s = time.thread_time()
            sample = (len(packed), encode_s + packed_s - start_s, decode_s + end_s - packed_s)
            self.samples.setdefault((name, encoding.name), []).append(sample)
            del packed  # the next encoding needs room of the same size

    def entries(self) -> dict[str, tuple[EncodedSize, ...]]:
        """By tensor, its sizes under each encoding."""
        entries: dict[str, tuple[EncodedSize, ...]] = {}
        for (name, key), samples in self.samples.items():
            sizes, encode_s, decode_s = zip(*samples, strict=True)
            entry = EncodedSize(
                ENCODINGS[key],
                round(statistics.fmean(sizes)),
                round(float(np.quantile(sizes, 0.95))),
                statistics.median(encode_s),
                statistics.median(decode_s),
                affine_for(ENCODINGS[key].form, self.bounds.get(name)),
            )
            entries[name] = (*entries.get(name, ()), entry)
        return entries


def affine_for(form: TensorFormat, bounds: Bounds | None) -> Affine | None:
    """Scale and zero point of a format; None where it needs none, or the values allow none."""
    return bounds.affine(form) if form.quantises and bounds else None


def changed_to(form: TensorFormat, array: Array, bounds: Bounds | None) -> Array | None:
    """A tensor in a format; None where it doesn't suit: not float, not finite, out of range."""
    if form is TensorFormat.PLAIN:
        return array
    if array.dtype != np.float32 or bounds is None or not array.size:
        return None
    if form is TensorFormat.HALF:
        return array.astype(np.float16) if bounds.magnitude <= HALF_LIMIT else None
    affine = affine_for(form, bounds)
    return None if affine is None else affine.quantised(array)


def form_seconds(form: TensorFormat) -> tuple[float, float]:
    """Seconds per byte of float that a format's nodes take here: to encode, to decode."""
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
    encode_s = _least_s(lambda: engine.run(first, feeds))
    both_s = _least_s(lambda: engine.run([*first, "decoded"], feeds))
    size_bytes = feeds["t"].nbytes
    return encode_s / size_bytes, max(both_s - encode_s, 0.0) / size_bytes


def _least_s(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(7):
        start_s = time.thread_time()
        call()
        seconds.append(time.thread_time() - start_s)
    return min(seconds)


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

    With `again` it is measured even when the cache has a table.
    """
    encodings = tuple(allowed)

    def read(path: Path) -> EncodingTable:
        return EncodingTable.from_json(read_object(path, "catalogue", "offload split --again"))

    def measured() -> EncodingTable:
        return measure_encodings(model, graph, calibration, encodings, options, types, progress)

    path = encodings_cache_path(graph, calibration, encodings, options)
    return cached(path, read, measured, again=again, progress=progress)


def encodings_cache_path(
    graph: Graph, calibration: Calibration, allowed: Iterable[Encoding], options: EngineOptions
) -> Path:
    """The cache's file for a table: one a model, calibration, set of encodings and machine."""
    key = (machine_name(), options, sorted(graph.producer), sorted(e.name for e in allowed))
    data = hashlib.sha256((repr(key) + feeds_digest(calibration.feeds)).encode())
    return Path("encodings") / f"{graph.digest[:16]}-{data.hexdigest()[:16]}.json"
