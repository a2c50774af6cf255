"""Find sizes by running the model: those that inference can't follow, and those of data."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from offload.bundle.engine_input import with_shapes
from offload.costs.profile import Size
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.onnx_file import size_bytes

from offload_runtimes.engine import Array, EngineOptions, load_once
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


def shapes_by_running(
    model: Model, names: Sequence[str], samples: Sequence[Mapping[str, Array]]
) -> dict[str, Tensor]:
    """Types of inner tensors over a run for each sample; those that vary are left out.

    Only shapes leave the engine, so that no more is in memory than in any run.

    Args:
        model: the model.
        names: tensors that it makes.
        samples: inputs of the same sizes and of different numbers.

    Raises:
        InputError: the model refuses a sample.
    """
    with temporary_folder() as folder:
        source, outputs = with_shapes(model, names, folder / "shapes.onnx")
        engine = load_once(source, EngineOptions(optimize=False))
        asked = list(outputs.values())
        runs = [engine.run(asked, feeds) for feeds in samples]
    kinds = {value.name: value.type for value in engine.outputs}
    found = {}
    for name, shapes in zip(outputs, zip(*runs, strict=True), strict=True):
        kind = kinds[name]
        if kind.startswith("tensor(") and all(np.array_equal(s, shapes[0]) for s in shapes):
            dtype, shape = kind[len("tensor(") : -1], tuple(map(int, shapes[0]))
            found[name] = Tensor(name, dtype, shape, size_bytes(dtype, shape))
    return found
