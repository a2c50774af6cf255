"""ORT's tensor types as numpy arrays, also those numpy has no dtype for.

bfloat16 travels as uint16 and float8 as uint8 (bit patterns); int4 and uint4 as int8 and uint8,
one value in each.
"""

import ctypes
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from offload.bundle.bundle import Value
from offload.errors import InputError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_PLAIN = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
# Carried as another dtype: the carrier and ONNX's number of the type (TensorProto.DataType).
_CARRIED = {
    "bfloat16": ("uint16", 16),
    "float8e4m3fn": ("uint8", 17),
    "float8e4m3fnuz": ("uint8", 18),
    "float8e5m2": ("uint8", 19),
    "float8e5m2fnuz": ("uint8", 20),
    "uint4": ("uint8", 21),
    "int4": ("int8", 22),
}
DTYPES: Mapping[str, np.dtype[Any]] = {
    f"tensor({name})": np.dtype(dtype)
    for name, dtype in {**_PLAIN, **{n: c for n, (c, _) in _CARRIED.items()}}.items()
}
_FED = {**DTYPES, "tensor(string)": np.dtype(object)}


def dtype_of(ort_type: str) -> np.dtype[Any]:
    """The numpy dtype that holds or carries an ORT type.

    Raises:
        InputError: no array can hold it (sequence, string, optional).
    """
    try:
        return DTYPES[ort_type]
    except KeyError:
        raise InputError(f"values of type {ort_type} cannot cross the link") from None


def is_carried(ort_type: str) -> bool:
    """Whether numpy has no dtype for an ORT type, so that another one carries it."""
    return ort_type[7:-1] in _CARRIED


def check_feed(where: str, expected: Value, array: Array) -> None:
    """Refuse an array that does not fit an input.

    Raises:
        InputError: wrong dtype or shape, or a type that no array can hold (sequence, optional).
    """
    dtype = _FED.get(expected.type)
    if dtype is None:
        raise InputError(f"{where}: input {expected.name!r} is a {expected.type}: not supported")
    if not isinstance(array, np.ndarray | np.generic):
        raise InputError(
            f"{where}: input {expected.name!r} must be an array, not a {type(array).__name__}: use"
            f" np.asarray(..., dtype=np.{dtype})"
        )
    if array.dtype != dtype or not shape_fits(expected.shape, array.shape):
        raise InputError(
            f"{where}: input {expected.name!r} must be {dtype}{show_shape(expected.shape)},"
            f" not {array.dtype}{show_shape(array.shape)}"
        )


def shape_fits(declared: tuple[int | str | None, ...] | None, shape: tuple[int, ...]) -> bool:
    """Whether a shape has the declared rank and every declared fixed size."""
    if declared is None or declared == shape:
        return True
    if len(declared) != len(shape):
        return False
    return all(
        not isinstance(want, int) or want == got for want, got in zip(declared, shape, strict=True)
    )


def show_shape(shape: tuple[int | str | None, ...] | None) -> str:
    """A shape for people: `[1x3x?]`; a dynamic size shows its name or a question mark."""
    if shape is None:
        return "[any shape]"
    return f"[{'x'.join('?' if size is None else str(size) for size in shape)}]"


def to_ort(array: Array, ort_type: str) -> ort.OrtValue:
    """An OrtValue of a type from the array that holds or carries it (one copy if carried)."""
    name = ort_type[7:-1]
    if name not in _CARRIED:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    packed = _pack(array) if name.endswith("int4") else np.ascontiguousarray(array)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), _CARRIED[name][1])
    ctypes.memmove(value.data_ptr(), packed.ctypes.data, packed.nbytes)
    return value


def from_ort(value: ort.OrtValue) -> Array:
    """The array that holds or carries an OrtValue; carried types are copied."""
    name = value.data_type()[7:-1]
    if name not in _CARRIED:
        array: Array = value.numpy()
        return array
    shape, dtype = tuple(value.shape()), np.dtype(_CARRIED[name][0])
    count = int(np.prod(shape))
    four_bit = name.endswith("int4")
    size_bytes = (count + 1) // 2 if four_bit else count * dtype.itemsize
    raw = ctypes.string_at(value.data_ptr(), size_bytes)
    flat = _unpack(raw, count, dtype) if four_bit else np.frombuffer(raw, dtype)
    return flat.reshape(shape)


def _pack(array: Array) -> Array:
    """Two values a byte, the first in the low half, as ONNX stores them."""
    low = array.astype(np.uint8).ravel() & 0xF
    padded = np.append(low, np.zeros(low.size % 2, np.uint8)).astype(np.uint8)
    return padded[0::2] | (padded[1::2] << 4)


def _unpack(raw: bytes, count: int, dtype: np.dtype[Any]) -> Array:
    packed = np.frombuffer(raw, np.uint8)
    halves = np.stack((packed & 0xF, packed >> 4), axis=-1).ravel()[:count].astype(dtype)
    return np.where(halves > 7, halves - 16, halves).astype(dtype) if dtype == np.int8 else halves
