"""Cut a part out of a model: a set of nodes with the values that enter and leave it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from offload.errors import InputError
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor, boundary
from offload.graph.onnx_types import tensor_type
from offload.graph.value_index import function_key, functions_used

# Before this format version, initializers had to be listed as inputs. Newer readers take listed
# initializers for values that the caller may override. Nothing else changed in this version.
_UNLISTED_INITIALIZERS_SINCE_IR = 4
_NO_TYPES: Mapping[str, Tensor] = {}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a model to run on its own.

    Attributes:
        nodes: indexes in the main graph; constant nodes need not be listed.
        inputs: values it needs, in order.
        outputs: values it returns, in order. Each is produced by a node, or is an input or a
            constant that is passed through.
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def part_of(graph: Graph, layers: Iterable[int], outputs: Iterable[str] = ()) -> Part:
    """The part that computes some layers.

    Its inputs are the tensors that the layers need and do not produce; its outputs the tensors
    that other layers need or the graph returns, then `outputs`, such as graph outputs that no layer
    produces.

    Args:
        graph: from `read_graph`.
        layers: indexes of layers.
        outputs: further values to return.
    """
    members = sorted(set(layers))
    entering, leaving = boundary(
        members,
        lambda index: graph.layers[index].inputs,
        lambda index: graph.layers[index].outputs,
        graph.consumers,
        frozenset(graph.outputs),
    )
    leaving = tuple(dict.fromkeys((*leaving, *outputs)))
    passed_through = (name for name in leaving if name in graph.inputs)
    nodes = tuple(sorted(node for index in members for node in graph.layers[index].nodes))
    return Part(nodes, tuple(dict.fromkeys((*entering, *passed_through))), leaving)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The content of a part before its weights are copied.

    Attributes:
        head: the part without its main graph.
        graph: its main graph without the (dense) initializers.
        initializers: the source's stored tensors that it needs.
    """

    head: ModelProto
    graph: GraphProto
    initializers: tuple[TensorProto, ...]

    def whole(self) -> ModelProto:
        """The part as one message, weights copied in."""
        proto = ModelProto()
        proto.CopyFrom(self.head)
        proto.graph.CopyFrom(self.graph)
        proto.graph.initializer.extend(self.initializers)
        return proto


# Changes a part in place: its head (all but the graph) and its graph.
Finish = Callable[[ModelProto, GraphProto], None]


def extract_part(
    model: Model,
    part: Part,
    types: Mapping[str, Tensor] = _NO_TYPES,
    finish: Finish | None = None,
) -> Excerpt:
    """Extract a part as a model of its own; linear in its size without weights.

    Nodes keep the source's order, sorted first if the file isn't. Constant nodes, weights and
    functions are included as far as they are used. Format version, operator sets and metadata are
    the source's, but a format version before 4 becomes 4: from 4 on, initializers need not be
    listed as inputs, and readers take listed ones for overridable. External weights stay in the
    source's files. Inputs that have a default in the source stay inputs with a
    default. Dynamic dimensions stay dynamic.

    Args:
        model: the source.
        part: the part to extract.
        types: types of values that shape inference can't follow (operators of other vendors);
            sizes that may vary must be None.
        finish: changes the part, without its weights.

    Raises:
        InputError: the part needs a value that is not among its inputs, or a value between parts
            is of unknown type or not a tensor of numbers (text, sequence, map, optional).
    """
    nodes, stored, open_defaults = _closure(model, part)
    source, values = model.proto, model.values
    head = ModelProto(
        ir_version=max(source.ir_version, _UNLISTED_INITIALIZERS_SINCE_IR),
        producer_name=source.producer_name,
        producer_version=source.producer_version,
        domain=source.domain,
        model_version=source.model_version,
        doc_string=source.doc_string,
        opset_import=source.opset_import,
        metadata_props=source.metadata_props,
    )
    graph = GraphProto(
        name=source.graph.name or "graph",
        doc_string=source.graph.doc_string,
        metadata_props=source.graph.metadata_props,
    )
    source_nodes = list(source.graph.node)  # indexing the message node by node is slow
    graph.node.extend([source_nodes[index] for index in nodes])
    for name in part.inputs:
        value = values.inputs.get(name) or _boundary_value(model, name, types)
        if not value.type.WhichOneof("value"):
            raise InputError(f"the type of tensor {name!r} is not known: give it, or cut elsewhere")
        graph.input.append(value)
    graph.input.extend(values.defaults[name] for name in open_defaults)
    for name in part.outputs:  # an engine can infer the type of an output, so it may be unknown
        declared = values.outputs.get(name) or values.inputs.get(name)
        graph.output.append(declared or _boundary_value(model, name, types))
    known = {name for index in nodes for name in values.produces[index]} - set(part.outputs)
    graph.value_info.extend(value for value in source.graph.value_info if value.name in known)
    known.update(part.inputs, part.outputs, stored)
    graph.quantization_annotation.extend(
        note for note in source.graph.quantization_annotation if note.tensor_name in known
    )
    used = functions_used(source, iter(graph.node))
    head.functions.extend(f for f in source.functions if function_key(f) in used)
    graph.sparse_initializer.extend(values.sparse[n] for n in stored if n in values.sparse)
    dense = (values.initializers[name] for name in stored if name in values.initializers)
    if finish:
        finish(head, graph)
    return Excerpt(head, graph, tuple(dense))


def open_defaults(model: Model, part: Part) -> tuple[str, ...]:
    """Names of the inputs with a default that a part uses."""
    return tuple(_closure(model, part)[2])


def _closure(model: Model, part: Part) -> tuple[list[int], list[str], list[str]]:
    """Nodes in the source's order, stored values and open defaults that a part consists of."""
    values = model.values
    nodes = set(part.nodes)
    available = {name for index in nodes for name in values.produces[index]}.union(part.inputs)
    pending = [name for index in part.nodes for name in values.consumes[index]]
    pending.extend(part.outputs)
    added: set[str] = set()
    while pending:
        name = pending.pop()
        if name in added or name in available:
            continue
        added.add(name)
        source = values.producer.get(name)
        if source is not None and source in values.constant:
            nodes.add(source)
            pending.extend(values.consumes[source])
        elif name not in values.initializers and name not in values.sparse:
            raise InputError(f"the part needs {name!r}, which it neither produces nor has as input")
    stored = [name for name in (*values.initializers, *values.sparse) if name in added]
    order = sorted(nodes) if values.is_sorted else [i for i in values.order if i in nodes]
    return order, stored, [name for name in values.defaults if name in added]


def _boundary_value(model: Model, name: str, types: Mapping[str, Tensor]) -> ValueInfoProto:
    """A value at the boundary of a part, with its type as far as it is known.

    Sizes that the file declares are not used: exporters are often wrong about them.
    """
    if not model.types.can_cross(name):
        raise InputError(f"{name!r} is not a tensor of numbers and can't be sent: cut elsewhere")
    value = ValueInfoProto(name=name)
    inferred, declared = model.types.inferred(name), model.types.declared(name)
    if inferred is not None:
        value.type.CopyFrom(inferred)
    elif name in types and types[name].dtype is not None:
        value.type.CopyFrom(tensor_type(types[name]))
    elif declared is not None:
        value.type.CopyFrom(declared)
        if declared.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return value
