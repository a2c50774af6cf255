"""What a node reads: its inputs, and what the bodies inside it capture from around them.

If, Loop, Scan (and any operator with graph attributes) hold bodies that may read any value of
the graphs around them. Functions capture nothing.
"""

from collections.abc import Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

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


def reads(node: NodeProto) -> tuple[str, ...]:
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
    read = [name for node in body.node for name in reads(node)]
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
