"""Read a loaded ONNX model into a graph of layers."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import networkx as nx

from offload.graph.flops import Work, uncounted_share
from offload.graph.infer import Types, infer_types
from offload.graph.load import Model
from offload.graph.model import Graph, Layer, boundary
from offload.graph.value_index import ValueIndex


def grouped(
    order: Sequence[int],
    edges: Mapping[int, Iterable[int]],
    together: Iterable[tuple[int, int]],
    absorbed: Container[int] = frozenset(),
) -> list[tuple[int, ...]]:
    """Partition nodes into groups whose quotient graph has no cycle, in topological order.

    First, pairs in `together` share a group. Joining two nodes may close a cycle through others
    (a -> b -> c with a and c together); then all nodes of the cycle become one group, and no
    others.

    Then, a group whose nodes are all in `absorbed` joins its consumers if they are one group: each
    group becomes a maximal fanout-free cone. A group with several consuming groups stays separate,
    so this step closes no cycle: only the last nodes of a cone are used outside it.

    Groups follow the order of their first nodes as far as dependencies allow; nodes in a group
    ascend in `order`.

    Args:
        order: the nodes in a topological order.
        edges: for each node, the nodes that directly need it.
        together: pairs of nodes to keep in one group.
        absorbed: nodes that may join the group that consumes their outputs.

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

    fixed = {atom_of[node] for node in order if node not in absorbed}
    cone: dict[int, int] = {}
    for atom in reversed(list(nx.topological_sort(atoms))):
        cones = {cone[consumer] for consumer in atoms.successors(atom)}
        cone[atom] = cones.pop() if len(cones) == 1 and atom not in fixed else atom

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


# Lists of integers up to this size are shape arithmetic: their nodes are kernels of their own.
_SHAPE_BYTES = 512
_MOST_OPS_IN_NAME = 8


def read_graph(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    surviving: frozenset[str] | None = None,
    types: Types | None = None,
    counted: Types | None = None,
) -> Graph:
    """Read a model into layers in topological order; O((V + E) log V).

    Each node that the outputs need is in exactly one layer, except for constant nodes, which are
    in no layer. Where the engine's tensors are known (`surviving`), these rules apply:

    - A node that produces a tensor which the engine keeps ends a layer.
    - A node whose tensors the engine does not keep belongs to the layer that consumes them, if
      that is one layer: the engine fused the node into its kernel.
    - If several layers consume them, the node ends a layer of its own: the engine kept the
      tensor under another name, or computes it several times.
    - A value that cannot cross a link (sequence, map, optional, string) keeps its producer and
      consumers in one layer, together with all nodes between them.

    Args:
        model: from `load_model`.
        shapes: sizes for graph inputs with dynamic dimensions, by input name. Inputs that
            share a named dimension are bound together.
        surviving: names of the tensors that exist after the engine's own fusions, and of further
            tensors where a cut is wanted. None: every node is a layer.
        types: the model's types for these shapes, if they were inferred already.
        counted: the types that the work is counted with; None: `types`.

    Raises:
        InputError: `shapes` has an unknown input, or contradicts the model.
    """
    types = types or infer_with(model, shapes)
    values = model.values
    order, needed = _needed_nodes(values)
    produces = {i: tuple(filter(needed.__contains__, values.produces[i])) for i in order}
    consumers: dict[str, list[int]] = {}
    for index in order:
        for name in values.consumes[index]:
            consumers.setdefault(name, []).append(index)
    edges = {i: [c for name in produces[i] for c in consumers.get(name, ())] for i in order}
    together = [
        (node, consumer)
        for node in order
        for name in produces[node]
        if not types.can_cross(name)
        for consumer in consumers.get(name, ())
    ]
    cuttable = None if surviving is None else surviving | values.outputs.keys()
    fused = {
        node for node in order if not any(_may_cut(types, n, cuttable) for n in produces[node])
    }
    groups = grouped(order, edges, together, fused)
    works = {node: (counted or types).work(node) for node in order}
    total = sum(works.values(), Work())
    layers = tuple(_layers(model, types, groups, produces, consumers, works, total))
    names = [name for layer in layers for name in (*layer.inputs, *layer.outputs)]
    return Graph(
        name=model.name,
        digest=model.digest,
        inputs=tuple(values.inputs),
        outputs=tuple(values.outputs),
        layers=layers,
        tensors={
            n: types.tensor(n) for n in dict.fromkeys((*names, *values.inputs, *values.outputs))
        },
        uncounted_share=uncounted_share(total),
        uncounted=tuple(op for op, _ in total.uncounted.most_common()),
    )


def infer_with(model: Model, shapes: Mapping[str, tuple[int, ...]] | None) -> Types:
    """Types of a model's values for given sizes of its inputs.

    Raises:
        InputError: as `read_graph`.
    """
    if not shapes:
        return model.types
    return infer_types(model.proto, model.values, model.weights, shapes)


def _needed_nodes(values: ValueIndex) -> tuple[list[int], set[str]]:
    """The nodes that become layers, in topological order, and the values that are needed.

    These are the nodes that an output depends on, without constant nodes.
    """
    needed, order = set(values.outputs), []
    for index in reversed(values.order):
        if index not in values.constant and not needed.isdisjoint(values.produces[index]):
            order.append(index)
            needed.update(values.consumes[index])
    needed.discard("")
    return order[::-1], needed


def _may_cut(types: Types, name: str, cuttable: Container[str] | None) -> bool:
    """Whether a layer may end at a tensor: it exists in the engine, or is shape arithmetic."""
    if not types.can_cross(name):
        return False
    if cuttable is None or name in cuttable:
        return True
    tensor = types.tensor(name)
    small = tensor.size_bytes is not None and tensor.size_bytes <= _SHAPE_BYTES
    return small and len(tensor.shape or ()) <= 1 and tensor.dtype in ("int64", "int32")


def _layers(
    model: Model,
    types: Types,
    groups: list[tuple[int, ...]],
    produces: Mapping[int, tuple[str, ...]],
    consumers: Mapping[str, list[int]],
    works: Mapping[int, Work],
    total: Work,
) -> Iterator[Layer]:
    """The layer of each group of nodes, with a unique name."""
    nodes, values = model.proto.graph.node, model.values
    taken: set[str] = set()
    for group in groups:
        entering, outputs = boundary(
            group, values.consumes.__getitem__, produces.__getitem__, consumers, values.outputs
        )
        stored = {n for n in entering if values.is_constant(n) or n in values.defaults}
        work = sum((works[node] for node in group), Work())
        first = nodes[group[0]]
        name = first.name or f"{first.op_type}_{group[0]}"
        if name in taken:
            name = f"{name}_{group[0]}"
        while name in taken:
            name += "_"
        taken.add(name)
        op = "+".join(nodes[node].op_type for node in group[:_MOST_OPS_IN_NAME])
        yield Layer(
            name=name,
            op=op if len(group) <= _MOST_OPS_IN_NAME else f"{op}+…({len(group)})",
            nodes=tuple(sorted(group)),
            inputs=tuple(name for name in entering if name not in stored),
            outputs=outputs,
            flops=None if work.uncounted else work.flops,
            weight_bytes=sum(types.tensor(name).size_bytes or 0 for name in stored),
            assumed_flops=work.flops + work.assumed(total) if work.uncounted else 0.0,
        )
