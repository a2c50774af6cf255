"""Measure the tensors whose size depends on data: what they took on sample inputs."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from offload.bundle.extract import Part
from offload.bundle.weights import write_part
from offload.cost.profile import Size
from offload.graph.load import Model
from offload.graph.model import Graph

from offload_runtimes.engine import Array, EngineOptions, load

# Tensors that are looked at in one run of the model; they are in memory together.
_TOGETHER = 50


def unsized(model: Model, graph: Graph) -> list[str]:
    """Tensors of numbers that layers make, of a size that shape inference cannot tell."""
    return [
        name
        for name in graph.producer
        if graph.tensors[name].size_bytes is None and model.types.can_cross(name)
    ]


def measured_sizes(
    model: Model, graph: Graph, options: EngineOptions, samples: Sequence[Mapping[str, Array]]
) -> dict[str, Size]:
    """Bytes of every unsized tensor over sample inputs; {} for models without any.

    One run of the model for each sample and 50 tensors.

    Raises:
        InputError: the model refuses a sample.
    """
    found: dict[str, Size] = {}
    names = unsized(model, graph)
    for start in range(0, len(names), _TOGETHER):
        group = names[start : start + _TOGETHER]
        for name, sizes in zip(
            group, _bytes_of(model, graph, group, options, samples), strict=True
        ):
            p95 = round(float(np.quantile(sizes, 0.95)))
            found[name] = Size(round(statistics.fmean(sizes)), p95)
    return found


def _bytes_of(
    model: Model,
    graph: Graph,
    names: Sequence[str],
    options: EngineOptions,
    samples: Sequence[Mapping[str, Array]],
) -> Iterator[tuple[int, ...]]:
    """By tensor, its bytes on each sample."""
    nodes = tuple(sorted(node for layer in graph.layers for node in layer.nodes))
    with tempfile.TemporaryDirectory(prefix="offload-") as folder:
        path = Path(folder) / "exposed.onnx"
        write_part(model, Part(nodes, graph.inputs, tuple(names)), path)
        engine = load(path, options)
    rows = [[array.nbytes for array in engine.run(names, feeds)] for feeds in samples]
    return zip(*rows, strict=True)
