"""Measure the output error that encodings cause on calibration inputs."""

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from offload.bundle.engine_input import EngineInput, bare_segments
from offload.costs.encodings import Encoding, TensorFormat, encoding
from offload.costs.quantization import Affine
from offload.planning.plan import Plan, Side

from offload_runtimes.engine import Array, Engine, EngineOptions, load_once
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.protocol.codecs import codec

# The most pairs of rows whose distances are computed; longer outputs are matched in sorted order.
_MOST_PAIRS = 1 << 20


def varying_axis(*arrays: Array) -> int | None:
    """The one axis along which arrays of equal rank differ in length; None if there isn't one."""
    if len({array.ndim for array in arrays}) != 1:
        return None
    lengths = zip(*(array.shape for array in arrays), strict=True)
    axes = [axis for axis, sizes in enumerate(lengths) if len(set(sizes)) > 1]
    return axes[0] if len(axes) == 1 else None


def matched_change(want: Array, got: Array, axis: int) -> tuple[float, float]:
    """Largest and mean change of an output whose length along an axis depends on data.

    Each row of one array is matched with the nearest row of the other that is still free. The
    change of matched floats is their difference relative to the range of `want`. Rows without a
    partner, and rows of integers, booleans or text without an equal row, change entirely:
    the largest change is at least their share of all rows, the mean counts each of them as 1.

    O(n m) for n and m rows of floats, at most a million pairs; O(n log n) else.
    """
    one, two = _rows(want, axis), _rows(got, axis)
    count = max(len(one), len(two))
    if not count:
        return 0.0, 0.0
    if want.dtype.kind != "f":
        common = Counter(map(tuple, one.tolist())) & Counter(map(tuple, two.tolist()))
        share = 1 - sum(common.values()) / count
        return share, share
    wide, other = one.astype(np.float64), two.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    spread = spread or (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0
    rows, partners = _pairs(wide, other)
    first, second = wide[rows], other[partners]
    with np.errstate(invalid="ignore"):
        apart = np.abs(first - second)
    apart[(first == second) | (np.isnan(first) & np.isnan(second))] = 0.0
    apart[np.isnan(apart)] = np.inf  # only one of both is NaN
    apart /= spread
    unmatched = count - len(apart)
    worst = max(float(apart.max(initial=0.0)), unmatched / count)
    mean = (float(apart.mean(axis=1).sum()) if apart.size else 0.0) + unmatched
    return worst, mean / count


def _rows(array: Array, axis: int) -> Array:
    """One row for each index of an axis."""
    moved = np.moveaxis(array, axis, 0)
    rows: Array = moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))
    return rows


def _pairs(one: Array, two: Array) -> tuple[Array, Array]:
    """Indexes of matched rows: the nearest pair first, then the nearest of the remaining rows."""
    count = min(len(one), len(two))
    if len(one) * len(two) > _MOST_PAIRS:
        return np.lexsort(one.T[::-1])[:count], np.lexsort(two.T[::-1])[:count]
    far = np.zeros((len(one), len(two)))
    for column in range(one.shape[1]):
        with np.errstate(invalid="ignore"):
            far = np.fmax(far, np.abs(one[:, column, None] - two[None, :, column]))
    free_rows, free_others = np.ones(len(one), bool), np.ones(len(two), bool)
    pairs = []
    for flat in np.argsort(far, axis=None, kind="stable"):
        row, other = divmod(int(flat), len(two))
        if free_rows[row] and free_others[other]:
            free_rows[row] = free_others[other] = False
            pairs.append((row, other))
            if len(pairs) == count:
                break
    matched = np.array(pairs, np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


Tensors = Mapping[str, Array]
_TOP = 5


@dataclass(frozen=True, slots=True)
class LossyCrossing:
    """The encoding of one tensor, with its scale where it quantises."""

    encoding: Encoding
    affine: Affine | None = None

    def passed(self, array: Array) -> Array:
        """The tensor after encoding and decoding; all NaN where it must not be encoded so."""
        if self.encoding.is_lossless:
            return array
        if self.encoding.form is TensorFormat.PLAIN:
            tool, data = codec(self.encoding.codec), array.tobytes()
            back = tool.decode(tool.encode(data, array.shape), len(data), array.shape)
            return np.frombuffer(back, array.dtype).reshape(array.shape)
        if self.encoding.form is TensorFormat.HALF:
            with np.errstate(over="ignore"):
                return array.astype(np.float16).astype(array.dtype)
        if self.affine is None or not np.isfinite(array).all():
            return np.full_like(array, np.nan)
        return self.affine.restored(self.affine.quantised(array))


@dataclass(frozen=True, slots=True)
class Effect:
    """The change of the outputs over all inputs.

    Attributes:
        worst: largest change of any value, relative to its output's range; for integers and
            booleans, the share that differs, and the change of the floats from which they are
            computed; for outputs whose length depends on data, the change of matched rows or the
            share of rows without a partner; infinite where NaN or infinity moved.
        mean: mean change, relative to the same range.
        top1: share of rows (of float outputs, along the last axis) whose best class stays best.
        top5: share of rows whose best class stays among the best five.
        accuracy: share of the labels that is right; None without labels.
    """

    worst: float
    mean: float
    top1: float
    top5: float
    accuracy: float | None


class AccuracyTrial:
    """A plan's segments without encodings, run on the calibration inputs.

    The device's segments run once; then the server's run for each choice of encodings. The
    outputs are compared with those of a run without encodings.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Mapping[str, EngineInput],
        calibration: Calibration,
        options: EngineOptions,
        shown: Iterable[str] = (),
        varying: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Load the bare segments of a plan and run the device's.

        Args:
            plan: the plan of the segments.
            sources: the segments by file name.
            calibration: the inputs.
            options: how onnxruntime runs.
            shown: tensors of the server that are compared in addition to the outputs.
            varying: the axis that varies of tensors whose length depends on data.

        Raises:
            InputError: the engine refuses a segment or an input.
        """
        self.plan = plan
        self.calibration = calibration
        self._names = (*(send.tensor for send in plan.downloads), *shown)
        self._varying = varying
        segments = bare_segments(plan)
        engines = {s.id: load_once(sources[s.file], options) for s in segments}
        self._server = [engines[s.id] for s in segments if s.side is Side.SERVER]
        device = [engines[s.id] for s in segments if s.side is Side.DEVICE]
        needed = {*self._names, *(v.name for engine in self._server for v in engine.inputs)}
        needed.update(send.tensor for send in plan.uploads)
        self._device_tensors = [
            {name: array for name, array in _run(device, feeds).items() if name in needed}
            for feeds in calibration.feeds
        ]

    @cached_property
    def expected(self) -> list[Tensors]:
        """The outputs of each input without encodings."""
        return [self._outputs(_run(self._server, tensors)) for tensors in self._device_tensors]

    def crossing(self, tensor: str) -> list[Array]:
        """A tensor that is sent, for each input."""
        return [tensors[tensor] for tensors in self._device_tensors]

    def planned(self) -> dict[str, LossyCrossing]:
        """The encodings of the plan's uploads."""
        return {
            send.tensor: LossyCrossing(encoding(send.encoding), send.affine)
            for send in self.plan.uploads
        }

    def effect(self, choice: Mapping[str, LossyCrossing]) -> Effect:
        """The effect of a choice of encodings; tensors that it does not name are not encoded."""
        results = []
        for tensors in self._device_tensors:
            passed = {name: lossy.passed(tensors[name]) for name, lossy in choice.items()}
            results.append(self._outputs(_run(self._server, {**tensors, **passed})))
        # The axis of a tensor whose length depends on data, known or seen.
        axes = {
            name: self._varying[name]
            if name in self._varying
            else varying_axis(*(outputs[name] for outputs in (*self.expected, *results)))
            for name in self._names
        }
        pairs = [
            (name, want[name], got[name])
            for want, got in zip(self.expected, results, strict=True)
            for name in want
        ]
        changes = [change(want, got, axes[name]) for name, want, got in pairs]
        rows = [
            ranks(want, got)
            for name, want, got in pairs
            if want.dtype.kind == "f" and want.ndim and axes[name] is None
        ]
        best_ranks = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        labels = self.calibration.labels
        return Effect(
            max((worst for worst, _ in changes), default=0.0),
            float(np.mean([mean for _, mean in changes])) if changes else 0.0,
            float(np.mean(best_ranks < 1)) if best_ranks.size else 1.0,
            float(np.mean(best_ranks < _TOP)) if best_ranks.size else 1.0,
            accuracy(results, labels) if labels else None,
        )

    def unproven(
        self, lossy: Mapping[str, LossyCrossing], dependent: Container[str] | None = None
    ) -> str | None:
        """Why unchanged outputs prove nothing, as a part of a sentence; None: they prove it.

        An output shows the effect of an encoding only if it differs between the inputs. With a
        single input it must hold more than one value, and noise in place of the encoded tensors
        must change some output. Integers are judged by the floats from which they are computed,
        if there are any.

        Args:
            lossy: the encoded tensors, by name.
            dependent: the tensors that are computed from those; None: all may be.
        """
        count = len(self.expected)
        inputs = "the only calibration input" if count == 1 else f"all {count} calibration inputs"
        names = [name for name in self._names if dependent is None or name in dependent]
        for name in names:
            if not any(outputs[name].size for outputs in self.expected):
                return f"output {name!r} is empty on {inputs}"
        floats = [name for name in names if self.expected[0][name].dtype.kind == "f"]
        steady = [name for name in floats or names if not self._differs(name)]
        if steady and (floats or len(steady) == len(names)):
            return f"output {steady[0]!r} is the same on {inputs}"
        if count == 1 and self._moved_by_noise(lossy).isdisjoint(floats or names):
            return "noise in place of the encoded tensors changes no output"
        return None

    def _differs(self, name: str) -> bool:
        """Whether an output differs between inputs; with one input, between its own values."""
        first, *others = (outputs[name] for outputs in self.expected)
        if others:
            return any(not _equal(first, other) for other in others)
        return first.size == 1 or not bool(np.all(first == first.flat[0]))

    def _moved_by_noise(self, lossy: Mapping[str, LossyCrossing]) -> frozenset[str]:
        """The outputs that change when the encoded tensors become noise of their own range."""
        rng = np.random.default_rng(0)
        moved: set[str] = set()
        for tensors, want in zip(self._device_tensors, self.expected, strict=True):
            noise = {name: _noise(tensors[name], rng) for name in lossy}
            got = _run(self._server, {**tensors, **noise})
            moved.update(name for name in self._names if not _equal(want[name], got[name]))
        return frozenset(moved)

    def _outputs(self, tensors: Tensors) -> Tensors:
        """The tensors to compare; encodings do not change outputs that the device computes."""
        return {name: tensors[name] for name in self._names}


def _run(engines: Iterable[Engine], inputs: Tensors) -> dict[str, Array]:
    tensors = dict(inputs)
    for engine in engines:
        feeds = {value.name: tensors[value.name] for value in engine.inputs}
        names = [value.name for value in engine.outputs]
        tensors.update(zip(names, engine.run(names, feeds), strict=True))
    return tensors


def change(want: Array, got: Array, axis: int | None = None) -> tuple[float, float]:
    """Largest and mean change of an output, relative to its range; see `Effect.worst`.

    `axis`: the axis whose length depends on data; None: the output's shape is fixed.
    """
    if axis is not None and want.ndim == got.ndim and -want.ndim <= axis < want.ndim:
        others = [np.delete(array.shape, axis).tolist() for array in (want, got)]
        if others[0] == others[1]:
            return matched_change(want, got, axis)
    if want.shape != got.shape:
        return float("inf"), float("inf")
    if not want.size or np.array_equal(want, got, equal_nan=want.dtype.kind == "f"):
        return 0.0, 0.0
    if want.dtype.kind != "f":
        share = float(np.mean(want != got))
        return share, share
    one, two = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(two)):
        return float("inf"), float("inf")
    apart = np.abs(one[finite] - two[finite])
    if not apart.size:
        return float("inf"), float("inf")
    spread = float(np.ptp(one[finite])) or float(np.abs(one[finite]).max()) or 1.0
    return float(apart.max()) / spread, float(apart.mean()) / spread


def _equal(one: Array, two: Array) -> bool:
    return np.array_equal(one, two, equal_nan=one.dtype.kind == two.dtype.kind == "f")


def _noise(array: Array, rng: np.random.Generator) -> Array:
    """Random numbers of the array's own range."""
    if not array.size:
        return array
    low, high = (float(bound) for bound in (np.nanmin(array), np.nanmax(array)))
    if not np.isfinite([low, high]).all() or low == high:
        low, high = -1.0, 1.0
    return np.asarray(rng.uniform(low, high, array.shape), array.dtype)


def ranks(want: Array, got: Array) -> Array:
    """For each row along the last axis: the new rank of the class that was best, from 0."""
    if want.shape != got.shape or want.shape[-1] < 2:
        return np.zeros(0, np.int64)
    rows, others = want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1])
    best = rows.argmax(axis=1)
    now = others[np.arange(len(others)), best]
    rank: Array = (others > now[:, None]).sum(axis=1) + np.isnan(now) * _TOP
    return rank


def accuracy(results: Sequence[Tensors], labels: Sequence[int]) -> float | None:
    """Share of labels that the first output predicts; None where the numbers don't match."""
    classes = []
    for outputs in results:
        array = next(iter(outputs.values()))
        best = array.argmax(axis=-1) if array.dtype.kind == "f" else array
        classes.append(np.atleast_1d(best).reshape(-1))
    predicted = np.concatenate(classes)
    if predicted.shape != (len(labels),):
        return None
    return float(np.mean(predicted == np.asarray(labels)))
