"""Cut a part out of a model: any set of nodes with the values that enter and leave."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto

from offload.errors import InputError
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.onnx_file import is_external, is_outside
from offload.graph.onnx_types import tensor_type
from offload.graph.value_index import function_key, functions_used

# Until this version of the format, initializers had to be listed among the inputs, where newer
# readers take them for values that the caller may override. Nothing else changed with it.
_UNLISTED_INITIALIZERS_SINCE_IR = 4
_NO_TYPES: Mapping[str, Tensor] = {}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a model to run on its own.

    Attributes:
        nodes: indexes in the main graph; constant nodes need not be named.
        inputs: values it is given, in order.
        outputs: values it returns, in order. Each is made by a node, or is an input or a
            constant passed through.
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def part_of(graph: Graph, layers: Iterable[int], outputs: Iterable[str] = ()) -> Part:
    """The part that computes some layers.

    Its inputs are what the layers need and do not make; its outputs what others need or the
    graph returns, then `outputs` (say graph outputs that no layer makes).

    Args:
        graph: from `read_graph`.
        layers: indexes of layers.
        outputs: further values to return.
    """
    members = sorted(set(layers))
    chosen = [graph.layers[index] for index in members]
    inside, own = set(members), {name for layer in chosen for name in layer.outputs}
    returned = set(graph.outputs)
    made = [
        name
        for layer in chosen
        for name in layer.outputs
        if name in returned or not inside.issuperset(graph.consumers.get(name, ()))
    ]
    results = tuple(dict.fromkeys((*made, *outputs)))
    needed = [name for layer in chosen for name in layer.inputs if name not in own]
    needed.extend(name for name in results if name in graph.inputs)
    nodes = tuple(sorted(node for layer in chosen for node in layer.nodes))
    return Part(nodes, tuple(dict.fromkeys(needed)), results)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part's content, its weights not yet copied.

    Attributes:
        head: the part but for its main graph.
        graph: its main graph without the (dense) initializers.
        initializers: the stored tensors it needs, those of the source.
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


def extract_part(model: Model, part: Part, types: Mapping[str, Tensor] = _NO_TYPES) -> ModelProto:
    """A part as a model of its own; linear in its size.

    Nodes keep the source's order (sorted first, where the file isn't); constant nodes, weights
    and functions come along as far as they are used; format version, operator sets and metadata
    are the source's (but a version before 4 becomes 4, since which initializers need not be
    listed as inputs, where newer readers would take them for open). Weights that the
    source keeps outside stay outside, in the source's files. Inputs that have a default in the
    source stay inputs with a default. Dynamic dimensions stay dynamic.

    Args:
        model: the source.
        part: what to cut out.
        types: types of values that shape inference can't follow (operators of other vendors);
            sizes that may vary must be None.

    Raises:
        InputError: the part needs a value that it is not given, or a value between parts is no
            tensor of numbers (text, sequence, map, optional), or of unknown type.
    """
    proto = excerpt_part(model, part, types).whole()
    for tensor in proto.graph.initializer:
        if is_external(tensor) and not is_outside(tensor):
            tensor.CopyFrom(model.weights.loaded(tensor))
    return proto


def excerpt_part(model: Model, part: Part, types: Mapping[str, Tensor] = _NO_TYPES) -> Excerpt:
    """`extract_part` before weights are copied."""
    nodes, stored, open_defaults = _closure(model, part)
    source, values = model.proto, model.values
    head, graph = _frame(source), _empty_graph(source.graph)
    everything = list(source.graph.node)  # indexing the message node by node is slow
    graph.node.extend([everything[index] for index in nodes])
    graph.input.extend(_entering(model, name, types) for name in part.inputs)
    graph.input.extend(values.defaults[name] for name in open_defaults)
    graph.output.extend(_leaving(model, name, types) for name in part.outputs)
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
    return Excerpt(head, graph, tuple(dense))


def open_defaults(model: Model, part: Part) -> tuple[str, ...]:
    """Names of the inputs with a default that a part uses: inputs of its own."""
    return tuple(_closure(model, part)[2])


def _closure(model: Model, part: Part) -> tuple[list[int], list[str], list[str]]:
    """Nodes in the source's order, stored values and open defaults that a part consists of."""
    values, given = model.values, set(part.inputs)
    nodes = set(part.nodes)
    made = {name for index in nodes for name in values.produces[index]}
    pending = [name for index in part.nodes for name in values.consumes[index]]
    pending.extend(part.outputs)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name in made or name in given:
            continue
        seen.add(name)
        maker = values.producer.get(name)
        if maker in values.constant and maker is not None:
            nodes.add(maker)
            pending.extend(values.consumes[maker])
        elif name not in values.initializers and name not in values.sparse:
            raise InputError(f"the part needs {name!r}, which it neither makes nor is given")
    used = [name for name in (*values.initializers, *values.sparse) if name in seen]
    kept = sorted(nodes) if values.is_sorted else [i for i in values.order if i in nodes]
    return kept, used, [name for name in values.defaults if name in seen]


def _frame(source: ModelProto) -> ModelProto:
    """A model with all that the source says of itself as a whole, and no graph."""
    return ModelProto(
        ir_version=max(source.ir_version, _UNLISTED_INITIALIZERS_SINCE_IR),
        producer_name=source.producer_name,
        producer_version=source.producer_version,
        domain=source.domain,
        model_version=source.model_version,
        doc_string=source.doc_string,
        opset_import=source.opset_import,
        metadata_props=source.metadata_props,
    )


def _empty_graph(source: GraphProto) -> GraphProto:
    return GraphProto(
        name=source.name or "graph",
        doc_string=source.doc_string,
        metadata_props=source.metadata_props,
    )


def _entering(model: Model, name: str, types: Mapping[str, Tensor]) -> ValueInfoProto:
    """How a part declares a value that it is given: it must be known what it is."""
    value = model.values.inputs.get(name) or _crossing(model, name, types)
    if not value.type.WhichOneof("value"):
        raise InputError(f"the type of tensor {name!r} is not known: give it, or cut elsewhere")
    return value


def _leaving(model: Model, name: str, types: Mapping[str, Tensor]) -> ValueInfoProto:
    """How a part declares a value that it returns; an engine can work out an unknown type."""
    declared = model.values.outputs.get(name) or model.values.inputs.get(name)
    return declared or _crossing(model, name, types)


def _crossing(model: Model, name: str, types: Mapping[str, Tensor]) -> ValueInfoProto:
    if not model.types.can_cross(name):
        raise InputError(f"{name!r} is not a tensor of numbers and can't be sent: cut elsewhere")
    value = ValueInfoProto(name=name)
    inferred, declared = model.types.inferred(name), model.types.declared(name)
    if inferred is not None:
        value.type.CopyFrom(inferred)
    elif name in types and types[name].dtype is not None:
        value.type.CopyFrom(tensor_type(types[name]))
    elif declared is not None:
        value.type.CopyFrom(_shapeless(declared))
    return value


def _shapeless(declared: TypeProto) -> TypeProto:
    """The declared type without sizes: exporters are often wrong about those."""
    typed = TypeProto()
    typed.CopyFrom(declared)
    if typed.HasField("tensor_type"):
        typed.tensor_type.ClearField("shape")
    return typed
