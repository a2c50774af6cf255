"""Encode and decode text, sequences and maps, as the `Value` messages of `offload.proto`.

In Python they are as in onnxruntime: text is an object array of `str`, a sequence is a list, a map
is a dict from `int` or `str` to `int`, `float` or `str`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.engine import DTYPES, Array

_DTYPES = {dtype.newbyteorder("<").str: dtype for dtype in DTYPES.values()}
_MAX_RANK = 16


def is_structured(value: object) -> bool:
    """Whether a value is text, a sequence or a map: not an array of numbers."""
    return not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc"


def encode(value: Any) -> bytes:
    """Encode a value.

    Raises:
        ValueError: it is not a value that onnxruntime returns (or an optional without a value).
    """
    return _message(value).SerializeToString()


def decode(data: bytes | memoryview) -> Any:
    """Decode a value; arrays of numbers are read-only views of the bytes.

    Raises:
        ValueError: the bytes are not an encoded value.
    """
    message = pb.Value()
    try:
        message.ParseFromString(bytes(data))
    except DecodeError as error:
        raise ValueError("the value cannot be parsed") from error
    return _value(message)


def _message(value: Any) -> pb.Value:
    if isinstance(value, np.ndarray):
        return _text(value) if is_structured(value) else _numbers(value)
    if isinstance(value, list | tuple):
        return pb.Value(sequence=pb.Sequence(elements=map(_message, value)))
    if isinstance(value, Mapping):
        keys, values = _column(value.keys()), _column(value.values())
        return pb.Value(map=pb.Map(keys=keys, values=values))
    raise ValueError(f"a {type(value).__name__} is not a tensor, a sequence or a map")


def _numbers(array: Array) -> pb.Value:
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    numbers = pb.Numbers(dtype=array.dtype.str, shape=array.shape, data=array.tobytes())
    return pb.Value(numbers=numbers)


def _text(array: Array) -> pb.Value:
    words = [str(word) for word in array.flat]
    return pb.Value(text=pb.Text(shape=array.shape, elements=words))


def _column(values: Iterable[Any]) -> pb.Value:
    """Encode the keys or the values of a map."""
    listed = list(values)
    if any(isinstance(value, str) for value in listed):
        return _text(np.array(listed, object))
    array = np.array(listed) if listed else np.zeros(0, np.int64)
    return _numbers(array.astype(np.int64 if array.dtype.kind in "bui" else np.float64))


def _value(message: pb.Value) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "numbers":
        numbers = message.numbers
        dtype = _DTYPES.get(numbers.dtype)
        if dtype is None:
            raise ValueError(f"numbers of type {numbers.dtype[:20]!r} are not supported")
        array: Array = np.frombuffer(numbers.data, dtype.newbyteorder("<"))
        return array.astype(dtype, copy=False).reshape(_shape(numbers.shape))
    if kind == "text":
        words = np.empty(len(message.text.elements), object)
        words[:] = message.text.elements
        return words.reshape(_shape(message.text.shape))
    if kind == "sequence":
        return [_value(element) for element in message.sequence.elements]
    if kind == "map":
        keys, values = _entries(message.map.keys), _entries(message.map.values)
        return dict(zip(keys, values, strict=True))
    raise ValueError("a value is empty")


def _entries(message: pb.Value) -> list[Any]:
    """The keys or the values of a map."""
    if message.WhichOneof("kind") not in ("numbers", "text"):
        raise ValueError("a map of maps is not supported")
    column = _value(message)
    if column.ndim != 1:
        raise ValueError("the keys or values of a map are not a list")
    entries: list[Any] = column.tolist()
    return entries


def _shape(sizes: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(sizes)
    if len(shape) > _MAX_RANK or math.prod(shape) >= 2**62 or any(size >= 2**62 for size in shape):
        raise ValueError("a shape is too large")
    return shape
