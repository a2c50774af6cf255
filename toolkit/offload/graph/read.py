"""Read a loaded ONNX model into a graph of layers."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from onnx import NodeProto

from offload.graph.flops import Work, uncounted_share
from offload.graph.infer import Types, infer_types
from offload.graph.load import Model
from offload.graph.model import Graph, Layer, Tensor


def grouped(
    order: Sequence[int],
    edges: Mapping[int, Iterable[int]],
    together: Iterable[tuple[int, int]],
    absorbed: Container[int] = frozenset(),
) -> list[tuple[int, ...]]:
    """Partition nodes into groups whose quotient has no cycle, in topological order.

    First, pairs in `together` share a group. Joining two nodes may close a cycle through others
    (a -> b -> c with a and c together); then all of the cycle becomes one group. Nothing else is
    joined to it.

    Then, a group whose nodes are all in `absorbed` joins its readers where they are one group:
    each group becomes a maximal fanout-free cone. What several groups read stays a group of its
    own, so this step closes no cycle: only the last nodes of a cone are read from outside it.

    Groups follow the order of their first nodes as far as dependencies allow; nodes in a group
    ascend in `order`.

    Args:
        order: the nodes in a topological order.
        edges: for each node, the nodes that directly need it.
        together: pairs of nodes to keep in one group.
        absorbed: nodes that need not be told apart from the group that reads them.

    Complexity: O((V + E) log V).
    """
    place = {node: position for position, node in enumerate(order)}
    bound: nx.Graph[int] = nx.Graph()
    bound.add_nodes_from(order)
    bound.add_edges_from(together)
    atom_of: dict[int, int] = {}
    for component in nx.connected_components(bound):
        atom_of.update(dict.fromkeys(component, min(component, key=place.__getitem__)))
    atoms = nx.condensation(_quotient(order, edges, atom_of))
    atom_of = {node: atoms.graph["mapping"][atom] for node, atom in atom_of.items()}

    readers: dict[int, set[int]] = {atom: set(atoms.successors(atom)) for atom in atoms}
    fixed = {atom_of[node] for node in order if node not in absorbed}
    cone: dict[int, int] = {}
    for atom in reversed(list(nx.topological_sort(atoms))):
        found = {cone[reader] for reader in readers[atom]}
        cone[atom] = found.pop() if len(found) == 1 and atom not in fixed else atom

    group_of = {node: cone[atom] for node, atom in atom_of.items()}
    members: dict[int, list[int]] = {}
    for node in order:
        members.setdefault(group_of[node], []).append(node)
    groups = _quotient(order, edges, group_of)
    ranked = nx.lexicographical_topological_sort(groups, key=lambda g: place[members[g][0]])
    return [tuple(members[group]) for group in ranked]


def _quotient(
    order: Sequence[int], edges: Mapping[int, Iterable[int]], group_of: Mapping[int, int]
) -> "nx.DiGraph[int]":
    quotient: nx.DiGraph[int] = nx.DiGraph()
    quotient.add_nodes_from(group_of.values())
    quotient.add_edges_from(
        (group_of[a], group_of[b])
        for a in order
        for b in edges.get(a, ())
        if group_of[a] != group_of[b]
    )
    return quotient


# A list of integers this short is shape arithmetic: a kernel of its own wherever it is made.
_SHAPE_BYTES = 512
_LONGEST_OP = 8


def read_graph(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    surviving: frozenset[str] | None = None,
    types: Types | None = None,
    counted: Types | None = None,
) -> Graph:
    """Read a model into layers in topological order; O((V + E) log V).

    Each node that the outputs need is in exactly one layer, but for constant nodes, which are
    in none. The rule, where the engine's tensors are known (`surviving`):

    - A node that makes a tensor which the engine keeps ends a layer.
    - A node whose tensors the engine keeps none of belongs to the layer that reads them, where
      one layer reads them all: this is what the engine fused into one kernel.
    - Where several layers read them, the node ends a layer of its own: the engine kept the
      tensor under another name, or computes it several times.
    - A value that cannot cross a link (sequence, map, optional, string) keeps its maker and its
      readers in one layer, with what lies between these.

    Args:
        model: from `load_model`.
        shapes: sizes for graph inputs with dynamic dimensions, by input name. Inputs that
            share a named dimension are bound together.
        surviving: names of the tensors that exist after the engine's own fusions, and of those
            to cut at all the same. None: every node is a layer.
        types: what is known of its values with these shapes, where that was inferred already.
        counted: what the work is counted by; None: `types`.

    Raises:
        InputError: `shapes` names no input of the model, or contradicts it.
    """
    types = types or infer_with(model, shapes)
    counted = counted or types
    live = _LayerNodes.of(model)
    pairs = [
        (node, reader)
        for node in live.order
        for name in live.produces[node]
        if not types.can_cross(name)
        for reader in live.readers.get(name, ())
    ]
    fused = {
        node
        for node in live.order
        if not any(_may_cut(types, name, live, surviving) for name in live.produces[node])
    }
    groups = grouped(live.order, live.edges, pairs, fused)
    tensors: dict[str, Tensor] = {}
    works = {node: counted.work(node) for node in live.order}
    total = sum(works.values(), Work())
    layers = tuple(_layers(model, types, live, groups, tensors, works, total))
    for name in (*model.values.inputs, *model.values.outputs):
        tensors.setdefault(name, types.tensor(name))
    return Graph(
        name=model.name,
        digest=model.digest,
        inputs=tuple(model.values.inputs),
        outputs=tuple(model.values.outputs),
        layers=layers,
        tensors=tensors,
        uncounted_share=uncounted_share(total),
        uncounted=tuple(op for op, _ in total.uncounted.most_common()),
    )


def infer_with(model: Model, shapes: Mapping[str, tuple[int, ...]] | None) -> Types:
    """Types of a model's values with sizes for inputs.

    Raises:
        InputError: as `read_graph`.
    """
    if not shapes:
        return model.types
    return infer_types(model.proto, model.values, model.weights, shapes)


@dataclass(frozen=True, slots=True)
class _LayerNodes:
    """The nodes that become layers, and the values that pass between them.

    Attributes:
        order: node indexes, topological.
        produces: for each node, the outputs that somebody needs.
        readers: for each value, the nodes that need it.
        edges: for each node, the nodes that need one of its outputs.
        returned: names of the graph's outputs.
    """

    order: tuple[int, ...]
    produces: Mapping[int, tuple[str, ...]]
    readers: Mapping[str, list[int]]
    edges: Mapping[int, list[int]]
    returned: frozenset[str]

    @classmethod
    def of(cls, model: Model) -> "_LayerNodes":
        values = model.values
        returned = frozenset(values.outputs)
        wanted, alive = set(returned), []
        for index in reversed(values.order):
            made = values.produces[index]
            if index not in values.constant and not wanted.isdisjoint(made):
                alive.append(index)
                wanted.update(values.consumes[index])
        order = tuple(reversed(alive))
        readers: dict[str, list[int]] = {}
        for index in order:
            for name in values.consumes[index]:
                readers.setdefault(name, []).append(index)
        produces = {
            index: tuple(name for name in values.produces[index] if name and name in wanted)
            for index in order
        }
        edges = {i: [r for name in produces[i] for r in readers.get(name, ())] for i in order}
        return cls(order, produces, readers, edges, returned)


def _may_cut(types: Types, name: str, live: _LayerNodes, surviving: frozenset[str] | None) -> bool:
    if not types.can_cross(name):
        return False
    if surviving is None or name in surviving or name in live.returned:
        return True
    tensor = types.tensor(name)
    small = tensor.size_bytes is not None and tensor.size_bytes <= _SHAPE_BYTES
    return small and len(tensor.shape or ()) <= 1 and tensor.dtype in ("int64", "int32")


def _layers(
    model: Model,
    types: Types,
    live: _LayerNodes,
    groups: list[tuple[int, ...]],
    tensors: dict[str, Tensor],
    works: Mapping[int, Work],
    total: Work,
) -> Iterator[Layer]:
    nodes, values = model.proto.graph.node, model.values
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    taken: set[str] = set()
    for number, group in enumerate(groups):
        made = [name for node in group for name in live.produces[node]]
        own = set(made)
        read = list(dict.fromkeys(name for node in group for name in values.consumes[node]))
        stored = [name for name in read if values.is_constant(name) or name in values.defaults]
        inputs = [name for name in read if name not in own and name not in set(stored)]
        outputs = [
            name
            for name in made
            if name in live.returned
            or any(group_of[reader] != number for reader in live.readers.get(name, ()))
        ]
        tensors.update((name, types.tensor(name)) for name in (*inputs, *outputs))
        work = sum((works[node] for node in group), Work())
        yield Layer(
            name=_name(nodes[group[0]], group[0], taken),
            op=_op([nodes[node].op_type for node in group]),
            nodes=tuple(sorted(group)),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            flops=None if work.uncounted else work.flops,
            weight_bytes=sum(types.tensor(name).size_bytes or 0 for name in stored),
            assumed_flops=work.flops + work.assumed(total) if work.uncounted else 0.0,
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
