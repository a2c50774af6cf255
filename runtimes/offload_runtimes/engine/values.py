"""ORT's values in Python: tensors as numpy arrays, sequences as lists, maps as dicts.

Types that numpy lacks have a carrier: bfloat16 is carried as uint16 and float8 as uint8 (bit
patterns); int4 and uint4 as int8 and uint8, one value in each. Text is an object array of `str`.
"""

import ctypes
import re
from collections.abc import Mapping
from numbers import Number
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import onnxruntime as ort
from offload.bundle.bundle import DTYPES, ModelValue
from offload.errors import InputError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Types that are carried as another dtype, with ONNX's numbers of them (TensorProto.DataType).
_CARRIED = {
    "bfloat16": 16,
    "float8e4m3fn": 17,
    "float8e4m3fnuz": 18,
    "float8e5m2": 19,
    "float8e5m2fnuz": 20,
    "uint4": 21,
    "int4": 22,
}
TEXT = "tensor(string)"
UNKNOWN = "unknown"  # the type of an output that the model does not declare
_SEQUENCE = re.compile(r"seq\((.*)\)")
_MAP = re.compile(r"map\((string|u?int\d+),tensor\((\w+)\)\)")
# What ml_dtypes calls the types that numpy lacks; its int4 and uint4 have ORT's names.
_ML_DTYPES = {
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
}
# Python's numbers, and the kinds of dtypes that they become.
_NUMBERS: Mapping[type, str] = {bool: "b", int: "iufc", float: "fc"}
_OBJECT_BYTES = 64  # of a Python object, on average


def dtype_of(ort_type: str) -> np.dtype[Any]:
    """The numpy dtype that holds or carries an ORT type.

    Raises:
        InputError: not a tensor of numbers (text, sequence, map, optional).
    """
    try:
        return DTYPES[ort_type]
    except KeyError:
        raise InputError(f"a value of type {ort_type} is not an array of numbers") from None


def is_carried(ort_type: str) -> bool:
    """Whether numpy has no dtype for an ORT type, so that another one carries it."""
    return ort_type[7:-1] in _CARRIED


def as_feed(where: str, expected: ModelValue, value: Any) -> Any:
    """The value as ORT takes it for an input: an array, a list or a dict.

    An array of the right dtype is returned as it is. Numpy scalars and Python numbers become
    arrays without dimensions, text becomes an object array, and arrays of ml_dtypes become their
    carriers. Nothing is copied otherwise.

    Args:
        where: name of the model, for messages.
        expected: the input.
        value: the caller's value.

    Raises:
        InputError: the value has another type or shape, or the type is not supported.
    """
    kind = expected.type
    if _is_of(value, kind) and shape_fits(expected.shape, value.shape):
        return value  # the usual case, checked first
    if kind == UNKNOWN:
        return value
    if kind.startswith("tensor("):
        array = _as_array(where, expected, value)
        if not shape_fits(expected.shape, array.shape):
            raise _unfit(where, expected, array)
        return array
    if (match := _SEQUENCE.fullmatch(kind)) and not match[1].startswith("seq("):
        if not isinstance(value, list | tuple):
            raise _unfit(where, expected, value)
        element = ModelValue(expected.name, match[1], None)
        return [as_feed(where, element, item) for item in value]
    if match := _MAP.fullmatch(kind):
        key, entry = (str if of == "string" else Number for of in match.groups())
        if not isinstance(value, Mapping) or not all(
            isinstance(k, key) and isinstance(v, entry) for k, v in value.items()
        ):
            raise _unfit(where, expected, value)
        return dict(value)
    raise InputError(f"{where}: input {expected.name!r} is a {kind}: not supported")


def as_feeds(
    where: str,
    inputs: Mapping[str, ModelValue],
    defaults: Mapping[str, ModelValue],
    feeds: Mapping[str, Any],
) -> dict[str, Any]:
    """The values of all inputs as ORT takes them, see `as_feed`.

    Args:
        where: name of the model, for messages.
        inputs: the required inputs, by name.
        defaults: the optional inputs, which have a default in the model, by name.
        feeds: the caller's values, by name.

    Raises:
        InputError: a name, type or shape is wrong, or a required input is missing.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(
            f"{where}: inputs are a dict from names to arrays, not a {type(feeds).__name__}: give"
            f" all of {list(inputs)}"
        )
    checked: dict[str, Any] = {}
    for name, value in feeds.items():
        expected = inputs.get(name) or defaults.get(name)
        if expected is None:
            known = [*inputs, *defaults]
            raise InputError(f"{where} has no input {name!r}: it takes {known}")
        checked[name] = as_feed(where, expected, value)
    for name in inputs:
        if name not in feeds:
            raise InputError(f"{where}: input {name!r} is missing: give all of {list(inputs)}")
    return checked


def _is_of(value: Any, kind: str) -> TypeGuard[Array]:
    """Whether a value is an array of a type's dtype."""
    dtype = DTYPES.get(kind)  # numpy's float64 == None is true
    return isinstance(value, np.ndarray) and dtype is not None and value.dtype == dtype


def _as_array(where: str, expected: ModelValue, value: Any) -> Array:
    if _is_of(value, expected.type):
        return value
    dtype = DTYPES.get(expected.type)
    if expected.type == TEXT:
        text = np.asarray(value) if isinstance(value, str | np.ndarray) else None
        if text is None or text.dtype.kind not in "UO":
            raise _unfit(where, expected, value)
        words: Array = text.astype(object, copy=False)
        if not all(isinstance(word, str) for word in words.flat):
            raise InputError(f"{where}: input {expected.name!r} holds something that is not text")
        return words
    if dtype is None:
        raise InputError(f"{where}: input {expected.name!r} is a {expected.type}: not supported")
    if dtype.kind in _NUMBERS.get(type(value), "") and not is_carried(expected.type):
        try:
            return np.array(value, dtype)
        except OverflowError as error:
            raise InputError(
                f"{where}: input {expected.name!r} is {dtype}, {value} does not fit it"
            ) from error
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        carried = array if array.dtype == dtype else _carrier(array, expected.type[7:-1])
        if carried is not None:
            return carried
    raise _unfit(where, expected, value)


def _carrier(array: Array, name: str) -> Array | None:
    """An array of ml_dtypes, or its bytes as `np.load` returns them, as its carrier."""
    if name not in _CARRIED or array.dtype.kind != "V" or array.dtype.names is not None:
        return None
    dtype = DTYPES[f"tensor({name})"]
    own = array.dtype.name
    if array.dtype.itemsize != dtype.itemsize:
        return None
    if own == name and name.endswith("int4"):
        return array.astype(dtype)
    if own == _ML_DTYPES.get(name, name):
        return array.view(dtype)
    if not own.startswith("void"):
        return None
    # A file has only the bytes; those of a 4-bit type have its value in the low half.
    bits = array.view(np.uint8 if name.endswith("int4") else dtype)
    return _signed(bits, dtype) if name.endswith("int4") else bits


def _unfit(where: str, expected: ModelValue, value: Any) -> InputError:
    kind = expected.type
    if kind.startswith("tensor("):
        word = "text" if kind == TEXT else str(DTYPES.get(kind, kind))
        kind = f"{word}{show_shape(expected.shape)}"
    elif kind.startswith("seq("):
        kind = f"a list for {kind}"
    elif kind.startswith("map("):
        kind = f"a dict for {kind}"
    got = type(value).__name__
    if isinstance(value, list | tuple) and expected.type in DTYPES:
        got += f": use np.asarray(..., dtype=np.{DTYPES[expected.type]})"
    if isinstance(value, np.ndarray | np.generic):
        got = f"{value.dtype}{show_shape(value.shape)}"
    return InputError(f"{where}: input {expected.name!r} must be {kind}, not {got}")


def size_bytes(value: Any) -> int:
    """Bytes of a value in memory; an estimate for text, sequences and maps."""
    if isinstance(value, np.ndarray):
        if value.dtype != object:
            return value.nbytes
        return sum(_OBJECT_BYTES + len(word) for word in value.flat)
    if isinstance(value, Mapping):
        return 2 * _OBJECT_BYTES * (1 + len(value))
    if isinstance(value, list):
        return sum(map(size_bytes, value))
    return _OBJECT_BYTES


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
    # `np.ascontiguousarray` would give an array without dimensions one dimension.
    array = np.asarray(array, order="C")
    if name not in _CARRIED:
        return ort.OrtValue.ortvalue_from_numpy(array)
    if name.endswith("int4"):  # two values a byte, the first in the low half, as ONNX stores them
        low = array.astype(np.uint8).ravel() & 0xF
        padded = np.append(low, np.zeros(low.size % 2, np.uint8)).astype(np.uint8)
        packed: Array = padded[0::2] | (padded[1::2] << 4)
    else:
        packed = array
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), _CARRIED[name])
    ctypes.memmove(value.data_ptr(), packed.ctypes.data, packed.nbytes)
    return value


def from_ort(value: ort.OrtValue) -> Array:
    """The array that holds or carries an OrtValue; carried types are copied."""
    name = value.data_type()[7:-1]
    if name not in _CARRIED:
        array: Array = value.numpy()
        return array
    shape, dtype = tuple(value.shape()), DTYPES[f"tensor({name})"]
    count = int(np.prod(shape))
    is_four_bit = name.endswith("int4")
    size_bytes = (count + 1) // 2 if is_four_bit else count * dtype.itemsize
    raw = ctypes.string_at(value.data_ptr(), size_bytes)
    if not is_four_bit:
        return np.frombuffer(raw, dtype).reshape(shape)
    packed = np.frombuffer(raw, np.uint8)
    halves = np.stack((packed & 0xF, packed >> 4), axis=-1).ravel()[:count]
    return _signed(halves, dtype).reshape(shape)


def _signed(halves: Array, dtype: np.dtype[Any]) -> Array:
    """The values of 4-bit integers, from the low half of each byte."""
    halves = (halves & 0xF).astype(dtype)
    return np.where(halves > 7, halves - 16, halves).astype(dtype) if dtype == np.int8 else halves


def rows_of(feeds: Mapping[str, Any]) -> int | None:
    """Size of axis 0, if all inputs share it; None if they do not, or it is 0 or missing.

    Sequences and maps have no axis 0.
    """
    sizes = {
        value.shape[0] if isinstance(value, np.ndarray) and value.ndim else 0
        for value in feeds.values()
    }
    return sizes.pop() or None if len(sizes) == 1 else None
