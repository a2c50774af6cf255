"""Read a loaded ONNX model into a graph of layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import NodeProto

from offload.graph.flops import node_flops
from offload.graph.group import grouped
from offload.graph.infer import Types, infer_types
from offload.graph.load import Model
from offload.graph.model import Graph, Layer, Tensor

# Integers this few are shape arithmetic: a kernel of their own wherever they are made.
_SHAPE_BYTES = 512
_LONGEST_OP = 8


def read_graph(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    surviving: frozenset[str] | None = None,
) -> Graph:
    """Read a model into layers in topological order; O((V + E) log V).

    Each node that the outputs need is in exactly one layer, but for constant nodes, which are
    in none. A value that cannot cross a link (sequence, map, optional, string) keeps its maker
    and its readers in one layer.

    Args:
        model: from `load_model`.
        shapes: sizes for graph inputs with dynamic dimensions, by input name. Inputs that
            share a named dimension are bound together.
        surviving: names of the tensors that exist after the engine's own fusions; nodes whose
            values don't are put in one layer with their consumers. None: every node is a layer.

    Raises:
        InputError: `shapes` names no input of the model, or contradicts it.
    """
    types = model.types
    if shapes:
        types = infer_types(model.proto, model.wiring, model.weights, shapes)
    live = _Live.of(model)
    pairs = [
        (node, reader)
        for node in live.order
        for name in live.makes[node]
        if not _may_cut(types, name, live, surviving)
        for reader in live.readers.get(name, ())
    ]
    groups = grouped(live.order, live.edges, pairs)
    tensors: dict[str, Tensor] = {}
    layers = tuple(_layers(model, types, live, groups, tensors))
    for name in (*model.wiring.inputs, *model.wiring.outputs):
        tensors.setdefault(name, types.tensor(name))
    return Graph(
        name=model.name,
        digest=model.digest,
        inputs=tuple(model.wiring.inputs),
        outputs=tuple(model.wiring.outputs),
        layers=layers,
        tensors=tensors,
    )


@dataclass(frozen=True, slots=True)
class _Live:
    """The nodes that become layers, and the values that pass between them.

    Attributes:
        order: node indexes, topological.
        makes: for each node, the outputs that somebody needs.
        readers: for each value, the nodes that need it.
        edges: for each node, the nodes that need one of its outputs.
        returned: names of the graph's outputs.
    """

    order: tuple[int, ...]
    makes: Mapping[int, tuple[str, ...]]
    readers: Mapping[str, list[int]]
    edges: Mapping[int, list[int]]
    returned: frozenset[str]

    @classmethod
    def of(cls, model: Model) -> "_Live":
        wiring = model.wiring
        returned = frozenset(wiring.outputs)
        wanted, alive = set(returned), []
        for index in reversed(wiring.order):
            made = wiring.makes[index]
            if index not in wiring.constant and not wanted.isdisjoint(made):
                alive.append(index)
                wanted.update(wiring.reads[index])
        order = tuple(reversed(alive))
        readers: dict[str, list[int]] = {}
        for index in order:
            for name in wiring.reads[index]:
                readers.setdefault(name, []).append(index)
        makes = {
            index: tuple(name for name in wiring.makes[index] if name and name in wanted)
            for index in order
        }
        edges = {i: [r for name in makes[i] for r in readers.get(name, ())] for i in order}
        return cls(order, makes, readers, edges, returned)


def _may_cut(types: Types, name: str, live: _Live, surviving: frozenset[str] | None) -> bool:
    if not types.can_cross(name):
        return False
    if surviving is None or name in surviving or name in live.returned:
        return True
    tensor = types.tensor(name)
    small = tensor.size_bytes is not None and tensor.size_bytes <= _SHAPE_BYTES
    return small and tensor.dtype in ("int64", "int32")


def _layers(
    model: Model,
    types: Types,
    live: _Live,
    groups: list[tuple[int, ...]],
    tensors: dict[str, Tensor],
) -> Iterator[Layer]:
    nodes, wiring = model.proto.graph.node, model.wiring
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    taken: set[str] = set()
    for number, group in enumerate(groups):
        made = [name for node in group for name in live.makes[node]]
        own = set(made)
        read = list(dict.fromkeys(name for node in group for name in wiring.reads[node]))
        stored = [name for name in read if wiring.is_constant(name) or name in wiring.defaults]
        inputs = [name for name in read if name not in own and name not in set(stored)]
        outputs = [
            name
            for name in made
            if name in live.returned
            or any(group_of[reader] != number for reader in live.readers.get(name, ()))
        ]
        tensors.update((name, types.tensor(name)) for name in (*inputs, *outputs))
        local = {name: types.tensor(name) for name in (*read, *made)}
        flops = [node_flops(nodes[node], local) for node in group]
        known = [count for count in flops if count is not None]
        yield Layer(
            name=_name(nodes[group[0]], group[0], taken),
            op=_op([nodes[node].op_type for node in group]),
            nodes=tuple(sorted(group)),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            flops=sum(known) if len(known) == len(flops) else None,
            weight_bytes=sum(local[name].size_bytes or 0 for name in stored),
        )


def _name(node: NodeProto, index: int, taken: set[str]) -> str:
    """The first node's name, made unique with its index where it isn't."""
    name = node.name or f"{node.op_type}_{index}"
    if name in taken:
        name = f"{name}_{index}"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _op(kinds: list[str]) -> str:
    shown = "+".join(kinds[:_LONGEST_OP])
    return shown if len(kinds) <= _LONGEST_OP else f"{shown}+…({len(kinds)})"
