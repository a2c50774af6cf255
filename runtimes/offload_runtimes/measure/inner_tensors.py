"""Run a model part by part to read its inner tensors and their sizes."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from offload.bundle.engine_input import part_input, with_shapes
from offload.bundle.subgraph import part_of
from offload.costs.profile import Size
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.onnx_types import size_bytes

from offload_runtimes.engine import Array, EngineOptions, load_once

Feeds = Mapping[str, Array]
# Bytes of tensors that one range computes, unless a single layer computes more.
RANGE_BYTES = 1 << 26
# Bytes held for later ranges, over all inputs that are run together.
_WAITING_BYTES = 1 << 27
# Bytes assumed for a tensor of unknown size.
_UNKNOWN_BYTES = 1 << 22


def inner_tensors(
    model: Model,
    graph: Graph,
    names: Sequence[str],
    feeds: Sequence[Feeds],
    options: EngineOptions,
    types: Mapping[str, Tensor] | None = None,
) -> Iterator[Mapping[str, Array]]:
    """Values of inner tensors, some of one input at a time; O(nodes) for each input.

    Each mapping is emptied when the next one is requested, so that its arrays are released.

    Args:
        model: the model.
        graph: its layers.
        names: tensors that layers compute.
        feeds: the inputs; each tensor is returned once for each of them.
        options: how onnxruntime runs.
        types: types of tensors that shape inference can't follow.

    Raises:
        InputError: the engine refuses a part, or an input.
    """
    requested = frozenset(names)
    last = {name: readers[-1] for name, readers in graph.consumers.items()}
    together = max(1, _WAITING_BYTES // max(1, _most_waiting_bytes(graph, last)))
    count = max((graph.producer[name] + 1 for name in requested), default=0)
    ranges = list(_ranges(graph, count, last, types or {}))
    for start in range(0, len(feeds), together):
        waiting = [dict(each) for each in feeds[start : start + together]]
        for layers in ranges:
            shown = [n for layer in layers for n in graph.layers[layer].outputs if n in requested]
            part = part_of(graph, layers, shown)
            with temporary_folder() as folder:
                source = part_input(model, part, folder / "part.onnx", types or {})
                engine = load_once(source, options)
            for values in waiting:
                arrays = engine.run(part.outputs, {name: values[name] for name in part.inputs})
                values.update(zip(part.outputs, arrays, strict=True))
                del arrays
                tensors = {name: values[name] for name in shown}
                for name in [n for n in values if last.get(n, -1) < layers.stop]:
                    del values[name]
                if tensors:  # their inputs are released by now
                    yield tensors
                tensors.clear()
            del engine


def _ranges(
    graph: Graph, count: int, last: Mapping[str, int], types: Mapping[str, Tensor]
) -> Iterator[range]:
    """The first `count` layers in ranges that compute about `RANGE_BYTES` each.

    A range ends only where the types of all values that later layers read are known.
    """
    start, range_bytes = 0, 0
    untyped: set[str] = set()
    for index in range(count):
        layer = graph.layers[index]
        layer_bytes = sum(_bytes(graph, name) for name in layer.outputs)
        if index > start and not untyped and range_bytes + layer_bytes > RANGE_BYTES:
            yield range(start, index)
            start, range_bytes = index, 0
        range_bytes += layer_bytes
        untyped |= {
            name
            for name in layer.outputs
            if name in last and (types.get(name) or graph.tensors[name]).dtype is None
        }
        untyped -= {name for name in layer.inputs if last[name] == index}
    if count > start:
        yield range(start, count)


def _most_waiting_bytes(graph: Graph, last: Mapping[str, int]) -> int:
    """The most bytes that are computed before some layer and read by it or a later one."""
    alive = sum(_bytes(graph, name) for name in graph.inputs)
    most = alive
    for index, layer in enumerate(graph.layers):
        alive += sum(_bytes(graph, name) for name in layer.outputs if name in last)
        most = max(most, alive)
        alive -= sum(_bytes(graph, name) for name in layer.inputs if last[name] == index)
    return most


def _bytes(graph: Graph, name: str) -> int:
    size_bytes = graph.tensors[name].size_bytes
    return _UNKNOWN_BYTES if size_bytes is None else size_bytes


def unsized(model: Model, graph: Graph) -> list[str]:
    """Tensors of numbers that layers compute whose size shape inference does not know."""
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
    sizes: dict[str, list[int]] = {}
    names = unsized(model, graph)
    if names:
        for values in inner_tensors(model, graph, names, samples, options, types):
            for name, array in values.items():
                sizes.setdefault(name, []).append(array.nbytes)
    return {
        name: Size(
            round(statistics.fmean(sizes[name])), round(float(np.quantile(sizes[name], 0.95)))
        )
        for name in names
    }


def shapes_by_running(
    model: Model, names: Sequence[str], samples: Sequence[Mapping[str, Array]]
) -> dict[str, Tensor]:
    """Types of inner tensors from a run of each sample; those that vary are left out.

    Only shapes leave the engine, so that it needs no more memory than any run.

    Args:
        model: the model.
        names: tensors that it computes.
        samples: inputs of the same sizes with different numbers.

    Raises:
        InputError: the model refuses a sample.
    """
    with temporary_folder() as folder:
        source, outputs = with_shapes(model, names, folder / "shapes.onnx")
        engine = load_once(source, EngineOptions(optimize=False))
        names_of_shapes = list(outputs.values())
        runs = [engine.run(names_of_shapes, feeds) for feeds in samples]
    kinds = {value.name: value.type for value in engine.outputs}
    tensors = {}
    for name, shapes in zip(outputs, zip(*runs, strict=True), strict=True):
        kind = kinds[name]
        if kind.startswith("tensor(") and all(np.array_equal(s, shapes[0]) for s in shapes):
            dtype, shape = kind[len("tensor(") : -1], tuple(map(int, shapes[0]))
            tensors[name] = Tensor(name, dtype, shape, size_bytes(dtype, shape))
    return tensors
