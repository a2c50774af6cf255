"""Measure what each layer of a model costs on this machine."""

import hashlib
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload.cost.profile import LayerCost, Profile, load_profile
from offload.errors import InputError
from offload.graph.infer import Types, infer_types
from offload.graph.kernels import Kernel, kernel_layers, name_kernels
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.open_sizes import open_sizes
from offload.graph.read import infer_with, read_graph

from offload_runtimes.cache import cache_folder, kept
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.inspect import optimize_to, profile_nodes
from offload_runtimes.engine.values import DTYPES, Array
from offload_runtimes.planning.calibrate import (
    calibrated,
    divided,
    pieces,
    remarks,
    time_in_turns,
)
from offload_runtimes.planning.footprint import client_bytes
from offload_runtimes.planning.sizes import measured_sizes, shapes_by_running
from offload_runtimes.wire.codecs import reference_s

WARM_RUNS = 3
KERNEL_RUNS = 10
MAX_SECONDS_S = 15.0
_WHOLE = "whole"
_GUESSED = (
    "the size of {} tensors depends on data and was measured on a random input: give real ones"
    " with --calibration"
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model ready to be measured: its layers as the engine fuses them.

    Attributes:
        model: the loaded model; it must come from a file.
        graph: its layers.
        kernels: the nodes of the optimised graph.
        optimized: the optimised model file, in a folder that the caller owns.
    """

    model: Model
    graph: Graph
    kernels: tuple[Kernel, ...]
    optimized: Path


def read_fused(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    keep: frozenset[str] = frozenset(),
) -> Graph:
    """The model's layers as the engine fuses them; tensors in `keep` stay cuttable.

    Raises:
        InputError: the engine refuses the model, or `shapes` does not fit it.
    """
    with tempfile.TemporaryDirectory(prefix="offload-") as folder:
        return subject_of(model, Path(folder), shapes, keep).graph


def subject_of(
    model: Model,
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    keep: frozenset[str] = frozenset(),
) -> Subject:
    """Let the engine optimise a model into a folder and read its layers from the result.

    Raises:
        InputError: the engine refuses the model, or `shapes` does not fit it.
    """
    if model.path is None:
        raise InputError("the model must come from a file to be measured: save it first")
    optimized = folder / "optimized.onnx"
    optimize_to(model.path, optimized)
    kernels = name_kernels(optimized)
    surviving = frozenset(name for kernel in kernels for name in kernel.outputs) | keep
    types = infer_with(model, shapes)
    graph = read_graph(model, shapes, surviving, types)
    found = _found_by_running(model, graph, types)
    if found:
        types = infer_types(model.proto, model.wiring, model.directory, shapes, found)
        graph = read_graph(model, shapes, surviving, types)
    return Subject(model, graph, kernels, optimized)


def _found_by_running(model: Model, graph: Graph, types: Types) -> dict[str, Tensor]:
    """Types that follow from the inputs' sizes where inference can't follow; {}: none.

    Two random inputs are run: what differs between them depends on data.
    """
    names = types.unresolved()
    if not names:
        return {}
    try:
        return shapes_by_running(model, names, [sample_feeds(graph, seed) for seed in range(2)])
    except InputError:
        return {}  # no random input fits: the sizes stay unknown, and the work uncounted


def measure(
    subject: Subject,
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
        InputError: an input has a dynamic size that no shape was given for.
    """
    unknown = open_sizes(subject.model, subject.graph)
    if unknown and not feeds and not samples:
        raise InputError(unknown)
    given = dict(feeds or (samples[0] if samples else sample_feeds(subject.graph)))
    sizes = measured_sizes(subject.model, subject.graph, options, samples or [given])
    guessed = bool(sizes) and not samples and not feeds
    progress("timing its kernels")
    shares = _share(subject, options, given, min(runs, KERNEL_RUNS))
    progress("timing the whole model and parts of it")
    ranges = divided(subject.graph, shares)
    timed = _time_parts(subject, options, given, ranges, runs)
    whole = timed.pop(_WHOLE)
    whole_s = statistics.median(whole)
    pieces_s = [statistics.median(times) for times in timed.values()] or [whole_s]
    seconds, segment_s = calibrated(shares, whole_s, ranges, pieces_s)
    low, high = (float(np.quantile(whole, q)) / whole_s for q in (0.25, 0.75))
    return Profile(
        model=subject.graph.digest,
        machine=machine_name(),
        provider=options.providers[0] if options.providers else "cpu",
        threads=options.threads or 0,
        layers=tuple(
            LayerCost(layer.name, s, s * low, s * high)
            for layer, s in zip(subject.graph.layers, seconds, strict=True)
        ),
        whole_s=whole_s,
        runs=len(whole),
        remarks=(*remarks(whole), *([_GUESSED.format(len(sizes))] if guessed else ())),
        codec_s=reference_s(),
        segment_s=segment_s,
        client_bytes=client_bytes(options.threads),
        sizes=sizes,
    )


def _time_parts(
    subject: Subject,
    options: EngineOptions,
    feeds: Mapping[str, Array],
    ranges: Sequence[range],
    runs: int,
) -> dict[str, list[float]]:
    """Seconds of the whole model and of each of its pieces, in their order."""
    assert subject.model.path is not None
    engine = load(subject.model.path, options)
    with tempfile.TemporaryDirectory(prefix="offload-") as folder:
        parts = pieces(subject.model, subject.graph, ranges, Path(folder), options, feeds)
        work = {_WHOLE: lambda: engine.run(None, feeds), **parts}
        return time_in_turns(work, runs, MAX_SECONDS_S)


def _share(
    subject: Subject, options: EngineOptions, feeds: Mapping[str, Array], runs: int
) -> list[float]:
    """Kernel seconds summed by layer; a layer the engine folded away costs nothing."""
    owner = kernel_layers(subject.model, subject.graph, subject.kernels)
    seconds = [0.0] * len(subject.graph.layers)
    for kernel in profile_nodes(subject.optimized, feeds, options, runs=runs, warm_runs=WARM_RUNS):
        if kernel.name in owner:
            seconds[owner[kernel.name]] += kernel.seconds
    return seconds


def sample_feeds(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Random inputs of the graph's shapes: floats in 0..1, small integers, booleans.

    Raises:
        InputError: a size is dynamic and no shape was given for it, or the type isn't numeric.
    """
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        sizes = [size for size in tensor.shape or () if size is not None]
        if tensor.shape is None or len(sizes) < len(tensor.shape):
            shown = "x".join("?" if size is None else str(size) for size in tensor.shape or ("?",))
            raise InputError(
                f"input {name!r} has the dynamic shape {shown}: give its sizes,"
                f" like --shape {name}=1x3x224x224"
            )
        dtype = DTYPES.get(f"tensor({tensor.dtype})")
        if dtype is None or dtype == np.dtype(object):
            raise InputError(f"input {name!r} is a {tensor.dtype}: give sample inputs with --input")
        high = 1 if np.dtype(dtype).kind == "f" else 2
        feeds[name] = (random.random(sizes) * high).astype(dtype)
    return feeds


def machine_name() -> str:
    """A name for this machine that is stable between runs."""
    return f"{platform.node() or 'machine'}-{platform.machine()}-{os.cpu_count()}cpu"


def cached_profile(
    subject: Subject,
    options: EngineOptions,
    *,
    again: bool = False,
    samples: Sequence[Mapping[str, Array]] = (),
    runs: int = 20,
    progress: Progress = lambda _: None,
) -> Profile:
    """The profile of a model on this machine, measured once and kept in the user's cache.

    Args:
        subject: the model and its layers.
        options: how the runtime will run it.
        again: measure even when a table is there.
        samples: inputs that stand for those to come; they are measured on in any case.
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
        return measure(subject, options, samples=samples, runs=runs, progress=progress)

    path = cache_path(subject.graph, options)
    return kept(path, read, measured, again=again or bool(samples), progress=progress)


def cache_path(graph: Graph, options: EngineOptions) -> Path:
    """Where the table of a model on this machine is kept: one file a model, machine and setting."""
    shapes = [(name, graph.tensors[name].shape) for name in graph.inputs]
    setting = repr((machine_name(), options, shapes))
    name = f"{graph.digest[:16]}-{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    return cache_folder() / "profiles" / name
