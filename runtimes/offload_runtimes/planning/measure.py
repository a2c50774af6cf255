"""Measure what each layer of a model costs on this machine."""

import hashlib
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import ModelInputs, draw
from offload.cost.profile import RANDOM_SIZES, LayerCost, Profile, load_profile
from offload.errors import InputError
from offload.graph.infer import Types, infer_types
from offload.graph.kernels import Kernel, kernel_layers, name_kernels, surviving_tensors
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.read import infer_with, read_graph

from offload_runtimes.cache import cache_folder, feeds_digest, kept
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.inspect import optimize_to, profile_nodes
from offload_runtimes.engine.values import Array
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

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model ready to be measured: its layers as the engine fuses them.

    Attributes:
        model: the loaded model; it must come from a file.
        graph: its layers.
        kernels: the nodes of the optimised graph.
        optimized: the optimised model file, in a folder that the caller owns.
        types: of the model's values, with the sizes that its layers were read with.
    """

    model: Model
    graph: Graph
    kernels: tuple[Kernel, ...]
    optimized: Path
    types: Types

    def broken_at(self, tensors: Iterable[str]) -> Graph:
        """The layers with those broken up that the engine fuses across given tensors."""
        kept = surviving_tensors(self.model, self.kernels) | frozenset(tensors)
        return read_graph(self.model, surviving=kept, types=self.types)

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
    surviving = surviving_tensors(model, kernels) | keep
    types = infer_with(model, shapes)
    graph = read_graph(model, shapes, surviving, types)
    found = _found_by_running(model, graph, types)
    if found:
        types = infer_types(model.proto, model.wiring, model.directory, shapes, found)
        graph = read_graph(model, shapes, surviving, types)
    return Subject(model, graph, kernels, optimized, types)


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
        InputError: an input leaves a size open that no shape was given for, or has a type for
            which no value can be drawn.
    """
    given = dict(feeds or (samples[0] if samples else draw(subject.inputs)))
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
        remarks=(*remarks(whole), *([RANDOM_SIZES] if guessed else ())),
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
    shares = kernel_layers(subject.model, subject.graph, subject.kernels)
    seconds = [0.0] * len(subject.graph.layers)
    for kernel in profile_nodes(subject.optimized, feeds, options, runs=runs, warm_runs=WARM_RUNS):
        for layer, share in shares.get(kernel.name, {}).items():
            seconds[layer] += share * kernel.seconds
    return seconds


def machine_name() -> str:
    """A name for this machine that is stable between runs."""
    return f"{platform.node() or 'machine'}-{platform.machine()}-{os.cpu_count()}cpu"


def cached_profile(
    subject: Subject,
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

    path = cache_path(subject.graph, options, [*([feeds] if feeds else []), *samples])
    return kept(path, read, measured, again=again, progress=progress)


def cache_path(
    graph: Graph, options: EngineOptions, inputs: Sequence[Mapping[str, Array]] = ()
) -> Path:
    """Where a profile is kept: one file for a model, machine, setting and inputs."""
    shapes = [(name, graph.tensors[name].shape) for name in graph.inputs]
    setting = repr((machine_name(), options, shapes)) + (feeds_digest(inputs) if inputs else "")
    name = f"{graph.digest[:16]}-{hashlib.sha256(setting.encode()).hexdigest()[:16]}.json"
    return cache_folder() / "profiles" / name
