"""Types of a model's values, inferred from its inputs without touching its weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from offload.errors import InputError
from offload.graph.dimensions import Symbols, dimension_name
from offload.graph.flops import Array, Work
from offload.graph.model import Tensor
from offload.graph.onnx_file import (
    WeightFiles,
    dense_bytes,
    dtype_name,
    element_type,
    is_external,
    size_bytes,
)
from offload.graph.propagate import KnownValue, Scope, completed, is_known, stored_value
from offload.graph.value_index import ValueIndex, bodies, function_key

# Shape arithmetic reads stored numbers (the target of a Reshape, the pads of a Pad), all small.
_SMALL_BYTES = 1024
# Names that ONNX shape inference makes up for sizes it doesn't know.
_MADE_UP = "unk__"


@dataclass(frozen=True, eq=False)
class Types:
    """Types by value name and work by node, worked out as they are asked for.

    Attributes:
        source: the model.
        outline: its main graph after shape inference, nodes in topological order.
        values: its resolved names.
        found: tensors whose types were found by running the model.
        numbers: of small inputs, on which the work is counted.
    """

    source: ModelProto = field(repr=False)
    outline: ModelProto = field(repr=False)
    values: ValueIndex = field(repr=False)
    found: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    numbers: Mapping[str, Array] = field(default_factory=dict, repr=False)

    @cached_property
    def _values(self) -> Mapping[str, ValueInfoProto]:
        graph = self.outline.graph
        return {value.name: value for value in (*graph.input, *graph.value_info)}

    @cached_property
    def _declared(self) -> Mapping[str, ValueInfoProto]:
        graph = self.source.graph
        return {value.name: value for value in (*graph.value_info, *graph.output)}

    @cached_property
    def _stored(self) -> Mapping[str, TypeProto]:
        graph = self.source.graph
        stored = {t.name: _stored_type(t.data_type, t.dims) for t in graph.initializer}
        for sparse in graph.sparse_initializer:
            stored[sparse.values.name] = _stored_type(sparse.values.data_type, sparse.dims)
        return stored

    def inferred(self, name: str) -> TypeProto | None:
        """The type that follows from the graph's inputs; made-up names of sizes are removed."""
        typed = self._first(name)
        if not is_known(typed) and not self.is_open and name in self.values.producer:
            typed = self._visited[0].type(name)
        if typed is None or not _is_complete(typed):
            return self._stored.get(name)
        _drop_made_up(typed)
        return typed

    @cached_property
    def is_open(self) -> bool:
        """Whether an input that a caller must give has a size that isn't fixed.

        Numbers of shape computations can't be carried on then: they aren't known.
        """
        inputs = (self._values[name].type for name in self.values.inputs if name in self._values)
        return any(typed.HasField("tensor_type") and not is_known(typed) for typed in inputs)

    def is_sized(self, name: str) -> bool:
        """Whether the value's sizes follow from the inputs' sizes, known here or not.

        False where they depend on data, or on what inference can't follow.
        """
        return self._visited[0].value(name).sized

    def unresolved(self) -> list[str]:
        """Tensors of numbers whose sizes follow from the inputs' sizes, but aren't known here.

        Running the model with inputs of these sizes tells them. Empty while inputs are open.
        """
        return [] if self.is_open else [name for name in self.unknown() if self.is_sized(name)]

    def unknown(self) -> list[str]:
        """Tensors of numbers that nodes make, of sizes that aren't known here."""
        return [
            name
            for node in self.values.order
            if node not in self.values.constant
            for name in filter(None, self.values.produces[node])
            if not is_known(self.inferred(name)) and self.can_cross(name)
        ]

    def work(self, node: int) -> Work:
        """The work of a node of the main graph, its bodies and functions included."""
        return self._visited[1].get(node, Work())

    def _first(self, name: str) -> TypeProto | None:
        """What ONNX's inference of the whole model knows, and what running it told."""
        value = self._values.get(name)
        typed = None if value is None else value.type
        told = self.found.get(name)
        if told is None or told.dtype is None:
            return typed
        return completed(tensor_type(told), typed)

    @cached_property
    def _visited(self) -> tuple[Scope, Mapping[int, Work]]:
        """Every value of the main graph, and the work by node."""
        proto, graph = self.source, self.outline.graph
        opsets = {each.domain: each.version for each in proto.opset_import}
        scope = Scope.main(proto.functions, opsets, proto.ir_version)
        for tensor in graph.initializer:
            scope.values[tensor.name] = stored_value(tensor)
        for name in self._stored.keys() - scope.values.keys():  # a default, or sparse
            scope.values[name] = KnownValue(self._stored[name])
        for name in self.values.inputs:
            numbers = self.numbers.get(name)
            given = numbers is not None
            scope.values[name] = KnownValue(
                self._first(name), constant=given, numbers=numbers, settled=given
            )
        works = scope.visit(graph.node, self._first)
        return scope, dict(zip(self.values.order, works, strict=True))

    def declared(self, name: str) -> TypeProto | None:
        """What the file says. Exporters are often wrong: only the element type is reliable."""
        value = self._declared.get(name)
        return value.type if value is not None and _is_complete(value.type) else None

    def dtypes(self) -> frozenset[str | None]:
        """Element types of all values between nodes."""
        return frozenset(self.tensor(name).dtype for name in self._values)

    def can_cross(self, name: str) -> bool:
        """Whether the value can go over a link: numbers can; text, sequences, optionals can't.

        What isn't known yet is taken to be numbers.
        """
        found = self.inferred(name) or self.declared(name)
        if found is None:
            return True
        return found.HasField("tensor_type") and found.tensor_type.elem_type != TensorProto.STRING

    def tensor(self, name: str) -> Tensor:
        """The value as a tensor with what is known of it."""
        found = self.inferred(name) or self.declared(name)
        return as_tensor(name, found) if found else Tensor(name, None, None, None)


def tensor_type(tensor: Tensor) -> TypeProto:
    """The ONNX type of a tensor of known element type; the inverse of `as_tensor`."""
    typed = TypeProto()
    typed.tensor_type.elem_type = element_type(tensor.dtype or "undefined")
    if tensor.shape is not None:
        typed.tensor_type.shape.SetInParent()
        for size in tensor.shape:
            dim = typed.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return typed


def as_tensor(name: str, typed: TypeProto) -> Tensor:
    """A value of an ONNX type as a tensor; dtype None when it is none (sequence, optional)."""
    if not typed.HasField("tensor_type"):
        return Tensor(name, None, None, None)
    tensor = typed.tensor_type
    dtype = dtype_name(tensor.elem_type)
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(known_size(dim) for dim in tensor.shape.dim)
    return Tensor(name, dtype, shape, size_bytes(dtype, shape))


def known_size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """A dimension's size; None for a dynamic one, which some exporters write as -1."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def infer_types(
    proto: ModelProto,
    values: ValueIndex,
    weights: WeightFiles,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    found: Mapping[str, Tensor] | None = None,
    numbers: Mapping[str, Array] | None = None,
) -> Types:
    """Infer the type of every value of the main graph.

    Declared types of values between nodes are not used (files are often wrong about them),
    except for operators that ONNX does not know. Weights are neither copied nor read, but for
    small ones.

    Args:
        proto: the model.
        values: its resolved names.
        weights: where external data is.
        shapes: sizes for graph inputs with dynamic dimensions.
        found: tensors whose types were found by running the model with inputs of these sizes.
        numbers: of small inputs: sizes and branches that depend on them are those of this input.

    Raises:
        InputError: `shapes` names no input, or contradicts the file.
    """
    outline = _outline(proto, values, weights)
    _bind(outline, shapes or {})
    try:
        outline = onnx.shape_inference.infer_shapes(outline, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        outline.graph.ClearField("value_info")  # a graph that inference can't follow at all
    return Types(proto, outline, values, found or {}, numbers or {})


def _outline(proto: ModelProto, values: ValueIndex, weights: WeightFiles) -> ModelProto:
    """The model with large stored numbers left out."""
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
        nodes[index] = _light(nodes[index], weights)
    graph.node.extend(nodes if values.is_sorted else [nodes[index] for index in values.order])
    listed = {value.name for value in proto.graph.input} if proto.ir_version >= 4 else set()
    graph.initializer.extend(
        _light_tensor(tensor, weights)
        for tensor in proto.graph.initializer
        if tensor.name not in listed  # a default may be overridden: its numbers prove nothing
    )
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    graph.value_info.extend(_unknown_operators(proto, values))
    return outline


def _unknown_operators(proto: ModelProto, values: ValueIndex) -> Iterable[ValueInfoProto]:
    calls = {function_key(function) for function in proto.functions}
    holders = ((index, proto.graph.node[index]) for index in values.containers)
    foreign = {
        name
        for index, node in holders
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml") and function_key(node) not in calls
        for name in values.produces[index]
    }
    return (value for value in proto.graph.value_info if value.name in foreign) if foreign else ()


def _light(node: NodeProto, weights: WeightFiles) -> NodeProto:
    if node.ByteSize() <= _SMALL_BYTES:
        return node
    light = NodeProto()
    light.CopyFrom(node)
    for attribute in light.attribute:
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_light_tensor(attribute.t, weights))
    for body in bodies(light):
        tensors = [_light_tensor(tensor, weights) for tensor in body.initializer]
        nodes = [_light(inner, weights) for inner in body.node]
        body.ClearField("initializer")
        body.ClearField("node")
        body.initializer.extend(tensors)
        body.node.extend(nodes)
    return light


def _light_tensor(tensor: TensorProto, weights: WeightFiles) -> TensorProto:
    known = dense_bytes(tensor.data_type, tensor.dims)
    if is_external(tensor):
        return weights.loaded(tensor) if known is not None and known <= _SMALL_BYTES else tensor
    if known is not None and known <= _SMALL_BYTES:
        return tensor
    # Marked external, its missing numbers are known to be missing and never read as zeros.
    return TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        data_location=TensorProto.EXTERNAL,
    )


def _stored_type(element_type: int, dims: Iterable[int]) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(element_type, list(dims))


def _is_complete(typed: TypeProto) -> bool:
    """Whether the type says what the value is: for a tensor, the type of its elements."""
    if typed.HasField("tensor_type"):
        return typed.tensor_type.elem_type != TensorProto.UNDEFINED
    return typed.WhichOneof("value") is not None


def _drop_made_up(typed: TypeProto) -> None:
    if typed.HasField("tensor_type"):
        for dim in typed.tensor_type.shape.dim:
            if dim.dim_param.startswith(_MADE_UP):
                dim.ClearField("dim_param")


def _bind(outline: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    values = {value.name: value for value in outline.graph.input}
    declared = {name: _declared(value) for name, value in values.items()}
    pairs: list[tuple[str, int]] = []
    owners: list[str] = []
    for name, sizes in shapes.items():
        if name not in values:
            known = ", ".join(sorted(values)[:8]) or "none"
            raise InputError(f"the model has no input {name!r} to give a shape to; it has: {known}")
        _check_fit(values[name], declared[name], sizes)
        named = [(d, n) for d, n in zip(declared[name], sizes, strict=False) if isinstance(d, str)]
        pairs += named
        owners += [name] * len(named)
    symbols = Symbols.of(declared.values())
    wrong = symbols.bind_all(pairs)
    if wrong is not None:
        _refuse(owners[wrong], declared[owners[wrong]], shapes[owners[wrong]])
    for name, value in values.items():
        shape = value.type.tensor_type.shape
        if name in shapes:
            shape.ClearField("dim")
            shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[name]
            )
        for dim in shape.dim:
            name_of_size = dimension_name(dim.dim_param)
            size = symbols.size(name_of_size) if name_of_size else None
            if size is not None:
                dim.dim_value = size


def _declared(value: ValueInfoProto) -> tuple[int | str | None, ...]:
    """An input's sizes: a number, a name, or None."""
    dims = value.type.tensor_type.shape.dim
    return tuple(
        d.dim_value if d.HasField("dim_value") else dimension_name(d.dim_param) for d in dims
    )


def _check_fit(
    value: ValueInfoProto, declared: tuple[int | str | None, ...], sizes: tuple[int, ...]
) -> None:
    ranked = value.type.tensor_type.HasField("shape")
    pairs = zip(sizes, declared, strict=False)
    fits = all(want >= 0 and (not isinstance(have, int) or have == want) for want, have in pairs)
    if not fits or (ranked and len(declared) != len(sizes)):
        _refuse(value.name, declared, sizes)


def _refuse(name: str, declared: tuple[int | str | None, ...], sizes: tuple[int, ...]) -> NoReturn:
    have = _text("?" if size is None else size for size in declared)
    raise InputError(f"input {name!r} has shape {have}: {_text(sizes)} does not fit it")


def _text(sizes: Iterable[int | str]) -> str:
    return "x".join(str(size) for size in sizes) or "scalar"
