"""Measure the tensors whose size depends on data: what they took on sample inputs."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from offload.cost.profile import Size
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

from offload_runtimes.engine import Array, EngineOptions
from offload_runtimes.planning.inner_tensors import inner_tensors


def unsized(model: Model, graph: Graph) -> list[str]:
    """Tensors of numbers that layers make, of a size that shape inference cannot tell."""
    return [
        name
        for name in graph.producer
        if graph.tensors[name].size_bytes is None and model.types.can_cross(name)
    ]


def measured_sizes(
    model: Model,
    graph: Graph,
    options: EngineOptions,
    samples: Sequence[Mapping[str, Array]],
    types: Mapping[str, Tensor] | None = None,
) -> dict[str, Size]:
    """Bytes of every unsized tensor over sample inputs; {} for models without any.

    Raises:
        InputError: the model refuses a sample.
    """
    found: dict[str, list[int]] = {}
    names = unsized(model, graph)
    if names:
        for values in inner_tensors(model, graph, names, samples, options, types):
            for name, array in values.items():
                found.setdefault(name, []).append(array.nbytes)
    return {name: _size(found[name]) for name in names}


def _size(sizes: Sequence[int]) -> Size:
    return Size(round(statistics.fmean(sizes)), round(float(np.quantile(sizes, 0.95))))
