"""Element types of tensors: their names and their size in bits."""

import math
from collections.abc import Iterable

from onnx import TensorProto

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


def element_type(dtype: str) -> int:
    """Inverse of `dtype_name`.

    Raises:
        ValueError: there is no such ONNX element type.
    """
    return int(TensorProto.DataType.Value(dtype.upper()))


def size_bytes(dtype: str | None, shape: Iterable[int | None] | None) -> int | None:
    """Bytes of a dense, packed tensor; None when dtype or a size is unknown, or for strings."""
    sizes = None if shape is None else tuple(shape)
    bits = _BITS.get(dtype or "")
    if bits is None or sizes is None or None in sizes:
        return None
    return (math.prod(size or 0 for size in sizes) * bits + 7) // 8


def dense_bytes(element_type: int, dims: Iterable[int]) -> int | None:
    """`size_bytes` for a tensor given as ONNX stores it."""
    return size_bytes(dtype_name(element_type), dims)
