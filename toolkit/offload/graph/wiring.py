"""Who makes and who reads each value of a model's main graph."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)

from offload.errors import InputError
from offload.graph.scope import is_repeatable, may_hold, reads, repeatable_calls

# From this version of the file format on, an initializer that is also listed among the inputs
# is a default that the caller may override; before it, every initializer had to be listed.
_OVERRIDABLE_SINCE_IR = 4


@dataclass(frozen=True, slots=True)
class Wiring:
    """The names of a main graph, resolved.

    Attributes:
        reads: for each node, the values it needs, captures of its bodies included.
        makes: for each node, the names of its outputs, empty ones included.
        holders: nodes that may have bodies or stored tensors inside.
        producer: the node that makes a value.
        order: node indexes in a topological order; ascending when the file is sorted.
        constant: nodes that depend on no input and give the same answer each time.
        inputs: graph inputs a caller must give, in file order.
        defaults: graph inputs that have a default, in file order.
        outputs: graph outputs in file order, each once.
        initializers: stored tensors by name, defaults included.
        sparse: stored sparse tensors by name.
    """

    reads: tuple[tuple[str, ...], ...]
    makes: tuple[tuple[str, ...], ...]
    holders: frozenset[int]
    producer: Mapping[str, int]
    order: tuple[int, ...]
    constant: frozenset[int]
    inputs: Mapping[str, ValueInfoProto]
    defaults: Mapping[str, ValueInfoProto]
    outputs: Mapping[str, ValueInfoProto]
    initializers: Mapping[str, TensorProto]
    sparse: Mapping[str, SparseTensorProto]

    @property
    def is_sorted(self) -> bool:
        """Whether the file has its nodes in a topological order, as it should."""
        return self.order == tuple(range(len(self.order)))

    def is_stored(self, name: str) -> bool:
        """Whether the value is an initializer that no caller can override."""
        return (name in self.initializers or name in self.sparse) and name not in self.defaults

    def is_constant(self, name: str) -> bool:
        """Whether the value is stored, or made by constant nodes."""
        return self.is_stored(name) or self.producer.get(name, -1) in self.constant

    def is_given(self, name: str) -> bool:
        """Whether the value comes from the caller or from the file, not from a node."""
        return name in self.inputs or name in self.initializers or name in self.sparse


def wire(proto: ModelProto) -> Wiring:
    """Resolve the names of a model's main graph; linear in its size.

    Raises:
        InputError: a value is made twice, made by nobody, or needs itself.
    """
    graph = proto.graph
    nodes = list(graph.node)  # each access to the message makes a new object for the node
    holders = frozenset(index for index, node in enumerate(nodes) if may_hold(node))
    needed = tuple(
        reads(node) if index in holders else _inputs(node) for index, node in enumerate(nodes)
    )
    makes = tuple(tuple(node.output) for node in nodes)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    stored = initializers.keys() | sparse.keys()
    overridable = stored if proto.ir_version >= _OVERRIDABLE_SINCE_IR else frozenset()
    producer = _producers(makes)
    inputs = {value.name: value for value in graph.input if value.name not in stored}
    _check_known(graph, needed, producer.keys() | stored | inputs.keys())
    order = _order(needed, producer)
    defaults = {value.name: value for value in graph.input if value.name in overridable}
    fixed = stored - defaults.keys()
    return Wiring(
        reads=needed,
        makes=makes,
        holders=holders,
        producer=producer,
        order=order,
        constant=_constant(proto, needed, order, fixed),
        inputs=inputs,
        defaults=defaults,
        outputs={value.name: value for value in graph.output},
        initializers=initializers,
        sparse=sparse,
    )


def _inputs(node: NodeProto) -> tuple[str, ...]:
    names = tuple(node.input)
    if len(names) < 2:
        return names if all(names) else ()
    return tuple(dict.fromkeys(filter(None, names)))


def _producers(makes: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    producer: dict[str, int] = {}
    for index, names in enumerate(makes):
        for name in names:
            if name and producer.setdefault(name, index) != index:
                raise InputError(f"two nodes make the value {name!r}: the model is not valid ONNX")
    return producer


def _check_known(
    graph: GraphProto, needed: tuple[tuple[str, ...], ...], known: frozenset[str] | set[str]
) -> None:
    for index, names in enumerate(needed):
        if not known.issuperset(names):
            missing = next(name for name in names if name not in known)
            raise InputError(
                f"node {index} ({graph.node[index].op_type}) reads {missing!r}, "
                "which nothing makes: the model is not valid ONNX"
            )
    for value in graph.output:
        if value.name not in known:
            raise InputError(
                f"output {value.name!r} is made by no node: the model is not valid ONNX"
            )


def _order(needed: tuple[tuple[str, ...], ...], producer: Mapping[str, int]) -> tuple[int, ...]:
    if all(producer.get(name, -1) < index for index, names in enumerate(needed) for name in names):
        return tuple(range(len(needed)))
    behind = [{producer[name] for name in names if name in producer} for names in needed]
    after: list[list[int]] = [[] for _ in needed]
    for index, before in enumerate(behind):
        for source in before:
            after[source].append(index)
    waiting = [len(before) for before in behind]
    ready = [index for index, count in enumerate(waiting) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for index in after[order[-1]]:
            waiting[index] -= 1
            if not waiting[index]:
                heapq.heappush(ready, index)
    if len(order) < len(needed):
        raise InputError("the graph has a cycle: the model is not valid ONNX")
    return tuple(order)


def _constant(
    proto: ModelProto,
    needed: tuple[tuple[str, ...], ...],
    order: tuple[int, ...],
    fixed: set[str] | frozenset[str],
) -> frozenset[int]:
    calls = repeatable_calls(proto)
    known, found = set(fixed), set()
    for index in order:
        if known.issuperset(needed[index]) and is_repeatable(proto.graph.node[index], calls):
            known.update(proto.graph.node[index].output)
            found.add(index)
    return frozenset(found)
