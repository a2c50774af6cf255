"""Check cuts of a model: run both parts and compare every tensor with the uncut model."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offload.bundle.compare import Array, Tolerances, difference
from offload.bundle.engine_input import (
    EngineInput,
    part_input,
    undefined_names,
    whole_input,
    with_inner_outputs,
)
from offload.bundle.sample_inputs import Feeds
from offload.bundle.subgraph import Part, part_of
from offload.errors import InputError, OffloadError
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

DEVICE_FILE, SERVER_FILE = "device-0.onnx", "server-0.onnx"


def distinct_cuts(graph: Graph, most: int) -> tuple[frozenset[int], ...]:
    """Distinct cuts, as the layers of the device: down-closed sets, from none to all layers.

    Half of them are prefixes of the graph's order, evenly spread, both ends included. The others
    are the ancestors of a few random layers, so that branches are cut apart too. A small graph
    gets all of its cuts if `most` allows.

    Args:
        graph: the graph to cut.
        most: the largest number of cuts; at least 2.
    """
    count = len(graph.layers)
    prefixes = min(count + 1, max(2, (most + 1) // 2))
    steps = max(prefixes - 1, 1)
    cuts = dict.fromkeys(frozenset(range(i * count // steps)) for i in range(prefixes))
    rng = random.Random(0)
    for _ in range(8 * most if count else 0):
        if len(cuts) >= most:
            break
        picked = rng.sample(range(count), min(count, rng.choice((1, 1, 2, 3))))
        cuts.setdefault(graph.ancestors(picked))
    return tuple(sorted(cuts, key=lambda device: (len(device), sorted(device))))


def parts_of_cut(graph: Graph, device: Iterable[int]) -> dict[str, Part]:
    """The device's and the server's part of a cut, by file name.

    Outputs of the model that no layer computes go to the server's part.
    """
    device_layers = frozenset(device)
    server_layers = [index for index in range(len(graph.layers)) if index not in device_layers]
    passed_through = [name for name in graph.outputs if name not in graph.producer]
    return {
        DEVICE_FILE: part_of(graph, device_layers),
        SERVER_FILE: part_of(graph, server_layers, passed_through),
    }


def crossing_tensors(parts: Mapping[str, Part]) -> tuple[str, ...]:
    """The tensors that the device computes and the server needs."""
    needed = set(parts[SERVER_FILE].inputs)
    return tuple(name for name in parts[DEVICE_FILE].outputs if name in needed)


# The uncut model computes inner tensors in groups of at most this many bytes.
_GROUP_BYTES = 1 << 26
Runner = Callable[[Feeds], Mapping[str, Any]]
# Loads a model with the engine's optimisations on or off; raises an OffloadError if the engine
# refuses it. The runner computes all outputs from the inputs and ignores further values.
Opener = Callable[[EngineInput, bool], Runner]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One tensor that differs, and by how much.

    Attributes:
        tensor: its name; empty when a part could not be written, loaded or run.
        gap: largest difference, relative to the tensor's largest value.
        limit: the largest gap allowed.
        optimized: whether the engine's optimisations were on.
        reason: the error, where there is no number.
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
        allowed = f"{self.limit:.1e} is allowed" if self.limit else "equal bits are required"
        return f"tensor {self.tensor!r} is off by {self.gap:.1e} {mode}, {allowed}"


@dataclass(frozen=True, slots=True)
class CutCheck:
    """The result of checking one cut.

    Attributes:
        device: the layers the device computes.
        tensors: the tensors that cross.
        exact: largest gap without optimisations, over outputs and tensors that cross.
        optimized: largest gap of an output with optimisations.
        mismatches: tensors beyond their limit.
        idle: tensors whose replacement by noise changes no output: the check says nothing about
            them.
    """

    device: frozenset[int]
    tensors: tuple[str, ...]
    exact: float
    optimized: float
    mismatches: tuple[Mismatch, ...]
    idle: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """A model with everything needed to check its cuts.

    Attributes:
        model: loaded from a file.
        graph: its layers.
        open: loads a model into the engine.
        inputs: sets of input values; the noise test uses the first.
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
            InputError: the model was not loaded from a file, or its outputs differ from run to run.
        """
        with temporary_folder() as folder:
            expected = {optimize: self._expected(optimize) for optimize in (False, True)}
            results = []
            for device in devices:
                results.append(self._cut(device, folder, expected))
                done(results[-1])
        return tuple(results)

    @cached_property
    def _tolerances(self) -> Tolerances:
        return Tolerances.of(self.model)

    def _expected(self, optimize: bool) -> list[Mapping[str, Any]]:
        """Outputs of the uncut model for each set of inputs."""
        if self.model.path is None:
            raise InputError("the model must come from a file to be verified: save it first")
        run_whole = self.open(whole_input(self.model), optimize)
        expected = [run_whole(feeds) for feeds in self.inputs]
        if not optimize:
            again = run_whole(self.inputs[-1])
            for name, value in expected[-1].items():
                if difference(value, again[name]):
                    raise InputError(
                        f"output {name!r} differs each time the whole model runs (random"
                        " operators?): a split of it can't be verified"
                    )
        return expected

    def _cut(
        self,
        device: frozenset[int],
        folder: Path,
        expected: Mapping[bool, list[Mapping[str, Any]]],
    ) -> CutCheck:
        parts = parts_of_cut(self.graph, device)
        tensors = crossing_tensors(parts)
        sources: dict[str, EngineInput] = {}
        try:
            for name, part in parts.items():
                sources[name] = part_input(self.model, part, folder / name, self.types)
            pair = self._load(parts, sources, optimize=False)
            exact = self._exact_gaps(pair, tensors, expected[False], folder)
            failed = any(item.gap > item.limit for item in exact)
            idle = () if failed else self._idle(pair, tensors, expected[False][0])
            del pair  # release the first pair before the second is loaded
            pair = self._load(parts, sources, optimize=True)
            optimized: list[Mismatch] = []
            for feeds, plain, fast in zip(
                self.inputs, expected[False], expected[True], strict=True
            ):
                # Limits grow where optimisations move an output of the uncut model.
                own = {name: difference(value, fast[name]) for name, value in plain.items()}
                optimized += self._gaps(fast, pair.run(feeds), True, own)
        except OffloadError as error:
            mismatches = [
                Mismatch(name, np.inf, 0.0, False, f"{file} lacks tensor {name!r}: {error}")
                for file, source in sources.items()
                for name in undefined_names(source)
            ] or [Mismatch("", np.inf, 0.0, False, str(error))]
            return CutCheck(device, tensors, np.inf, np.inf, tuple(mismatches), ())
        return CutCheck(
            device,
            tensors,
            max((item.gap for item in exact), default=0.0),
            max((item.gap for item in optimized), default=0.0),
            tuple(item for item in (*exact, *optimized) if item.gap > item.limit),
            idle,
        )

    def _load(
        self, parts: Mapping[str, Part], sources: Mapping[str, EngineInput], optimize: bool
    ) -> "_Pair":
        """Both parts of a cut; a part without outputs has nothing to run."""
        return _Pair(
            *(
                self.open(sources[name], optimize) if parts[name].outputs else lambda _: {}
                for name in (DEVICE_FILE, SERVER_FILE)
            )
        )

    def _exact_gaps(
        self,
        pair: "_Pair",
        tensors: tuple[str, ...],
        expected: list[Mapping[str, Any]],
        folder: Path,
    ) -> list[Mismatch]:
        """Gaps of outputs and of tensors that cross, without optimisations.

        The uncut model runs once for each group of tensors that cross, so that only a group is in
        memory twice.
        """
        gaps: list[Mismatch] = []
        for feeds, outputs in zip(self.inputs, expected, strict=True):
            values = pair.run(feeds)
            gaps += self._gaps(outputs, values, False, {})
            for names in _groups(tensors, values):
                source = with_inner_outputs(self.model, names, folder / "whole.onnx", self.types)
                gaps += self._gaps(self.open(source, False)(feeds), values, False, {})
        return gaps

    def _gaps(
        self,
        expected: Mapping[str, Any],
        values: Mapping[str, Any],
        optimized: bool,
        own: Mapping[str, float],
    ) -> list[Mismatch]:
        gaps = []
        for name, value in expected.items():
            tensor = self.graph.tensors.get(name)
            dtype = tensor.dtype if tensor else None
            if dtype is None and isinstance(value, np.ndarray):
                dtype = _DTYPES.get(str(value.dtype))
            limit = self._tolerances.limit(dtype, optimized, own.get(name, 0.0))
            apart = difference(value, values[name], dtype) if name in values else np.inf
            gaps.append(Mismatch(name, apart, limit, optimized))
        return gaps

    def _idle(
        self, pair: "_Pair", tensors: tuple[str, ...], expected: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Tensors that the server's outputs do not depend on, as far as noise can show.

        A server that fails on noise depends on the tensor too.
        """
        feeds = self.inputs[0]
        computed = pair.device(feeds)
        rng = np.random.default_rng(0)
        idle = []
        for name in tensors:
            try:
                outputs = pair.server({**feeds, **computed, name: noise(computed[name], rng)})
            except OffloadError:
                continue
            if all(difference(expected[output], value) == 0 for output, value in outputs.items()):
                idle.append(name)
        return tuple(idle)


_DTYPES = {"float32": "float", "float64": "double", "float16": "float16"}


@dataclass(frozen=True)
class _Pair:
    """The device's and the server's part of a cut, loaded."""

    device: Runner
    server: Runner

    def run(self, feeds: Feeds) -> Mapping[str, Any]:
        """All outputs of both parts."""
        computed = self.device(feeds)
        return {**computed, **self.server({**feeds, **computed})}


def _groups(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Names in groups whose values take at most `_GROUP_BYTES`; larger values alone."""
    group: list[str] = []
    group_bytes = 0
    for name in names:
        value = values.get(name)
        size_bytes = value.nbytes if isinstance(value, np.ndarray) else 0
        if group and group_bytes + size_bytes > _GROUP_BYTES:
            yield tuple(group)
            group, group_bytes = [], 0
        group.append(name)
        group_bytes += size_bytes
    if group:
        yield tuple(group)


def noise(array: Array, rng: np.random.Generator) -> Array:
    """Random numbers of the same dtype, shape and range."""
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
