"""Check splits against the whole model: every cut, every tensor."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from offload.bundle.compare import Array, Tolerances, gap
from offload.bundle.engine_input import EngineInput, part_input, undefined_names, whole_input
from offload.bundle.sample_inputs import Feeds
from offload.bundle.subgraph import Part, part_of
from offload.errors import InputError, OffloadError
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

DEVICE_FILE, SERVER_FILE = "device-0.onnx", "server-0.onnx"


def distinct_cuts(graph: Graph, most: int, seed: int = 0) -> tuple[frozenset[int], ...]:
    """Different down-closed sets of layers, from nothing to everything.

    Half of them are beginnings of the graph's order, evenly spread, with both ends; the others
    are what some random layers need, so that branches are also cut apart. All cuts of a small
    graph come out if `most` allows.

    Args:
        graph: what to cut.
        most: how many at most; at least 2.
        seed: of the choice.
    """
    count = len(graph.layers)
    beginnings = min(count + 1, max(2, (most + 1) // 2))
    steps = max(beginnings - 1, 1)
    found = dict.fromkeys(frozenset(range(i * count // steps)) for i in range(beginnings))
    rng = random.Random(seed)
    for _ in range(8 * most if count else 0):
        if len(found) >= most:
            break
        picked = rng.sample(range(count), min(count, rng.choice((1, 1, 2, 3))))
        found.setdefault(graph.ancestors(picked))
    return tuple(sorted(found, key=lambda device: (len(device), sorted(device))))


def halves(graph: Graph, device: Iterable[int]) -> dict[str, Part]:
    """The two parts of a cut by file name; outputs that no layer makes are the server's."""
    kept = frozenset(device)
    rest = [index for index in range(len(graph.layers)) if index not in kept]
    loose = [name for name in graph.outputs if name not in graph.producer]
    return {DEVICE_FILE: part_of(graph, kept), SERVER_FILE: part_of(graph, rest, loose)}


def parts_at(model: Model, tensors: Iterable[str]) -> dict[str, Part]:
    """The two parts of a cut at tensors, straight from the file: no layers, no costs.

    The device computes what the tensors need and the server the rest; all that the server then
    lacks crosses, so more tensors may. O(nodes).

    Raises:
        InputError: a tensor that the model doesn't have.
    """
    values = model.values
    device: set[int] = set()
    wanted = set(tensors)
    for name in wanted:
        if name not in values.producer and not values.is_given(name):
            raise InputError(f"the model has no tensor {name!r} to cut at")
    needed, rest = set(values.outputs), []
    for index in reversed(values.order):
        if index in values.constant:
            continue
        if not wanted.isdisjoint(values.produces[index]):
            device.add(index)
            wanted.update(values.consumes[index])
        elif not needed.isdisjoint(values.produces[index]):
            rest.append(index)
            needed.update(values.consumes[index])
    made = [name for index in sorted(device) for name in values.produces[index] if name in needed]
    given = [name for name in values.inputs if name in wanted]
    later = {name for index in rest for name in values.consumes[index]}
    later.update(name for name in values.outputs if name in values.inputs)
    crosses = [name for name in (*values.inputs, *made) if name in later]
    answers = [name for name in values.outputs if name not in set(made)]
    return {
        DEVICE_FILE: Part(tuple(sorted(device)), tuple(given), tuple(made)),
        SERVER_FILE: Part(tuple(sorted(rest)), tuple(crosses), tuple(answers)),
    }


def crossing(parts: dict[str, Part]) -> tuple[str, ...]:
    """Values that the device makes and the server needs."""
    needed = set(parts[SERVER_FILE].inputs)
    return tuple(name for name in parts[DEVICE_FILE].outputs if name in needed)


# Bytes of values that are computed again by the uncut model at one time.
_TOGETHER_BYTES = 1 << 26
Runner = Callable[[Feeds], Mapping[str, Any]]


class Opener(Protocol):
    """Loads a model; the result computes all outputs from a superset of the inputs."""

    def __call__(self, source: EngineInput, optimize: bool) -> Runner:
        """Load with the engine's optimisations on or off.

        Raises:
            OffloadError: the engine refuses the model.
        """


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One tensor that the parts get wrong.

    Attributes:
        tensor: its name; empty when a part could not be made, loaded or run at all.
        gap: how far off it is, relative to its largest value.
        limit: how far off it may be.
        optimized: with the engine's optimisations on or off.
        reason: what went wrong where no number says it.
    """

    tensor: str
    gap: float
    limit: float
    optimized: bool
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        mode = "with optimisations" if self.optimized else "without optimisations"
        allowed = f"{self.limit:.1e} is allowed" if self.limit else "equal bits are asked for"
        return f"tensor {self.tensor!r} is off by {self.gap:.1e} {mode}, {allowed}"


@dataclass(frozen=True, slots=True)
class CutCheck:
    """What the check of one cut found.

    Attributes:
        device: the layers the device computes.
        tensors: values that cross.
        exact: largest gap without optimisations, over outputs and values that cross.
        optimized: largest gap of an output with optimisations.
        mismatches: tensors beyond their limit.
        idle: values whose replacement by noise changes no output: about those the check says
            nothing.
    """

    device: frozenset[int]
    tensors: tuple[str, ...]
    exact: float
    optimized: float
    mismatches: tuple[Mismatch, ...]
    idle: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One model with all that checking its cuts needs.

    Attributes:
        model: from a file.
        graph: its layers.
        open: the engine.
        inputs: sets of live inputs; the first is also used to see whether noise shows.
        types: types of tensors that shape inference can't follow.
    """

    model: Model
    graph: Graph
    open: Opener
    inputs: Sequence[Feeds]
    types: Mapping[str, Tensor] = field(default_factory=dict)

    def cuts(
        self, devices: Iterable[frozenset[int]], done: Callable[[CutCheck], None] = lambda _: None
    ) -> tuple[CutCheck, ...]:
        """Check cuts one after the other.

        Args:
            devices: for each cut, the layers of the device.
            done: called after each.

        Raises:
            InputError: the model must be a file, or gives another answer each time it is asked.
        """
        with temporary_folder() as folder:
            expected = {mode: self._expected(mode) for mode in (False, True)}
            found = []
            for device in devices:
                found.append(self._cut(device, folder, expected))
                done(found[-1])
        return tuple(found)

    @cached_property
    def _freedom(self) -> Tolerances:
        return Tolerances.of(self.model)

    def _expected(self, optimize: bool) -> list[Mapping[str, Any]]:
        if self.model.path is None:
            raise InputError("the model must come from a file to be verified: save it first")
        whole = self.open(whole_input(self.model), optimize)
        expected = [whole(feeds) for feeds in self.inputs]
        if not optimize:
            _check_repeatable(expected[-1], whole(self.inputs[-1]))
        return expected

    def _cut(
        self,
        device: frozenset[int],
        folder: Path,
        expected: Mapping[bool, list[Mapping[str, Any]]],
    ) -> CutCheck:
        parts = halves(self.graph, device)
        tensors = crossing(parts)
        wrong: list[Mismatch] = []
        worst = {False: 0.0, True: 0.0}
        idle: tuple[str, ...] = ()
        sources: dict[str, EngineInput] = {}
        try:
            for name, part in parts.items():
                sources[name] = part_input(self.model, part, folder / name, self.types)
            plain, idle = self._without_optimisations(parts, sources, tensors, expected, folder)
            fast = self._with_optimisations(parts, sources, expected)
            for mode, gaps in ((False, plain), (True, fast)):
                worst[mode] = max((item.gap for item in gaps), default=0.0)
                wrong.extend(item for item in gaps if item.gap > item.limit)
        except OffloadError as error:
            worst = {False: np.inf, True: np.inf}
            wrong.extend(_lost(sources, error))
        return CutCheck(device, tensors, worst[False], worst[True], tuple(wrong), idle)

    def _without_optimisations(
        self,
        parts: Mapping[str, Part],
        sources: Mapping[str, EngineInput],
        tensors: tuple[str, ...],
        expected: Mapping[bool, list[Mapping[str, Any]]],
        folder: Path,
    ) -> tuple[list[Mismatch], tuple[str, ...]]:
        """Gaps of outputs and of values that cross, and the idle values if there are no gaps."""
        pair = _Pair.open(parts, sources, self.open, False)
        gaps: list[Mismatch] = []
        for feeds, outputs in zip(self.inputs, expected[False], strict=True):
            got = pair.run(feeds)
            gaps += self._gaps(outputs, got, False, {})
            for inside in self._inside(tensors, feeds, got, folder):
                gaps += self._gaps(inside, got, False, {})
        if any(item.gap > item.limit for item in gaps):
            return gaps, ()
        return gaps, self._idle(pair, tensors, expected[False][0])

    def _with_optimisations(
        self,
        parts: Mapping[str, Part],
        sources: Mapping[str, EngineInput],
        expected: Mapping[bool, list[Mapping[str, Any]]],
    ) -> list[Mismatch]:
        """Gaps of outputs."""
        pair = _Pair.open(parts, sources, self.open, True)
        gaps: list[Mismatch] = []
        for feeds, plain, outputs in zip(self.inputs, expected[False], expected[True], strict=True):
            own = _own_gaps(plain, outputs)
            gaps += self._gaps(outputs, pair.run(feeds), True, own)
        return gaps

    def _inside(
        self, tensors: tuple[str, ...], feeds: Feeds, made: Mapping[str, Any], folder: Path
    ) -> Iterator[Mapping[str, Any]]:
        """The values that cross, as the uncut model computes them without optimisations.

        The model runs once for each group of values, so that few of them are in memory twice;
        `made` says how large they are.
        """
        nodes = tuple(sorted(node for layer in self.graph.layers for node in layer.nodes))
        for names in _grouped(tensors, made):
            whole = Part(nodes, self.graph.inputs, names)
            source = part_input(self.model, whole, folder / "reference.onnx", self.types)
            yield self.open(source, False)(feeds)

    def _gaps(
        self, want: Mapping[str, Any], got: Mapping[str, Any], mode: bool, own: Mapping[str, float]
    ) -> list[Mismatch]:
        found = []
        for name, value in want.items():
            tensor = self.graph.tensors.get(name)
            dtype = (tensor and tensor.dtype) or _dtype(value)
            limit = self._freedom.limit(dtype, mode, own.get(name, 0.0))
            apart = gap(value, got[name], dtype) if name in got else np.inf
            found.append(Mismatch(name, apart, limit, mode))
        return found

    def _idle(
        self, pair: "_Pair", tensors: tuple[str, ...], expected: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Values that the server's answers do not depend on, as far as noise can tell."""
        feeds = self.inputs[0]
        between = pair.device(feeds)
        rng = np.random.default_rng(0)
        return tuple(
            name
            for name in tensors
            if not _shows(pair, {**feeds, **between, name: noise(between[name], rng)}, expected)
        )


@dataclass(frozen=True)
class _Pair:
    """Both halves of a cut, loaded; a half without answers has nothing to run."""

    device: Runner
    server: Runner

    @classmethod
    def open(
        cls,
        parts: Mapping[str, Part],
        sources: Mapping[str, EngineInput],
        engine: Opener,
        mode: bool,
    ) -> "_Pair":
        runners = [
            engine(sources[name], mode) if parts[name].outputs else _nothing
            for name in (DEVICE_FILE, SERVER_FILE)
        ]
        return cls(*runners)

    def run(self, feeds: Feeds) -> Mapping[str, Any]:
        made = self.device(feeds)
        return {**made, **self.server({**feeds, **made})}


def _own_gaps(plain: Mapping[str, Any], optimized: Mapping[str, Any]) -> dict[str, float]:
    return {name: gap(value, optimized[name]) for name, value in plain.items()}


def _check_repeatable(first: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    for name, want in first.items():
        if gap(want, again[name]):
            raise InputError(
                f"output {name!r} differs each time the whole model runs (random operators?):"
                " a split of it can't be verified"
            )


def _grouped(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Names in groups whose values take at most `_TOGETHER_BYTES`, or one by one."""
    group: list[str] = []
    group_bytes = 0
    for name in names:
        value = values.get(name)
        size_bytes = value.nbytes if isinstance(value, np.ndarray) else 0
        if group and group_bytes + size_bytes > _TOGETHER_BYTES:
            yield tuple(group)
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += size_bytes
    if group:
        yield tuple(group)


def _lost(sources: Mapping[str, EngineInput], error: OffloadError) -> list[Mismatch]:
    """Why a part can't be made or run: the tensors it lacks, or else what the engine says."""
    found = [
        Mismatch(name, np.inf, 0.0, False, f"{file} lacks tensor {name!r}: {error}")
        for file, source in sources.items()
        for name in undefined_names(source)
    ]
    return found or [Mismatch("", np.inf, 0.0, False, str(error))]


def _nothing(_: Feeds) -> Mapping[str, Any]:
    return {}


def _dtype(value: Any) -> str | None:
    names = {"float32": "float", "float64": "double", "float16": "float16"}
    return names.get(str(value.dtype)) if isinstance(value, np.ndarray) else None


def _shows(pair: _Pair, values: Feeds, expected: Mapping[str, Any]) -> bool:
    """Whether the server answers differently; not to answer at all is different too."""
    try:
        answer = pair.server(values)
    except OffloadError:
        return True
    return any(gap(expected[name], value) > 0 for name, value in answer.items())


def noise(array: Array, rng: np.random.Generator) -> Array:
    """Other numbers of the same dtype, shape and range."""
    other: Array = array
    if array.dtype.kind == "f":
        finite = array[np.isfinite(array)].astype(np.float64)
        spread = float(finite.std()) if finite.size else 0.0
        drawn = rng.normal(0.5, 1.0, array.shape)
        other = np.asarray(drawn * (spread or 1.0)).astype(array.dtype)
    elif array.dtype.kind == "b":
        other = ~array
    elif array.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        other = rng.integers(low, high + 1, array.shape).astype(array.dtype)
        if low == high:
            other = array + array.dtype.type(1)
    return other
