"""Types of ONNX values: element types, shapes, sizes in bytes, common types."""

import math
from collections.abc import Iterable, Sequence

from onnx import TensorProto, TensorShapeProto, TypeProto

from offload.graph.dimensions import Dim, dimension_name
from offload.graph.model import Tensor

_BITS = {
    "float": 32, "uint8": 8, "int8": 8, "uint16": 16, "int16": 16, "int32": 32, "int64": 64,
    "bool": 8, "float16": 16, "double": 64, "uint32": 32, "uint64": 64, "complex64": 64,
    "complex128": 128, "bfloat16": 16, "float8e4m3fn": 8, "float8e4m3fnuz": 8, "float8e5m2": 8,
    "float8e5m2fnuz": 8, "float8e8m0": 8, "uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2,
    "int2": 2,
}  # fmt: skip


def dtype_name(element_type: int) -> str | None:
    """ONNX element type in lower case (`float`, `int64`), None for undefined or unknown."""
    if element_type == TensorProto.UNDEFINED:
        return None
    try:
        return str(TensorProto.DataType.Name(element_type)).lower()
    except ValueError:
        return None


def type_name(typed: TypeProto) -> str:
    """A type as onnxruntime writes it: `tensor(float)`, `seq(tensor(int64))`."""
    if typed.HasField("tensor_type"):
        return f"tensor({TensorProto.DataType.Name(typed.tensor_type.elem_type).lower()})"
    if typed.HasField("sequence_type"):
        return f"seq({type_name(typed.sequence_type.elem_type)})"
    if typed.HasField("optional_type"):
        return f"optional({type_name(typed.optional_type.elem_type)})"
    if typed.HasField("map_type"):
        key = TensorProto.DataType.Name(typed.map_type.key_type).lower()
        return f"map({key},{type_name(typed.map_type.value_type)})"
    return "unknown"


def size_bytes(dtype: str | None, shape: Iterable[int | None] | None) -> int | None:
    """Bytes of a dense, packed tensor; None when dtype or a size is unknown, or for strings."""
    sizes = None if shape is None else tuple(shape)
    bits = _BITS.get(dtype or "")
    if bits is None or sizes is None or None in sizes:
        return None
    return (math.prod(size or 0 for size in sizes) * bits + 7) // 8


def dense_bytes(tensor: TensorProto) -> int | None:
    """Bytes of a stored tensor's elements; None for strings and unknown element types."""
    return size_bytes(dtype_name(tensor.data_type), tensor.dims)


def declared_shape(typed: TypeProto) -> tuple[Dim, ...] | None:
    """Sizes of a tensor type: a number, a name, or None for each; None when it has no shape.

    Some exporters (Paddle) write -1 for a dynamic size.
    """
    if not typed.HasField("tensor_type") or not typed.tensor_type.HasField("shape"):
        return None
    return tuple(
        (dim.dim_value if dim.dim_value >= 0 else None)
        if dim.HasField("dim_value")
        else dimension_name(dim.dim_param)
        for dim in typed.tensor_type.shape.dim
    )


def known_shape(typed: TypeProto | None) -> tuple[int, ...] | None:
    """Sizes of a tensor type; None when it is not a tensor or a size is not known."""
    shape = None if typed is None else declared_shape(typed)
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    return None if shape is None or len(sizes) < len(shape) else sizes


def is_known(typed: TypeProto | None) -> bool:
    """Whether a type is complete: for a tensor, element type and all sizes."""
    if typed is None or typed.WhichOneof("value") is None:
        return False
    if not typed.HasField("tensor_type"):
        return True
    return typed.tensor_type.elem_type != TensorProto.UNDEFINED and known_shape(typed) is not None


def as_tensor(name: str, typed: TypeProto) -> Tensor:
    """A value of an ONNX type as a tensor; dtype None for sequences, maps and optionals."""
    if not typed.HasField("tensor_type"):
        return Tensor(name, None, None, None)
    dtype, declared = dtype_name(typed.tensor_type.elem_type), declared_shape(typed)
    shape = None
    if declared is not None:
        shape = tuple(size if isinstance(size, int) else None for size in declared)
    return Tensor(name, dtype, shape, size_bytes(dtype, shape))


def tensor_type(tensor: Tensor) -> TypeProto:
    """The ONNX type of a tensor of known element type; the inverse of `as_tensor`."""
    typed = TypeProto()
    typed.tensor_type.elem_type = TensorProto.DataType.Value((tensor.dtype or "undefined").upper())
    if tensor.shape is not None:
        typed.tensor_type.shape.SetInParent()
        for size in tensor.shape:
            dim = typed.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return typed


def fill_in(first: TypeProto | None, second: TypeProto | None) -> TypeProto | None:
    """The first type, its unknown element type and sizes taken from the second."""
    if first is None or second is None or is_known(first):
        return first or second
    if not first.HasField("tensor_type") or not second.HasField("tensor_type"):
        return first if first.WhichOneof("value") else second
    filled = TypeProto()
    filled.CopyFrom(first)
    if filled.tensor_type.elem_type == TensorProto.UNDEFINED:
        filled.tensor_type.elem_type = second.tensor_type.elem_type
    if not second.tensor_type.HasField("shape"):
        return filled
    if not filled.tensor_type.HasField("shape"):
        filled.tensor_type.shape.CopyFrom(second.tensor_type.shape)
        return filled
    dims, others = filled.tensor_type.shape.dim, second.tensor_type.shape.dim
    if len(dims) == len(others):
        for dim, other in zip(dims, others, strict=True):
            if other.HasField("dim_value") and not dim.HasField("dim_value"):
                dim.dim_value = other.dim_value
    return filled


def common_type(types: Sequence[TypeProto | None]) -> TypeProto | None:
    """The type that several types share, sizes that differ left open; None where they share none.

    None also where one of the types is unknown.
    """
    first = types[0]
    if first is None or any(typed is None for typed in types):
        return None
    common = TypeProto()
    common.CopyFrom(first)
    for other in types[1:]:
        assert other is not None
        if other == common:
            continue
        if not common.HasField("tensor_type") or not other.HasField("tensor_type"):
            return None
        if common.tensor_type.elem_type != other.tensor_type.elem_type:
            return None
        dims, others = common.tensor_type.shape.dim, other.tensor_type.shape.dim
        if not other.tensor_type.HasField("shape") or len(dims) != len(others):
            common.tensor_type.ClearField("shape")
            continue
        for dim, against in zip(dims, others, strict=True):
            if dim != against:
                dim.Clear()
    return common


def with_axis(typed: TypeProto | None, size: int | None, axis: int) -> TypeProto | None:
    """A tensor type with an axis of this size inserted, as a loop's outputs are stacked."""
    if typed is None or not typed.HasField("tensor_type"):
        return None
    stacked = TypeProto()
    stacked.tensor_type.elem_type = typed.tensor_type.elem_type
    if typed.tensor_type.HasField("shape"):
        dims = list(typed.tensor_type.shape.dim)
        dim = TensorShapeProto.Dimension()
        if size is not None:
            dim.dim_value = size
        dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, dim)
        stacked.tensor_type.shape.dim.extend(dims)
    return stacked


def without_axis(typed: TypeProto | None, axis: int) -> TypeProto | None:
    """A tensor type with an axis removed, as a scan's inputs are sliced."""
    if typed is None or not typed.HasField("tensor_type"):
        return None
    step = TypeProto()
    step.tensor_type.elem_type = typed.tensor_type.elem_type
    if typed.tensor_type.HasField("shape"):
        dims = list(typed.tensor_type.shape.dim)
        if not -len(dims) <= axis < len(dims):
            return step
        del dims[axis]
        step.tensor_type.shape.SetInParent()
        step.tensor_type.shape.dim.extend(dims)
    return step
