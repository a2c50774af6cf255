"""Run a model part by part to look at its inner tensors, a bounded number of bytes at a time.

The model runs as consecutive ranges of its layers. Each range is loaded, gives the tensors asked
for as outputs, and is released before the next: memory holds the weights of one range, the
tensors of one range, and what later ranges still need. Each layer runs once for each input.
"""

from collections.abc import Iterator, Mapping, Sequence

from offload.bundle.engine_input import part_input
from offload.bundle.subgraph import part_of
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

from offload_runtimes.engine import Array, EngineOptions, load_once

Feeds = Mapping[str, Array]
# Bytes of tensors that one range makes, unless a single layer makes more.
RANGE_BYTES = 1 << 26
# Bytes that wait for later ranges, over all inputs that are run together.
_WAITING_BYTES = 1 << 27
# A tensor of unknown size is taken to have so many bytes.
_UNKNOWN_BYTES = 1 << 22


def inner_tensors(
    model: Model,
    graph: Graph,
    names: Sequence[str],
    feeds: Sequence[Feeds],
    options: EngineOptions,
    types: Mapping[str, Tensor] | None = None,
) -> Iterator[Mapping[str, Array]]:
    """Values of tensors that layers make, some of one input at a time; O(nodes) for each input.

    Each mapping is emptied when the next one is asked for, so that its arrays are released.

    Args:
        model: the model.
        graph: its layers.
        names: tensors that layers make.
        feeds: the inputs; each tensor comes once for each of them.
        options: how onnxruntime runs.
        types: types of tensors that shape inference can't follow.

    Raises:
        InputError: the engine refuses a part, or an input.
    """
    wanted = frozenset(names)
    last = {name: readers[-1] for name, readers in graph.consumers.items()}
    together = max(1, _WAITING_BYTES // max(1, _most_waiting_bytes(graph, last)))
    count = max((graph.producer[name] + 1 for name in wanted), default=0)
    ranges = list(_ranges(graph, count, last, types or {}))
    for start in range(0, len(feeds), together):
        waiting = [dict(each) for each in feeds[start : start + together]]
        for layers in ranges:
            shown = [n for layer in layers for n in graph.layers[layer].outputs if n in wanted]
            part = part_of(graph, layers, shown)
            with temporary_folder() as folder:
                source = part_input(model, part, folder / "part.onnx", types or {})
                engine = load_once(source, options)
            for values in waiting:
                arrays = engine.run(part.outputs, {name: values[name] for name in part.inputs})
                values.update(zip(part.outputs, arrays, strict=True))
                del arrays
                found = {name: values[name] for name in shown}
                for name in [n for n in values if last.get(n, -1) < layers.stop]:
                    del values[name]
                if found:  # what it was made from is gone by now
                    yield found
                found.clear()
            del engine


def _ranges(
    graph: Graph, count: int, last: Mapping[str, int], types: Mapping[str, Tensor]
) -> Iterator[range]:
    """The first `count` layers in ranges that make about `RANGE_BYTES` each.

    A range ends only where the types of all values that later layers read are known.
    """
    start, held_bytes = 0, 0
    untyped: set[str] = set()
    for index in range(count):
        layer = graph.layers[index]
        made_bytes = sum(_bytes(graph, name) for name in layer.outputs)
        if index > start and not untyped and held_bytes + made_bytes > RANGE_BYTES:
            yield range(start, index)
            start, held_bytes = index, 0
        held_bytes += made_bytes
        untyped |= {
            name
            for name in layer.outputs
            if name in last and (types.get(name) or graph.tensors[name]).dtype is None
        }
        untyped -= {name for name in layer.inputs if last[name] == index}
    if count > start:
        yield range(start, count)


def _most_waiting_bytes(graph: Graph, last: Mapping[str, int]) -> int:
    """The most bytes that are made before some layer and read by it or a later one."""
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
