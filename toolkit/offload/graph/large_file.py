"""Read a large model file without its weights, which stay in the file.

The file is one protobuf message; a weight is a tensor among the graph's initializers whose
numbers are one field of raw bytes. Only the other fields are read, and each large weight becomes
an external tensor that points to its place in the file. O(nodes + initializers).
"""

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from offload.graph.elements import dense_bytes
from offload.graph.external import OWN_FILE, Extent, is_external, point_to

# Smaller files are read as a whole, and smaller weights with them.
LARGE_FILE_BYTES = 1 << 26
LEAST_WEIGHT_BYTES = 1 << 16
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto, TensorProto
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types


def read_large(path: Path) -> ModelProto:
    """The model of a file, its large weights pointing to `OWN_FILE`.

    Raises:
        DecodeError: the file is not such a message.
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return ModelProto.FromString(_light(data, 0, len(data), (_GRAPH, _INITIALIZER)))


def _light(data: mmap, start: int, end: int, path: tuple[int, ...]) -> bytes:
    """A message with the tensors at a path of field numbers made light."""
    pieces = []
    for number, wire, begin, value, stop in _fields(data, start, end):
        if number != path[0] or wire != _LENGTH:
            pieces.append(data[begin:stop])
            continue
        inner = _light(data, value, stop, path[1:]) if path[1:] else _tensor(data, value, stop)
        pieces += [_varint(number << 3 | _LENGTH), _varint(len(inner)), inner]
    return b"".join(pieces)


def _tensor(data: mmap, start: int, end: int) -> bytes:
    """A tensor without its raw data, if these are large and all there is."""
    if end - start < LEAST_WEIGHT_BYTES:
        return data[start:end]
    rest, raw = [], None
    for number, wire, begin, value, stop in _fields(data, start, end):
        if number == _RAW_DATA and wire == _LENGTH and raw is None:
            raw = Extent(OWN_FILE, value, stop - value)
        else:
            rest.append(data[begin:stop])
    if raw is None or raw.length_bytes < LEAST_WEIGHT_BYTES:
        return data[start:end]
    tensor = TensorProto.FromString(b"".join(rest))
    if is_external(tensor) or dense_bytes(tensor.data_type, tensor.dims) != raw.length_bytes:
        return data[start:end]
    point_to(tensor, raw)
    return tensor.SerializeToString()


def _fields(data: mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, begin, begin of the value and end of each field."""
    place = start
    while place < end:
        begin = place
        tag, place = _read_varint(data, place)
        number, wire = tag >> 3, tag & 7
        value = place
        if wire == _VARINT:
            _, place = _read_varint(data, place)
        elif wire == _LENGTH:
            length, value = _read_varint(data, place)
            place = value + length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            place += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise DecodeError(f"wire type {wire} at byte {begin}")
        if place > end:
            raise DecodeError(f"the field at byte {begin} is cut short")
        yield number, wire, begin, value, place


def _read_varint(data: mmap, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while place < len(data) and shift < 64:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise DecodeError(f"the number before byte {place} is cut short")


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
