"""Measure what each layer of a model costs on this machine."""

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from offload.bundle.boundary_ops import identity_model
from offload.bundle.engine_input import EngineInput, part_input, whole_input
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import ModelInputs, draw
from offload.bundle.subgraph import part_of
from offload.costs.encodings import TensorFormat
from offload.costs.profile import RANDOM_SIZES, LayerCost, Profile, load_profile
from offload.errors import InputError
from offload.files import temporary_folder
from offload.graph.engine_graph import Kernel, kernel_layers, name_kernels, surviving_tensors
from offload.graph.infer import Types, infer_types
from offload.graph.load import Model
from offload.graph.model import Graph, Layer, Tensor
from offload.graph.read import infer_with, read_graph
from offload.graph.value_index import function_key, functions_used, nested_nodes
from offload.planning.plan import Send
from offload.units import format_s

from offload_runtimes.engine import EngineOptions, kernel_options
from offload_runtimes.engine.values import Array
from offload_runtimes.measure import Progress
from offload_runtimes.measure.cache import cached, feeds_digest
from offload_runtimes.measure.calibrate import calibrated, divided, pieces, remarks
from offload_runtimes.measure.inner_tensors import measured_sizes, shapes_by_running
from offload_runtimes.measure.machine import THIS_MACHINE, Machine, TimedRun
from offload_runtimes.measure.timing import WARM_RUNS
from offload_runtimes.measure.verify import missing_types

_TINY_SHAPE = (1, 8)
KERNEL_RUNS = 10
# The engine's profiler keeps a million events, of kernels and others.
_MOST_EVENTS = 400_000
_LOOPS = frozenset(("Loop", "Scan", "SequenceMap"))
_LOOP_SECONDS_S = 5.0
MAX_SECONDS_S = 15.0
CHECK_RUNS = 5
_DRIFT = 0.2
_CALL_S = 1e-4
# In a model with more weights than this, large constants are not folded when its graph is read.
_FOLDED_BYTES = 1 << 26
_WHOLE = "whole"
# Integer inputs with at most this many elements may be flags, lengths or trip counts.
_SMALL_SIZE = 64


@dataclass(frozen=True)
class OptimizedModel:
    """A model as the engine optimises it, with its fused layers.

    Attributes:
        model: the loaded model; it must come from a file.
        graph: its layers.
        kernels: the nodes of the optimised graph.
        optimized: the optimised model, as an engine loads it; a file is in the caller's folder.
        types: of the model's values, with the sizes used to read its layers.
        counted: types by which the work of the layers is counted; None: `types`.
    """

    model: Model
    graph: Graph
    kernels: tuple[Kernel, ...]
    optimized: EngineInput
    types: Types
    counted: Types | None = None

    def broken_at(self, tensors: Iterable[str]) -> Graph:
        """The layers, without fusing across the given tensors."""
        cuttable = surviving_tensors(self.model, self.kernels) | frozenset(tensors)
        return read_graph(self.model, surviving=cuttable, types=self.types, counted=self.counted)

    def counted_on(self, feeds: Mapping[str, Array]) -> "OptimizedModel":
        """The same layers, with their work counted for one input.

        Sizes that depend on data, and the branches and steps that small inputs choose, are those
        of this input. Sizes that follow from the inputs' sizes alone become known for all inputs.

        Raises:
            InputError: the model refuses the input.
        """
        model = self.model
        arrays = {name: np.asarray(feeds[name]) for name in model.values.inputs if name in feeds}
        shapes = {name: array.shape for name, array in arrays.items()}
        numbers = {
            name: array
            for name, array in arrays.items()
            if array.dtype.kind in "biu" and array.size <= _SMALL_SIZE
        }
        names = self.types.unknown()
        by_running = shapes_by_running(model, names, [feeds]) if names else {}
        fixed = {n: by_running[n] for n in self.types.unresolved() if n in by_running}

        def inferred(
            tensors: Mapping[str, Tensor], numbers: Mapping[str, Array] | None = None
        ) -> Types:
            known = {**self.types.measured, **tensors}
            return infer_types(model.proto, model.values, model.weights, shapes, known, numbers)

        types = inferred(fixed) if fixed else self.types
        subject = replace(self, types=types, counted=inferred(by_running, numbers))
        return replace(subject, graph=subject.broken_at(()))

    @cached_property
    def inputs(self) -> ModelInputs:
        """The model's inputs, with the sizes used to read its layers."""
        return inputs_of(self.model, self.graph)


def read_fused(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    keep: frozenset[str] = frozenset(),
) -> Graph:
    """The model's layers as the engine fuses them; tensors in `keep` stay cuttable.

    Raises:
        InputError: the engine refuses the model, or `shapes` does not fit it.
    """
    with temporary_folder() as folder:
        return optimized_model(model, folder, shapes, keep).graph


def optimized_model(
    model: Model,
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    keep: frozenset[str] = frozenset(),
    machine: Machine = THIS_MACHINE,
) -> OptimizedModel:
    """Let the machine's engine optimise a model into a folder and read its layers from the result.

    Raises:
        InputError: the engine refuses the model, or `shapes` does not fit it.
    """
    if model.path is None:
        raise InputError("the model must come from a file to be measured: save it first")
    target = folder / "optimized.onnx"
    optimized, kernels = _optimized(model, whole_input(model), target, machine, EngineOptions())
    surviving = surviving_tensors(model, kernels) | keep
    types = infer_with(model, shapes)
    graph = read_graph(model, shapes, surviving, types)
    names = types.unresolved()
    if names:
        inputs, by_running = inputs_of(model, graph), {}
        # If no random input fits, the sizes stay unknown, and the work uncounted.
        with suppress(InputError):
            # A size that differs between two random inputs depends on data.
            by_running = shapes_by_running(model, names, [draw(inputs, seed) for seed in range(2)])
        if by_running:
            types = infer_types(model.proto, model.values, model.weights, shapes, by_running)
            graph = read_graph(model, shapes, surviving, types)
    return OptimizedModel(model, graph, kernels, optimized, types)


def _optimized(
    model: Model,
    source: EngineInput,
    target: Path,
    machine: Machine,
    options: EngineOptions,
) -> tuple[EngineInput, tuple[Kernel, ...]]:
    """A model or part as the engine optimises it, and its kernels with unique names."""
    unread_bytes = sum(extent.length_bytes for extent in model.weights.extents)
    fold_large = unread_bytes <= _FOLDED_BYTES
    machine.optimize_to(source, target, options, fold_large=fold_large)
    kernels = name_kernels(target)
    return (target.read_bytes() if isinstance(source, bytes) else target), kernels


def measure(
    subject: OptimizedModel,
    options: EngineOptions,
    *,
    feeds: Mapping[str, Array] | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
    runs: int = 20,
    progress: Progress = lambda _: None,
    machine: Machine = THIS_MACHINE,
) -> Profile:
    """Seconds per layer on a machine, and bytes of tensors whose size depends on data.

    The whole model and pieces of it are timed without a profiler, in turns, as the runtime runs
    them; ORT's profiler, which slows small kernels, only gives each layer's share of a piece.

    Args:
        subject: the model and its layers.
        options: how the runtime will run it.
        feeds: inputs to run on; the first of the samples or random ones by default.
        samples: representative inputs, to measure sizes on.
        runs: repeats; fewer when the model is slow (20 s in all at most).
        progress: called with a phrase before each step.
        machine: the machine to time on, which `subject` was optimised by.

    Raises:
        InputError: the size of an input is open and no shape was given, or no random value can be
            drawn for its type.
    """
    inputs = dict(feeds or (samples[0] if samples else draw(subject.inputs)))
    types = missing_types(subject.model, subject.graph)
    sizes = measured_sizes(subject.model, subject.graph, options, samples or [inputs], types)
    guessed = bool(sizes) and not samples and not feeds
    progress("timing its kernels")
    shares = _share(subject, options, inputs, min(runs, KERNEL_RUNS), types, machine)
    progress("timing the whole model and parts of it")
    ranges = divided(subject.graph, shares)

    with temporary_folder() as folder, machine.shared_memory() as arena:
        load = partial(machine.load, options=options, arena=arena)
        whole_model = load(whole_input(subject.model))
        provider = whole_model.providers[0]
        # From a model's second run on, the engine allocates the memory of a run as one block. The
        # whole model needs the largest block. It runs first, so that its pieces can reuse that.
        whole_model.keep(whole_model.outputs, inputs)
        work = {_WHOLE: TimedRun(whole_model, inputs)}
        del whole_model
        work |= pieces(subject.model, subject.graph, ranges, folder, load, inputs, types)
        seconds_of = machine.time_in_turns(work, runs, MAX_SECONDS_S)
        del work  # the models are gone before their memory is given back
    whole = seconds_of.pop(_WHOLE)
    whole_s = statistics.median(whole)
    pieces_s = [statistics.median(times) for times in seconds_of.values()] or [whole_s]
    seconds, segment_s = calibrated(shares, whole_s, ranges, pieces_s)
    low, high = (float(np.quantile(whole, q)) / whole_s for q in (0.25, 0.75))
    return Profile(
        model=subject.graph.digest,
        machine=machine.name,
        provider=provider,
        threads=options.threads or 0,
        layers=tuple(
            LayerCost(layer.name, s, s * low, s * high)
            for layer, s in zip(subject.graph.layers, seconds, strict=True)
        ),
        whole_s=whole_s,
        runs=len(whole),
        remarks=(*remarks(whole), *([RANDOM_SIZES] if guessed else ())),
        codec_s=machine.codec_s(),
        segment_s=segment_s,
        client_bytes=machine.client_bytes(tiny_model(), options.threads),
        sizes=sizes,
    )


def _share(
    subject: OptimizedModel,
    options: EngineOptions,
    feeds: Mapping[str, Array],
    runs: int,
    types: Mapping[str, Tensor],
    machine: Machine,
) -> list[float]:
    """Kernel seconds summed by layer; a layer that the engine folded away costs nothing.

    A layer with a loop is timed by the clock, on its own: the profiler would write an event
    for each kernel of each step, and its own cost would be counted as the loop's. The layers
    between them are profiled as parts.

    A provider that is not the CPU fuses in its own way, so its own graph is profiled.
    """
    model, graph = subject.model, subject.graph
    kernels_on = kernel_options(options)
    seconds = [0.0] * len(graph.layers)
    loops = [index for index, layer in enumerate(graph.layers) if _has_loop(model, layer)]
    add = partial(_add_kernels, seconds, subject, kernels_on, runs, machine)
    if not loops:
        if kernels_on.on_cpu:
            add(subject.optimized, subject.kernels, feeds)
        else:
            with temporary_folder() as folder:
                source, target = whole_input(model), folder / "optimized.onnx"
                add(*_optimized(model, source, target, machine, kernels_on), feeds)
        return seconds
    edges = sorted({0, len(graph.layers), *loops, *(index + 1 for index in loops)})
    values = dict(feeds)
    for layers in (range(start, end) for start, end in pairwise(edges)):
        part = part_of(graph, layers)
        needed = {name: values[name] for name in part.inputs}
        with temporary_folder() as folder:
            source = part_input(model, part, folder / "part.onnx", types)
            loaded = machine.load(source, options, once=layers.start not in loops)
            outputs = loaded.keep(part.outputs, needed)
            if layers.start in loops:
                work = {"": TimedRun(loaded, needed)}
                times = machine.time_in_turns(work, runs, _LOOP_SECONDS_S)[""]
                seconds[layers.start] = statistics.median(times)
            else:
                target = folder / "optimized.onnx"
                add(*_optimized(model, source, target, machine, kernels_on), needed)
        values.update(zip(part.outputs, outputs, strict=True))
    return seconds


def _add_kernels(
    seconds: list[float],
    subject: OptimizedModel,
    options: EngineOptions,
    runs: int,
    machine: Machine,
    optimized: EngineInput,
    kernels: tuple[Kernel, ...],
    feeds: Mapping[str, Array],
) -> None:
    """Profile an optimised model and add its kernels' seconds to their layers."""
    shares = kernel_layers(subject.model, subject.graph, kernels)
    runs = max(1, min(runs, _MOST_EVENTS // max(1, len(kernels)) - WARM_RUNS))
    kernel_s = machine.profile_nodes(optimized, feeds, options, runs, WARM_RUNS)
    for name, node_s in kernel_s.items():
        for layer, share in shares.get(name, {}).items():
            seconds[layer] += share * node_s


@cache
def tiny_model() -> bytes:
    """A model that a client loads to show how much memory it takes besides."""
    return identity_model(Send("t", None, TensorFormat.HALF.value), _TINY_SHAPE).SerializeToString()


def _has_loop(model: Model, layer: Layer) -> bool:
    """Whether a layer has a node that runs others repeatedly, at any depth."""
    nodes = [model.proto.graph.node[index] for index in layer.nodes]
    called = functions_used(model.proto, iter(nodes))
    nodes += [n for f in model.proto.functions if function_key(f) in called for n in f.node]
    return any(inner.op_type in _LOOPS for node in nodes for inner in nested_nodes(node))


def cached_profile(
    subject: OptimizedModel,
    options: EngineOptions,
    *,
    again: bool = False,
    feeds: Mapping[str, Array] | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
    runs: int = 20,
    progress: Progress = lambda _: None,
    machine: Machine = THIS_MACHINE,
) -> Profile:
    """The profile of a model on a machine, measured once and kept in the user's cache.

    With inputs, their digest is part of the cache's key.

    Args:
        subject: the model and its layers.
        options: how the runtime will run it.
        again: measure even when the cache has a profile.
        feeds: inputs to time on; the first of the samples or random ones by default.
        samples: representative inputs, to measure sizes on.
        runs: repeats when measuring.
        progress: called with a phrase before each step.

    Raises:
        InputError: as `measure`.
    """

    def read(path: Path) -> Profile:
        profile = load_profile(path)
        profile.costs_of(subject.graph)  # InputError if it does not fit
        return profile

    def measured() -> Profile:
        return measure(
            subject,
            options,
            feeds=feeds,
            samples=samples,
            runs=runs,
            progress=progress,
            machine=machine,
        )

    def outdated(known: Profile) -> str:
        progress("checking the cached profile against the model's speed now")
        inputs = dict(feeds or (samples[0] if samples else draw(subject.inputs)))
        work = {_WHOLE: TimedRun(machine.load(whole_input(subject.model), options), inputs)}
        times = machine.time_in_turns(work, CHECK_RUNS, MAX_SECONDS_S)[_WHOLE]
        return drift(known.whole_s, statistics.median(times))

    inputs = [*([feeds] if feeds else []), *samples]
    path = cache_path(subject.graph, options, inputs, machine.name)
    return cached(path, read, measured, again=again, progress=progress, outdated=outdated)


def drift(cached_s: float, now_s: float) -> str:
    """How the seconds of a cached profile differ from those of a run now; empty: they agree.

    They agree within 20 %, or within the variation of an engine's call.
    """
    if abs(now_s - cached_s) <= max(_DRIFT * cached_s, _CALL_S):
        return ""
    return f"a run took {format_s(cached_s)} then and takes {format_s(now_s)} now"


def cache_path(
    graph: Graph,
    options: EngineOptions,
    inputs: Sequence[Mapping[str, Array]] = (),
    machine: str = "",
) -> Path:
    """The cache's file for a profile: one a model, machine, options and inputs."""
    shapes = [(name, graph.tensors[name].shape) for name in graph.inputs]
    setting = repr((machine or THIS_MACHINE.name, options, shapes)) + (
        feeds_digest(inputs) if inputs else ""
    )
    name = f"{graph.digest[:16]}-{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    return Path("profiles") / name
