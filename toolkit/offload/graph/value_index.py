"""Producers and consumers of each value of a graph, names captured by nested graphs included."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from offload.errors import InputError

FunctionKey = tuple[str, str, str]

_TENSOR_ATTRIBUTES = frozenset(
    (
        AttributeProto.UNDEFINED,
        AttributeProto.TENSOR,
        AttributeProto.TENSORS,
        AttributeProto.SPARSE_TENSOR,
        AttributeProto.SPARSE_TENSORS,
    )
)
_GRAPH_ATTRIBUTES = frozenset(
    (AttributeProto.UNDEFINED, AttributeProto.GRAPH, AttributeProto.GRAPHS)
)
# ONNX's own operators that may have bodies or stored tensors as attributes. Operators of other
# vendors may have them too.
_CONTAINERS = frozenset(("If", "Loop", "Scan", "SequenceMap", "Constant"))
_KNOWN_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout")


def may_contain(node: NodeProto) -> bool:
    """Whether a node may have bodies or stored tensors as attributes; False for most nodes."""
    return node.op_type in _CONTAINERS or node.domain not in ("", "ai.onnx")


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs directly inside a node."""
    for attribute in node.attribute:
        if attribute.type in _GRAPH_ATTRIBUTES:
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


def attribute_value(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or a default where the node does not have it."""
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def consumed_values(node: NodeProto) -> tuple[str, ...]:
    """Names of the values that a node needs from its own graph, in order of first use.

    Names captured by the node's bodies are included. Linear in the size of the node.
    """
    names = [name for name in node.input if name]
    for body in bodies(node):
        names.extend(captured_names(body))
    return tuple(dict.fromkeys(names)) if len(names) > 1 else tuple(names)


def captured_names(body: GraphProto) -> tuple[str, ...]:
    """Names that a body uses and does not define itself, in order of first use."""
    own = {value.name for value in body.input}
    own.update(tensor.name for tensor in body.initializer)
    own.update(tensor.values.name for tensor in body.sparse_initializer)
    own.update(name for node in body.node for name in node.output)
    used = [name for node in body.node for name in consumed_values(node)]
    used.extend(value.name for value in body.output)
    return tuple(dict.fromkeys(name for name in used if name and name not in own))


def function_key(thing: NodeProto | FunctionProto) -> FunctionKey:
    """Domain, name and overload, which link a call to a model-local function."""
    name = thing.op_type if isinstance(thing, NodeProto) else thing.name
    return ("" if thing.domain == "ai.onnx" else thing.domain, name, thing.overload)


def functions_used(model: ModelProto, nodes: Iterator[NodeProto]) -> frozenset[FunctionKey]:
    """Keys of the model's functions that nodes call, also from bodies and other functions."""
    functions = {function_key(function): function for function in model.functions}
    if not functions:
        return frozenset()
    used: set[FunctionKey] = set()
    pending = list(nodes)
    while pending:
        for node in nested_nodes(pending.pop()):
            key = function_key(node)
            if key in functions and key not in used:
                used.add(key)
                pending.extend(functions[key].node)
    return frozenset(used)


def is_random(node: NodeProto) -> bool:
    """Whether a node's operator draws random numbers."""
    return any(word in node.op_type for word in _RANDOM)


def _deterministic_functions(model: ModelProto) -> frozenset[FunctionKey]:
    """Keys of the model's functions that return the same outputs for the same inputs."""
    functions = {function_key(function): function for function in model.functions}
    deterministic = set()
    for key, function in functions.items():
        called = functions_used(model, iter(function.node)) | {key}
        nodes = (n for k in called for top in functions[k].node for n in nested_nodes(top))
        if all(function_key(n) in functions or _is_known_and_not_random(n) for n in nodes):
            deterministic.add(key)
    return frozenset(deterministic)


def is_deterministic(node: NodeProto, functions: frozenset[FunctionKey]) -> bool:
    """Whether the node is certain to return the same outputs for the same inputs.

    False for random operators and for operators of unknown domains. `functions` are the
    deterministic functions of the model.
    """
    if not may_contain(node) or not node.attribute:
        return _is_known_and_not_random(node) or function_key(node) in functions
    return all(
        _is_known_and_not_random(inner) or function_key(inner) in functions
        for inner in nested_nodes(node)
    )


def _is_known_and_not_random(node: NodeProto) -> bool:
    return node.domain in _KNOWN_DOMAINS and not is_random(node)


def node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    """Tensors stored in a node: attributes, and initializers of its bodies, at any depth."""
    for attribute in node.attribute:
        if attribute.type in _TENSOR_ATTRIBUTES:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        for body in (attribute.g, *attribute.graphs) if attribute.type in _GRAPH_ATTRIBUTES else ():
            yield from graph_tensors(body)


def graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor stored in a graph: initializers, sparse ones, and those inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in filter(may_contain, graph.node):
        yield from node_tensors(node)


# From this version of the file format on, an initializer that is also listed among the inputs
# is a default that the caller may override. Before it, every initializer had to be listed.
_OVERRIDABLE_SINCE_IR = 4


@dataclass(frozen=True, slots=True)
class ValueIndex:
    """The values of a model's main graph: who produces and who consumes each.

    Attributes:
        consumes: for each node, the values it needs, captures of its bodies included.
        produces: for each node, the names of its outputs, empty ones included.
        containers: indexes of the nodes that may have bodies or stored tensors as attributes.
        producer: index of the node that produces a value.
        order: node indexes in a topological order; ascending when the file is sorted.
        deterministic: model-local functions that return the same outputs for the same inputs.
        constant: nodes that depend on no input and are deterministic.
        inputs: graph inputs that the caller must provide, in file order.
        defaults: graph inputs that have a default, in file order.
        outputs: graph outputs in file order, each once.
        initializers: stored tensors by name, defaults included.
        sparse: stored sparse tensors by name.
    """

    consumes: tuple[tuple[str, ...], ...]
    produces: tuple[tuple[str, ...], ...]
    containers: frozenset[int]
    producer: Mapping[str, int]
    order: tuple[int, ...]
    deterministic: frozenset[FunctionKey]
    constant: frozenset[int]
    inputs: Mapping[str, ValueInfoProto]
    defaults: Mapping[str, ValueInfoProto]
    outputs: Mapping[str, ValueInfoProto]
    initializers: Mapping[str, TensorProto]
    sparse: Mapping[str, SparseTensorProto]

    @property
    def is_sorted(self) -> bool:
        """Whether the file lists its nodes in a topological order, as ONNX demands."""
        return self.order == tuple(range(len(self.order)))

    def is_constant(self, name: str) -> bool:
        """Whether the value is stored and not overridable, or produced by a constant node."""
        if self.producer.get(name, -1) in self.constant:
            return True
        return (name in self.initializers or name in self.sparse) and name not in self.defaults


def index_values(proto: ModelProto) -> ValueIndex:
    """Index the values of a model's main graph; linear in its size.

    Raises:
        InputError: two nodes produce a value, a value has no source, or there is a cycle.
    """
    graph = proto.graph
    nodes = list(graph.node)  # each access to the message makes a new object for the node
    containers = frozenset(index for index, node in enumerate(nodes) if may_contain(node))
    consumes = tuple(
        consumed_values(node)
        if index in containers
        else tuple(dict.fromkeys(filter(None, node.input)))
        for index, node in enumerate(nodes)
    )
    produces = tuple(tuple(node.output) for node in nodes)
    producer: dict[str, int] = {}
    for index, names in enumerate(produces):
        for name in names:
            if name and producer.setdefault(name, index) != index:
                raise InputError(f"two nodes produce {name!r}: the model is not valid ONNX")
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    stored = initializers.keys() | sparse.keys()
    known = producer.keys() | stored | {value.name for value in graph.input}
    for index, names in enumerate(consumes):
        if not known.issuperset(names):
            missing = next(name for name in names if name not in known)
            raise InputError(
                f"node {index} ({nodes[index].op_type}) needs {missing!r}, which no node produces:"
                " the model is not valid ONNX"
            )
    outputs = {value.name: value for value in graph.output}
    if missing_outputs := outputs.keys() - known:
        raise InputError(
            f"no node produces output {min(missing_outputs)!r}: the model is not valid ONNX"
        )
    order = _topological_order(consumes, producer)
    overridable = stored if proto.ir_version >= _OVERRIDABLE_SINCE_IR else frozenset()
    defaults = {value.name: value for value in graph.input if value.name in overridable}
    deterministic = _deterministic_functions(proto)
    constant_values, constant = set(stored - defaults.keys()), set()
    for index in order:
        has_constant_inputs = constant_values.issuperset(consumes[index])
        if has_constant_inputs and is_deterministic(nodes[index], deterministic):
            constant_values.update(produces[index])
            constant.add(index)
    return ValueIndex(
        consumes=consumes,
        produces=produces,
        containers=containers,
        producer=producer,
        order=order,
        deterministic=deterministic,
        constant=frozenset(constant),
        inputs={value.name: value for value in graph.input if value.name not in stored},
        defaults=defaults,
        outputs=outputs,
        initializers=initializers,
        sparse=sparse,
    )


def _topological_order(
    consumes: tuple[tuple[str, ...], ...], producer: Mapping[str, int]
) -> tuple[int, ...]:
    """Node indexes in a topological order, as close to the file's order as possible."""
    if all(
        producer.get(name, -1) < index for index, names in enumerate(consumes) for name in names
    ):
        return tuple(range(len(consumes)))
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(consumes)))
    graph.add_edges_from(
        (producer[name], index)
        for index, names in enumerate(consumes)
        for name in names
        if name in producer
    )
    try:
        return tuple(nx.lexicographical_topological_sort(graph))
    except nx.NetworkXUnfeasible:
        raise InputError("the graph has a cycle: the model is not valid ONNX") from None
