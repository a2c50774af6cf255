"""What encodings change in the outputs, measured on calibration inputs."""

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

# Pairs of rows whose distances are held at once; longer outputs are matched in sorted order.
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

    Each row of one is matched with the nearest row of the other that is still free. Matched
    floats change by their difference relative to the range of the wanted output. Rows without a
    partner, and rows of whole numbers, truth values or text that have no equal, change entirely:
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
    apart = _apart(wide, other) / spread
    lonely = count - len(apart)
    worst = max(float(apart.max(initial=0.0)), lonely / count)
    mean = (float(apart.mean(axis=1).sum()) if apart.size else 0.0) + lonely
    return worst, mean / count


def _rows(array: Array, axis: int) -> Array:
    """One row for each place along an axis."""
    moved: Array = np.moveaxis(array, axis, 0)
    rows: Array = moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))
    return rows


def _apart(one: Array, two: Array) -> Array:
    """Differences of matched rows, as many as the shorter has; infinite where only one is NaN."""
    places, partners = _pairs(one, two)
    first, second = one[places], two[partners]
    with np.errstate(invalid="ignore"):
        apart: Array = np.abs(first - second)
    apart[first == second] = 0.0
    apart[np.isnan(first) & np.isnan(second)] = 0.0
    apart[np.isnan(apart)] = np.inf
    return apart


def _pairs(one: Array, two: Array) -> tuple[Array, Array]:
    """Places of matched rows: the nearest pair first, then the nearest of those left."""
    count = min(len(one), len(two))
    if len(one) * len(two) > _MOST_PAIRS:
        return _sorted(one)[:count], _sorted(two)[:count]
    far = np.zeros((len(one), len(two)))
    for column in range(one.shape[1]):
        with np.errstate(invalid="ignore"):
            far = np.fmax(far, np.abs(one[:, column, None] - two[None, :, column]))
    free_rows, free_others = np.ones(len(one), bool), np.ones(len(two), bool)
    found = []
    for flat in np.argsort(far, axis=None, kind="stable"):
        row, other = divmod(int(flat), len(two))
        if free_rows[row] and free_others[other]:
            free_rows[row] = free_others[other] = False
            found.append((row, other))
            if len(found) == count:
                break
    places = np.array(found, np.int64).reshape(-1, 2)
    return places[:, 0], places[:, 1]


def _sorted(rows: Array) -> Array:
    """Places in lexicographic order, the first column first."""
    order: Array = np.lexsort(rows.T[::-1])
    return order


Tensors = Mapping[str, Array]
_TOP = 5


@dataclass(frozen=True, slots=True)
class LossyCrossing:
    """How one tensor crosses: the encoding, and its scale where it quantises."""

    encoding: Encoding
    affine: Affine | None = None

    def passed(self, array: Array) -> Array:
        """The tensor as it arrives; NaN throughout where it must not cross so."""
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
    """The outputs' change over all inputs.

    Attributes:
        worst: largest change of any value, relative to its output's range; of whole numbers and
            truth values, the share that is another, and the change of the floats that they were
            made of; of outputs whose length depends on data, that of matched rows or the share of
            rows without a partner; infinite where NaN or infinity moved.
        mean: mean change, likewise relative.
        top1: share of rows (of float outputs, along the last axis) whose best class stays best.
        top5: share whose best class stays among the best five.
        accuracy: share of the labels that is right; None without labels.
    """

    worst: float
    mean: float
    top1: float
    top5: float
    accuracy: float | None


NO_EFFECT = Effect(0.0, 0.0, 1.0, 1.0, None)


class AccuracyTrial:
    """A plan's segments without encodings, run on the calibration inputs.

    What the device makes is computed once; then the server's part is run for each choice of
    encodings. The undisturbed run is the yardstick.
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
            plan: whose segments they are.
            sources: the segments by file name.
            calibration: the inputs.
            options: how onnxruntime runs.
            shown: tensors of the server's that are compared besides the outputs.
            varying: of tensors whose length depends on data, the axis that varies.

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
        self._made = [
            {name: array for name, array in _run(device, feeds).items() if name in needed}
            for feeds in calibration.feeds
        ]

    @cached_property
    def expected(self) -> list[Tensors]:
        """The outputs of each input without encodings."""
        return [self._outputs(_run(self._server, made)) for made in self._made]

    def crossing(self, tensor: str) -> list[Array]:
        """A tensor that crosses, for each input."""
        return [made[tensor] for made in self._made]

    def planned(self) -> dict[str, LossyCrossing]:
        """How the plan's tensors cross."""
        return {
            send.tensor: LossyCrossing(encoding(send.encoding), send.affine)
            for send in self.plan.uploads
        }

    def effect(self, choice: Mapping[str, LossyCrossing]) -> Effect:
        """What a choice of encodings does; tensors that it does not name cross as they are."""
        found = []
        for made in self._made:
            passed = {name: lossy.passed(made[name]) for name, lossy in choice.items()}
            found.append(self._outputs(_run(self._server, {**made, **passed})))
        return self._compared(found)

    def unproven(
        self, lossy: Mapping[str, LossyCrossing], dependent: Container[str] | None = None
    ) -> str | None:
        """Why unchanged outputs prove nothing here, as a part of a sentence; None: they do.

        An output shows what an encoding does only where the inputs bring something out: it must
        differ between them. With a single input it must hold more than one value, and noise in
        place of the encoded tensors must move some output. Whole numbers are left to the floats
        that they were made of, if there are any.

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
        for made, want in zip(self._made, self.expected, strict=True):
            noise = {name: _noise(made[name], rng) for name in lossy}
            got = _run(self._server, {**made, **noise})
            moved.update(name for name in self._names if not _equal(want[name], got[name]))
        return frozenset(moved)

    def _compared(self, found: Sequence[Tensors]) -> Effect:
        labels = self.calibration.labels
        axes = {name: self._axis(name, found) for name in self._names}
        pairs = [
            (name, want[name], got[name])
            for want, got in zip(self.expected, found, strict=True)
            for name in want
        ]
        changes = [change(want, got, axes[name]) for name, want, got in pairs]
        rows = [
            ranks(want, got)
            for name, want, got in pairs
            if want.dtype.kind == "f" and want.ndim and axes[name] is None
        ]
        places = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return Effect(
            max((worst for worst, _ in changes), default=0.0),
            float(np.mean([mean for _, mean in changes])) if changes else 0.0,
            float(np.mean(places < 1)) if places.size else 1.0,
            float(np.mean(places < _TOP)) if places.size else 1.0,
            accuracy(found, labels) if labels else None,
        )

    def _axis(self, name: str, found: Sequence[Tensors]) -> int | None:
        """The axis of a tensor whose length depends on data, known or seen."""
        if name in self._varying:
            return self._varying[name]
        return varying_axis(*(outputs[name] for outputs in (*self.expected, *found)))

    def _outputs(self, tensors: Tensors) -> Tensors:
        """What the server answers: what the device makes of the outputs no encoding touches."""
        return {name: tensors[name] for name in self._names}


def _run(engines: Iterable[Engine], given: Tensors) -> dict[str, Array]:
    tensors = dict(given)
    for engine in engines:
        feeds = {value.name: tensors[value.name] for value in engine.inputs}
        names = [value.name for value in engine.outputs]
        tensors.update(zip(names, engine.run(names, feeds), strict=True))
    return tensors


def change(want: Array, got: Array, axis: int | None = None) -> tuple[float, float]:
    """Largest and mean change of an output, relative to its range; see `Effect.worst`.

    `axis`: the one whose length depends on data, None: the output's shape is fixed.
    """
    if axis is not None and _fit(want, got, axis):
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


def _fit(want: Array, got: Array, axis: int) -> bool:
    """Whether two arrays have the same shape but for an axis."""
    if want.ndim != got.ndim or not -want.ndim <= axis < want.ndim:
        return False
    return np.delete(want.shape, axis).tolist() == np.delete(got.shape, axis).tolist()


def _equal(one: Array, two: Array) -> bool:
    return np.array_equal(one, two, equal_nan=one.dtype.kind == two.dtype.kind == "f")


def _noise(array: Array, rng: np.random.Generator) -> Array:
    """Numbers of the array's own range, in no order."""
    if not array.size:
        return array
    low, high = (float(bound) for bound in (np.nanmin(array), np.nanmax(array)))
    if not np.isfinite([low, high]).all() or low == high:
        low, high = -1.0, 1.0
    return np.asarray(rng.uniform(low, high, array.shape), array.dtype)


def ranks(want: Array, got: Array) -> Array:
    """For each row along the last axis: how many classes now beat the one that was best."""
    if want.shape != got.shape or want.shape[-1] < 2:
        return np.zeros(0, np.int64)
    rows, others = want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1])
    best = rows.argmax(axis=1)
    now = others[np.arange(len(others)), best]
    found: Array = (others > now[:, None]).sum(axis=1) + np.isnan(now) * _TOP
    return found


def accuracy(found: Sequence[Tensors], labels: Sequence[int]) -> float | None:
    """Share of labels that the first output gives; None where the numbers don't match."""
    answers = []
    for outputs in found:
        array = next(iter(outputs.values()))
        best = array.argmax(axis=-1) if array.dtype.kind == "f" else array
        answers.append(np.atleast_1d(best).reshape(-1))
    given = np.concatenate(answers)
    return float(np.mean(given == np.asarray(labels))) if given.shape == (len(labels),) else None
