"""Types of a model's values, inferred from its inputs without touching its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from offload.graph.dimensions import Symbols, dimension_name
from offload.graph.flops import Array, Work
from offload.graph.model import Tensor
from offload.graph.onnx_file import WeightFiles, is_external
from offload.graph.onnx_types import (
    as_tensor,
    declared_shape,
    dense_bytes,
    fill_in,
    is_known,
    tensor_type,
)
from offload.graph.propagate import KnownValue, Scope
from offload.graph.value_index import ValueIndex, bodies, function_key

# Shape arithmetic reads stored numbers (the target of a Reshape, the pads of a Pad), all small.
_SMALL_BYTES = 1024
# ONNX shape inference names the sizes that it does not know with this prefix.
_GENERATED_NAME = "unk__"


@dataclass(frozen=True, eq=False)
class Types:
    """Types of values and work of nodes, computed on demand.

    Attributes:
        source: the model.
        outline: its main graph after shape inference, nodes in topological order.
        values: producers and consumers of its values.
        measured: tensors whose types were observed while running the model.
        numbers: numbers of small inputs, used to count the work.
    """

    source: ModelProto = field(repr=False)
    outline: ModelProto = field(repr=False)
    values: ValueIndex = field(repr=False)
    measured: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    numbers: Mapping[str, Array] = field(default_factory=dict, repr=False)

    @cached_property
    def _outlined(self) -> Mapping[str, ValueInfoProto]:
        graph = self.outline.graph
        return {value.name: value for value in (*graph.input, *graph.value_info)}

    @cached_property
    def _declared(self) -> Mapping[str, ValueInfoProto]:
        graph = self.source.graph
        return {value.name: value for value in (*graph.value_info, *graph.output)}

    @cached_property
    def _stored(self) -> Mapping[str, TypeProto]:
        graph = self.source.graph
        make = onnx.helper.make_tensor_type_proto
        stored = {t.name: make(t.data_type, list(t.dims)) for t in graph.initializer}
        for sparse in graph.sparse_initializer:
            stored[sparse.values.name] = make(sparse.values.data_type, list(sparse.dims))
        return stored

    def inferred(self, name: str) -> TypeProto | None:
        """The type that follows from the graph's inputs, without generated names of sizes."""
        typed = self._inferred_by_onnx(name)
        if not is_known(typed) and not self.is_open and name in self.values.producer:
            typed = self._propagated[0].value(name).type
        if typed is None or not _has_element_type(typed):
            return self._stored.get(name)
        if typed.HasField("tensor_type"):
            for dim in typed.tensor_type.shape.dim:
                if dim.dim_param.startswith(_GENERATED_NAME):
                    dim.ClearField("dim_param")
        return typed

    @cached_property
    def is_open(self) -> bool:
        """Whether a required input has a size that isn't fixed.

        Then the numbers of shape computations are not known and can't be propagated.
        """
        inputs = (
            self._outlined[name].type for name in self.values.inputs if name in self._outlined
        )
        return any(typed.HasField("tensor_type") and not is_known(typed) for typed in inputs)

    def is_sized(self, name: str) -> bool:
        """Whether the value's sizes follow from the inputs' sizes, known here or not.

        False where they depend on data, or where inference fails.
        """
        return self._propagated[0].value(name).sized

    def unresolved(self) -> list[str]:
        """Tensors of numbers whose sizes follow from the inputs' sizes, but aren't known here.

        A run of the model with inputs of these sizes measures them. Empty while inputs are open.
        """
        return [] if self.is_open else [name for name in self.unknown() if self.is_sized(name)]

    def unknown(self) -> list[str]:
        """Tensors of numbers, produced by nodes, whose sizes aren't known here."""
        return [
            name
            for node in self.values.order
            if node not in self.values.constant
            for name in filter(None, self.values.produces[node])
            if not is_known(self.inferred(name)) and self.can_cross(name)
        ]

    def work(self, node: int) -> Work:
        """The work of a node of the main graph, its bodies and functions included."""
        return self._propagated[1].get(node, Work())

    def _inferred_by_onnx(self, name: str) -> TypeProto | None:
        """The type by ONNX's inference of the whole model, or as measured in a run."""
        value = self._outlined.get(name)
        typed = None if value is None else value.type
        measured = self.measured.get(name)
        if measured is None or measured.dtype is None:
            return typed
        return fill_in(tensor_type(measured), typed)

    @cached_property
    def _propagated(self) -> tuple[Scope, Mapping[int, Work]]:
        """Every value of the main graph, and the work by node."""
        proto, graph = self.source, self.outline.graph
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        scope = Scope.main(proto.functions, opsets, proto.ir_version)
        scope.add_stored(graph)
        for name in self.values.defaults:
            scope.values[name] = KnownValue(self._stored[name])
        for name in self.values.inputs:
            numbers = self.numbers.get(name)
            has_numbers = numbers is not None
            scope.values[name] = KnownValue(
                self._inferred_by_onnx(name),
                constant=has_numbers,
                numbers=numbers,
                evaluated=has_numbers,
            )
        works = scope.visit(graph.node, self._inferred_by_onnx)
        return scope, dict(zip(self.values.order, works, strict=True))

    def declared(self, name: str) -> TypeProto | None:
        """The type in the file. Exporters are often wrong: only the element type is reliable."""
        value = self._declared.get(name)
        return value.type if value is not None and _has_element_type(value.type) else None

    def dtypes(self) -> frozenset[str | None]:
        """Element types of all values between nodes."""
        return frozenset(self.tensor(name).dtype for name in self._outlined)

    def can_cross(self, name: str) -> bool:
        """Whether the value can cross a link: numbers can; text, sequences, optionals can't.

        A value of unknown type is assumed to be numbers.
        """
        typed = self.inferred(name) or self.declared(name)
        if typed is None:
            return True
        return typed.HasField("tensor_type") and typed.tensor_type.elem_type != TensorProto.STRING

    def tensor(self, name: str) -> Tensor:
        """The value as a tensor, unknown dtype and sizes None."""
        typed = self.inferred(name) or self.declared(name)
        return as_tensor(name, typed) if typed else Tensor(name, None, None, None)


def infer_types(
    proto: ModelProto,
    values: ValueIndex,
    weights: WeightFiles,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    measured: Mapping[str, Tensor] | None = None,
    numbers: Mapping[str, Array] | None = None,
) -> Types:
    """Infer the type of every value of the main graph.

    Declared types of values between nodes are not used (files are often wrong about them),
    except for operators that ONNX does not know. Only small weights are read or copied.

    Args:
        proto: the model.
        values: producers and consumers of its values.
        weights: the files of its external data.
        shapes: sizes for graph inputs with dynamic dimensions.
        measured: tensors whose types were observed in a run with inputs of these sizes.
        numbers: numbers of small inputs, for sizes and branches that depend on them.

    Raises:
        InputError: `shapes` has a name that is not an input, or contradicts the file.
    """
    outline = _outline(proto, values, weights)
    shapes = shapes or {}
    declared = {value.name: declared_shape(value.type) for value in outline.graph.input}
    symbols = Symbols.from_shapes(declared, shapes)
    for value in outline.graph.input:
        shape = value.type.tensor_type.shape
        if value.name in shapes:
            shape.ClearField("dim")
            for size in shapes[value.name]:
                shape.dim.add().dim_value = size
        for dim in shape.dim:
            symbol = dimension_name(dim.dim_param)
            known = symbols.size(symbol) if symbol else None
            if known is not None:
                dim.dim_value = known
    try:
        outline = onnx.shape_inference.infer_shapes(outline, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        outline.graph.ClearField("value_info")  # a graph that inference can't follow at all
    return Types(proto, outline, values, measured or {}, numbers or {})


def _outline(proto: ModelProto, values: ValueIndex, weights: WeightFiles) -> ModelProto:
    """The model without large stored tensors, nodes in topological order."""
    outline = ModelProto(ir_version=proto.ir_version, functions=proto.functions)
    outline.opset_import.extend(proto.opset_import)
    graph = outline.graph
    graph.name = proto.graph.name or "graph"
    graph.input.extend(proto.graph.input)
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    nodes = list(proto.graph.node)
    for index in values.containers:
        nodes[index] = _without_large_tensors(nodes[index], weights)
    graph.node.extend(nodes if values.is_sorted else [nodes[index] for index in values.order])
    listed = {value.name for value in proto.graph.input} if proto.ir_version >= 4 else set()
    graph.initializer.extend(
        _without_large_data(tensor, weights)
        for tensor in proto.graph.initializer
        if tensor.name not in listed  # a default may be overridden: its numbers are not certain
    )
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    # Types that the file declares are used for operators that ONNX does not know only.
    functions = {function_key(function) for function in proto.functions}
    unknown = {
        name
        for index in values.containers
        if nodes[index].domain not in ("", "ai.onnx", "ai.onnx.ml")
        and function_key(nodes[index]) not in functions
        for name in values.produces[index]
    }
    if unknown:
        graph.value_info.extend(v for v in proto.graph.value_info if v.name in unknown)
    return outline


def _without_large_tensors(node: NodeProto, weights: WeightFiles) -> NodeProto:
    if node.ByteSize() <= _SMALL_BYTES:
        return node
    light = NodeProto()
    light.CopyFrom(node)
    for attribute in light.attribute:
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_without_large_data(attribute.t, weights))
    for body in bodies(light):
        tensors = [_without_large_data(tensor, weights) for tensor in body.initializer]
        nodes = [_without_large_tensors(inner, weights) for inner in body.node]
        body.ClearField("initializer")
        body.ClearField("node")
        body.initializer.extend(tensors)
        body.node.extend(nodes)
    return light


def _without_large_data(tensor: TensorProto, weights: WeightFiles) -> TensorProto:
    """The tensor with its data where they are small, else marked as external without data."""
    stored_bytes = dense_bytes(tensor)
    is_small = stored_bytes is not None and stored_bytes <= _SMALL_BYTES
    if is_external(tensor):
        return weights.loaded(tensor) if is_small else tensor
    if is_small:
        return tensor
    # ONNX would read missing data as zeros if the tensor were not marked as external.
    return TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        data_location=TensorProto.EXTERNAL,
    )


def _has_element_type(typed: TypeProto) -> bool:
    """Whether the kind of value is known, and for a tensor its element type."""
    if typed.HasField("tensor_type"):
        return typed.tensor_type.elem_type != TensorProto.UNDEFINED
    return typed.WhichOneof("value") is not None
