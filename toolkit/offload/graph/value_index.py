"""Producers and consumers of each value of a graph, with the names that nested graphs capture."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)

from offload.errors import InputError

FunctionKey = tuple[str, str, str]

_HOLDS_TENSORS = frozenset(
    (
        AttributeProto.UNDEFINED,
        AttributeProto.TENSOR,
        AttributeProto.TENSORS,
        AttributeProto.SPARSE_TENSOR,
        AttributeProto.SPARSE_TENSORS,
    )
)
_HOLDS_GRAPHS = frozenset((AttributeProto.UNDEFINED, AttributeProto.GRAPH, AttributeProto.GRAPHS))
# Operators of ONNX itself that may hold bodies or stored tensors; of others nobody knows.
_HOLDERS = frozenset(("If", "Loop", "Scan", "SequenceMap", "Constant"))
_ONNX_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout")


def may_hold(node: NodeProto) -> bool:
    """Whether a node may have bodies or stored tensors inside: a quick no for most."""
    return node.op_type in _HOLDERS or node.domain not in ("", "ai.onnx")


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs directly inside a node."""
    for attribute in node.attribute:
        if attribute.type in _HOLDS_GRAPHS:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def nested_nodes(node: NodeProto) -> Iterator[NodeProto]:
    """The node and all nodes in its bodies, at any depth."""
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        for body in bodies(current):
            pending.extend(body.node)


def consumed_values(node: NodeProto) -> tuple[str, ...]:
    """Names of the values that a node needs from its own graph, in order of first use.

    Linear in the size of the node with its bodies.
    """
    needed = [name for name in node.input if name]
    for body in bodies(node):
        needed.extend(captures(body))
    return tuple(dict.fromkeys(needed)) if len(needed) > 1 else tuple(needed)


def captures(body: GraphProto) -> tuple[str, ...]:
    """Names that a body reads and does not define itself, in order of first use."""
    own = {value.name for value in body.input}
    own.update(tensor.name for tensor in body.initializer)
    own.update(tensor.values.name for tensor in body.sparse_initializer)
    own.update(name for node in body.node for name in node.output)
    read = [name for node in body.node for name in consumed_values(node)]
    read.extend(value.name for value in body.output)
    return tuple(dict.fromkeys(name for name in read if name and name not in own))


def function_key(thing: NodeProto | FunctionProto) -> FunctionKey:
    """What ties a call to a model-local function: domain, name, overload."""
    name = thing.op_type if isinstance(thing, NodeProto) else thing.name
    return ("" if thing.domain == "ai.onnx" else thing.domain, name, thing.overload)


def functions_used(model: ModelProto, nodes: Iterator[NodeProto]) -> frozenset[FunctionKey]:
    """Keys of the model's functions that the nodes call, from bodies and other functions too."""
    known = {function_key(function): function for function in model.functions}
    if not known:
        return frozenset()
    used: set[FunctionKey] = set()
    pending = list(nodes)
    while pending:
        for node in nested_nodes(pending.pop()):
            key = function_key(node)
            if key in known and key not in used:
                used.add(key)
                pending.extend(known[key].node)
    return frozenset(used)


def repeatable_calls(model: ModelProto) -> frozenset[FunctionKey]:
    """Keys of the functions that give the same answer for the same inputs, each time."""
    repeatable: dict[FunctionKey, bool] = {}
    known = {function_key(function): function for function in model.functions}
    for key, function in known.items():
        inner = functions_used(model, iter(function.node)) | {key}
        nodes = (n for k in inner for top in known[k].node for n in nested_nodes(top))
        repeatable[key] = all(function_key(n) in known or _plain(n) for n in nodes)
    return frozenset(key for key, holds in repeatable.items() if holds)


def is_repeatable(node: NodeProto, calls: frozenset[FunctionKey]) -> bool:
    """Whether running the node again on the same inputs gives the same answer for certain.

    False for random operators and for operators of unknown domains. `calls` comes from
    `repeatable_calls`.
    """
    if not may_hold(node) or not node.attribute:
        return _plain(node) or function_key(node) in calls
    return all(_plain(inner) or function_key(inner) in calls for inner in nested_nodes(node))


def _plain(node: NodeProto) -> bool:
    return node.domain in _ONNX_DOMAINS and not any(word in node.op_type for word in _RANDOM)


def node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    """Tensors stored inside a node: attributes, and initializers of its bodies, at any depth."""
    for attribute in node.attribute:
        if attribute.type in _HOLDS_TENSORS:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for body in (attribute.g, *attribute.graphs) if attribute.type in _HOLDS_GRAPHS else ():
            yield from graph_tensors(body)


def graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor stored in a graph: initializers, sparse ones, and those inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in filter(may_hold, graph.node):
        yield from node_tensors(node)


# From this version of the file format on, an initializer that is also listed among the inputs
# is a default that the caller may override; before it, every initializer had to be listed.
_OVERRIDABLE_SINCE_IR = 4


@dataclass(frozen=True, slots=True)
class ValueIndex:
    """The names of a main graph, resolved.

    Attributes:
        consumes: for each node, the values it needs, captures of its bodies included.
        produces: for each node, the names of its outputs, empty ones included.
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

    consumes: tuple[tuple[str, ...], ...]
    produces: tuple[tuple[str, ...], ...]
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


def index_values(proto: ModelProto) -> ValueIndex:
    """Resolve the names of a model's main graph; linear in its size.

    Raises:
        InputError: a value is made twice, made by nobody, or needs itself.
    """
    graph = proto.graph
    nodes = list(graph.node)  # each access to the message makes a new object for the node
    holders = frozenset(index for index, node in enumerate(nodes) if may_hold(node))
    needed = tuple(
        consumed_values(node) if index in holders else _inputs(node)
        for index, node in enumerate(nodes)
    )
    produces = tuple(tuple(node.output) for node in nodes)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    stored = initializers.keys() | sparse.keys()
    overridable = stored if proto.ir_version >= _OVERRIDABLE_SINCE_IR else frozenset()
    producer = _producers(produces)
    inputs = {value.name: value for value in graph.input if value.name not in stored}
    _check_known(graph, needed, producer.keys() | stored | inputs.keys())
    order = _order(needed, producer)
    defaults = {value.name: value for value in graph.input if value.name in overridable}
    fixed = stored - defaults.keys()
    return ValueIndex(
        consumes=needed,
        produces=produces,
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


def _producers(produces: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    producer: dict[str, int] = {}
    for index, names in enumerate(produces):
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
                "which nothing produces: the model is not valid ONNX"
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
