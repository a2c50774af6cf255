"""Find sizes by running the model: those that inference can't follow, and those of data."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from offload.bundle.extract import Part
from offload.bundle.shape_outputs import write_with_shapes
from offload.bundle.weights import write_part
from offload.cost.profile import Size
from offload.graph.elements import size_bytes
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

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
    with tempfile.TemporaryDirectory(prefix="offload-") as folder:
        path = Path(folder) / "shapes.onnx"
        outputs = write_with_shapes(model, names, path)
        engine = load(path, EngineOptions(optimize=False))
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
