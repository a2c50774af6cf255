"""Measure what each layer of a model costs on this machine."""

import hashlib
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from offload.bundle.boundary_ops import identity_model
from offload.bundle.engine_input import EngineInput, part_input, whole_input
from offload.bundle.sample_inputs import ModelInputs, draw, inputs_of
from offload.bundle.subgraph import part_of
from offload.costs.encodings import TensorFormat
from offload.costs.profile import RANDOM_SIZES, LayerCost, Profile, load_profile
from offload.errors import InputError, OffloadError
from offload.files import temporary_folder
from offload.graph.engine_graph import Kernel, kernel_layers, name_kernels, surviving_tensors
from offload.graph.infer import Types, infer_types
from offload.graph.load import Model
from offload.graph.model import Graph, Layer, Tensor
from offload.graph.read import infer_with, read_graph
from offload.graph.value_index import function_key, functions_used, nested_nodes
from offload.planning.plan import Send
from offload.units import format_s

from offload_runtimes.engine import (
    Arena,
    Engine,
    EngineOptions,
    load,
    load_once,
    shared_arena,
    short_name,
)
from offload_runtimes.engine.profiling import optimize_to, profile_nodes
from offload_runtimes.engine.values import Array
from offload_runtimes.measure import Progress
from offload_runtimes.measure.cache import cached, feeds_digest
from offload_runtimes.measure.calibrate import calibrated, divided, pieces, remarks, time_in_turns
from offload_runtimes.measure.inner_tensors import measured_sizes, shapes_by_running
from offload_runtimes.measure.verify import missing_types
from offload_runtimes.protocol.codecs import reference_s

_TINY_SHAPE = (1, 8)
_TIMEOUT_S = 60.0
# A process of its own, with all that an inference touches: engine, connection, threads.
_CLIENT = """
import sys
from pathlib import Path
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.measure.probe import probe
load(sys.stdin.buffer.read(), EngineOptions(threads=int(sys.argv[2]) or None)).warm()
probe(sys.argv[1], sizes_bytes=[1000], repeats=1)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status.get("VmHWM", status["VmRSS"]).split()[0]) * 1024)
"""


@cache
def client_bytes(threads: int | None = None) -> int | None:
    """Peak resident bytes of a client that runs a tiny model and talks to a server.

    None where that cannot be measured (no Linux, no loopback, no second process).
    """
    from offload_runtimes.server import Server  # here: planning starts without gRPC

    model = identity_model(
        Send("t", None, TensorFormat.HALF.value), _TINY_SHAPE
    ).SerializeToString()
    try:
        with Server([]) as server:
            command = [sys.executable, "-c", _CLIENT, server.address, str(threads or 0)]
            done = subprocess.run(
                command, input=model, capture_output=True, check=True, timeout=_TIMEOUT_S
            )
            return int(done.stdout)
    except (OffloadError, OSError, subprocess.SubprocessError, ValueError):
        return None


WARM_RUNS = 3
KERNEL_RUNS = 10
# The engine's profiler keeps a million events, of kernels and of other things.
_MOST_EVENTS = 400_000
_LOOPS = frozenset(("Loop", "Scan", "SequenceMap"))
_LOOP_SECONDS_S = 5.0
MAX_SECONDS_S = 15.0
CHECK_RUNS = 5
_DRIFT = 0.2
_CALL_S = 1e-4
# Of a model with more weights than this, the engine computes no large ones from others just to
# show its graph.
_FOLDED_BYTES = 1 << 26
_WHOLE = "whole"
# Inputs of so few whole numbers may be flags, lengths or trip counts.
_SMALL_SIZE = 64


@dataclass(frozen=True)
class OptimizedModel:
    """A model ready to be measured: its layers as the engine fuses them.

    Attributes:
        model: the loaded model; it must come from a file.
        graph: its layers.
        kernels: the nodes of the optimised graph.
        optimized: the optimised model, as an engine loads it; a file is in a folder that the
            caller owns.
        types: of the model's values, with the sizes that its layers were read with.
        counted: what the work of the layers is counted by; None: `types`.
    """

    model: Model
    graph: Graph
    kernels: tuple[Kernel, ...]
    optimized: EngineInput
    types: Types
    counted: Types | None = None

    def broken_at(self, tensors: Iterable[str]) -> Graph:
        """The layers with those broken up that the engine fuses across given tensors."""
        cached = surviving_tensors(self.model, self.kernels) | frozenset(tensors)
        return read_graph(self.model, surviving=cached, types=self.types, counted=self.counted)

    def counted_on(self, feeds: Mapping[str, Array]) -> "OptimizedModel":
        """The same layers, their work counted as one input makes it.

        Sizes that depend on data, and the branches and steps that small inputs choose, are those
        of this input. What follows from the inputs' sizes alone becomes known for all inputs.

        Raises:
            InputError: the model refuses the input.
        """
        model = self.model
        given = {name: np.asarray(feeds[name]) for name in model.values.inputs if name in feeds}
        shapes = {name: array.shape for name, array in given.items()}
        numbers = {
            name: array
            for name, array in given.items()
            if array.dtype.kind in "biu" and array.size <= _SMALL_SIZE
        }
        names = self.types.unknown()
        found = shapes_by_running(model, names, [feeds]) if names else {}
        fixed = {name: found[name] for name in self.types.unresolved() if name in found}

        def inferred(
            tensors: Mapping[str, Tensor], numbers: Mapping[str, Array] | None = None
        ) -> Types:
            known = {**self.types.measured, **tensors}
            return infer_types(model.proto, model.values, model.weights, shapes, known, numbers)

        types = inferred(fixed) if fixed else self.types
        subject = replace(self, types=types, counted=inferred(found, numbers))
        return replace(subject, graph=subject.broken_at(()))

    @cached_property
    def inputs(self) -> ModelInputs:
        """What the model takes, with the sizes that its layers were read with."""
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
) -> OptimizedModel:
    """Let the engine optimise a model into a folder and read its layers from the result.

    Raises:
        InputError: the engine refuses the model, or `shapes` does not fit it.
    """
    if model.path is None:
        raise InputError("the model must come from a file to be measured: save it first")
    optimized, kernels = _optimized(model, whole_input(model), folder / "optimized.onnx")
    surviving = surviving_tensors(model, kernels) | keep
    types = infer_with(model, shapes)
    graph = read_graph(model, shapes, surviving, types)
    found = _found_by_running(model, graph, types)
    if found:
        types = infer_types(model.proto, model.values, model.weights, shapes, found)
        graph = read_graph(model, shapes, surviving, types)
    return OptimizedModel(model, graph, kernels, optimized, types)


def _found_by_running(model: Model, graph: Graph, types: Types) -> dict[str, Tensor]:
    """Types that follow from the inputs' sizes where inference can't follow; {}: none.

    Two random inputs are run: what differs between them depends on data.
    """
    names = types.unresolved()
    if not names:
        return {}
    inputs = inputs_of(model, graph)
    try:
        return shapes_by_running(model, names, [draw(inputs, seed) for seed in range(2)])
    except InputError:
        return {}  # no random input fits: the sizes stay unknown, and the work uncounted


def _optimized(
    model: Model, source: EngineInput, target: Path
) -> tuple[EngineInput, tuple[Kernel, ...]]:
    """A model, or a part of it, as the engine optimises it, and its kernels by unique names."""
    unread_bytes = sum(extent.length_bytes for extent in model.weights.extents)
    optimize_to(source, target, fold_large=unread_bytes <= _FOLDED_BYTES)
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
) -> Profile:
    """Seconds per layer on this machine, and bytes of tensors whose size depends on data.

    The whole model and the pieces it falls into are timed undisturbed, in turns, as the runtime
    runs them; ORT's profiler, which slows small kernels, only says how a piece's time is shared
    among its layers.

    Args:
        subject: the model and its layers.
        options: how the runtime will run it.
        feeds: inputs to run on; the first of the samples or random ones by default.
        samples: inputs that stand for those to come, to measure sizes on.
        runs: repeats; fewer when the model is slow (20 s in all at most).
        progress: called with a phrase before each step.

    Raises:
        InputError: an input leaves a size open that no shape was given for, or has a type for
            which no value can be drawn.
    """
    given = dict(feeds or (samples[0] if samples else draw(subject.inputs)))
    types = missing_types(subject.model, subject.graph)
    sizes = measured_sizes(subject.model, subject.graph, options, samples or [given], types)
    guessed = bool(sizes) and not samples and not feeds
    progress("timing its kernels")
    shares = _share(subject, options, given, min(runs, KERNEL_RUNS), types)
    progress("timing the whole model and parts of it")
    ranges = divided(subject.graph, shares)
    timed, provider = _time_parts(subject, options, given, ranges, runs, types)
    whole = timed.pop(_WHOLE)
    whole_s = statistics.median(whole)
    pieces_s = [statistics.median(times) for times in timed.values()] or [whole_s]
    seconds, segment_s = calibrated(shares, whole_s, ranges, pieces_s)
    low, high = (float(np.quantile(whole, q)) / whole_s for q in (0.25, 0.75))
    return Profile(
        model=subject.graph.digest,
        machine=machine_name(),
        provider=provider,
        threads=options.threads or 0,
        layers=tuple(
            LayerCost(layer.name, s, s * low, s * high)
            for layer, s in zip(subject.graph.layers, seconds, strict=True)
        ),
        whole_s=whole_s,
        runs=len(whole),
        remarks=(*remarks(whole), *([RANDOM_SIZES] if guessed else ())),
        codec_s=reference_s(),
        segment_s=segment_s,
        client_bytes=client_bytes(options.threads),
        sizes=sizes,
    )


def _time_parts(
    subject: OptimizedModel,
    options: EngineOptions,
    feeds: Mapping[str, Array],
    ranges: Sequence[range],
    runs: int,
    types: Mapping[str, Tensor],
) -> tuple[dict[str, list[float]], str]:
    """Seconds of the whole model and of each of its pieces, in their order; the provider used.

    They take their memory from one arena: of all that are loaded, only one runs at a time.
    """
    model, graph = subject.model, subject.graph

    def timed(folder: Path, arena: Arena | None) -> tuple[dict[str, list[float]], str]:
        engine = load(whole_input(model), options, arena)
        parts = pieces(model, graph, ranges, folder, options, feeds, types, arena)
        work = {_WHOLE: lambda: engine.run(None, feeds), **parts}
        return time_in_turns(work, runs, MAX_SECONDS_S), short_name(engine.providers[0])

    with temporary_folder() as folder, shared_arena() as arena:
        return timed(folder, arena)  # what it loaded is gone before the arena is swept


def _share(
    subject: OptimizedModel,
    options: EngineOptions,
    feeds: Mapping[str, Array],
    runs: int,
    types: Mapping[str, Tensor],
) -> list[float]:
    """Kernel seconds summed by layer; a layer the engine folded away costs nothing.

    Layers with loops are timed by the clock, each on its own: the profiler would write an event
    for each kernel of each step, and its own cost would be counted as the loop's. The layers
    between them are profiled as parts.
    """
    model, graph = subject.model, subject.graph
    seconds = [0.0] * len(graph.layers)
    loops = [index for index, layer in enumerate(graph.layers) if _loops(model, layer)]
    if not loops:
        _add_kernels(seconds, subject, subject.optimized, subject.kernels, feeds, options, runs)
        return seconds
    edges = sorted({0, len(graph.layers), *loops, *(index + 1 for index in loops)})
    values = dict(feeds)
    for layers in (range(start, end) for start, end in pairwise(edges)):
        part = part_of(graph, layers)
        needed = {name: values[name] for name in part.inputs}
        with temporary_folder() as folder:
            source = part_input(model, part, folder / "part.onnx", types)
            engine = (load if layers.start in loops else load_once)(source, options)
            made = engine.run(part.outputs, needed)
            if layers.start in loops:
                seconds[layers.start] = _clocked(engine, needed, runs)
            else:
                optimized, kernels = _optimized(model, source, folder / "optimized.onnx")
                _add_kernels(seconds, subject, optimized, kernels, needed, options, runs)
        values.update(zip(part.outputs, made, strict=True))
    return seconds


def _add_kernels(
    seconds: list[float],
    subject: OptimizedModel,
    optimized: EngineInput,
    kernels: tuple[Kernel, ...],
    feeds: Mapping[str, Array],
    options: EngineOptions,
    runs: int,
) -> None:
    """Profile an optimised model and add its kernels' seconds to their layers."""
    shares = kernel_layers(subject.model, subject.graph, kernels)
    runs = max(1, min(runs, _MOST_EVENTS // max(1, len(kernels)) - WARM_RUNS))
    for kernel in profile_nodes(optimized, feeds, options, runs=runs, warm_runs=WARM_RUNS):
        for layer, share in shares.get(kernel.name, {}).items():
            seconds[layer] += share * kernel.seconds


def _clocked(engine: Engine, feeds: Mapping[str, Array], runs: int) -> float:
    """Median seconds of a run that is not the first; fewer runs where they are slow."""
    times = time_in_turns({"": lambda: engine.run(None, feeds)}, runs, _LOOP_SECONDS_S)[""]
    return statistics.median(times)


def _loops(model: Model, layer: Layer) -> bool:
    """Whether a layer has a node that runs others again and again, at any depth."""
    nodes = [model.proto.graph.node[index] for index in layer.nodes]
    called = functions_used(model.proto, iter(nodes))
    nodes += [n for f in model.proto.functions if function_key(f) in called for n in f.node]
    return any(inner.op_type in _LOOPS for node in nodes for inner in nested_nodes(node))


def machine_name() -> str:
    """A name for this machine that is stable between runs."""
    return f"{platform.node() or 'machine'}-{platform.machine()}-{os.cpu_count()}cpu"


def cached_profile(
    subject: OptimizedModel,
    options: EngineOptions,
    *,
    again: bool = False,
    feeds: Mapping[str, Array] | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
    runs: int = 20,
    progress: Progress = lambda _: None,
) -> Profile:
    """The profile of a model on this machine, measured once and kept in the user's cache.

    With inputs it is kept by their digest too.

    Args:
        subject: the model and its layers.
        options: how the runtime will run it.
        again: measure even when a table is there.
        feeds: inputs to time on; the first of the samples or random ones by default.
        samples: inputs that stand for those to come, to measure sizes on.
        runs: repeats when measuring.
        progress: called with a phrase before each step.

    Raises:
        InputError: as `measure`.
    """

    def read(path: Path) -> Profile:
        found = load_profile(path)
        found.costs_of(subject.graph)
        return found

    def measured() -> Profile:
        return measure(subject, options, feeds=feeds, samples=samples, runs=runs, progress=progress)

    def outdated(known: Profile) -> str:
        progress("checking the kept profile against the model's speed now")
        given = dict(feeds or (samples[0] if samples else draw(subject.inputs)))
        engine = load(whole_input(subject.model), options)
        work = {_WHOLE: lambda: engine.run(None, given)}
        times = time_in_turns(work, CHECK_RUNS, MAX_SECONDS_S)[_WHOLE]
        return drift(known.whole_s, statistics.median(times))

    path = cache_path(subject.graph, options, [*([feeds] if feeds else []), *samples])
    return cached(path, read, measured, again=again, progress=progress, outdated=outdated)


def drift(kept_s: float, now_s: float) -> str:
    """How the seconds of a kept profile differ from what a run takes now; empty: they agree.

    They agree within 20 %, or within what a call of the engine varies by.
    """
    if abs(now_s - kept_s) <= max(_DRIFT * kept_s, _CALL_S):
        return ""
    return f"a run took {format_s(kept_s)} then and takes {format_s(now_s)} now"


def cache_path(
    graph: Graph, options: EngineOptions, inputs: Sequence[Mapping[str, Array]] = ()
) -> Path:
    """The cache's file for a profile: one a model, machine, setting and inputs."""
    shapes = [(name, graph.tensors[name].shape) for name in graph.inputs]
    setting = repr((machine_name(), options, shapes)) + (feeds_digest(inputs) if inputs else "")
    name = f"{graph.digest[:16]}-{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    return Path("profiles") / name
