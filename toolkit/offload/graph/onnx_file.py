"""Where an ONNX file stores its weights, and how to read the file without them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError
from onnx import FunctionProto, GraphProto, ModelProto, StringStringEntryProto, TensorProto

from offload.errors import InputError
from offload.graph.onnx_types import dense_bytes
from offload.graph.value_index import graph_tensors, node_tensors


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor's bytes: `length_bytes` from `offset_bytes` on in the file `location`."""

    location: str
    offset_bytes: int
    length_bytes: int


# The location of weights that a large model file itself holds; no file has this name.
OWN_FILE = ""


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes are in a file, another one or the model's own."""
    return tensor.data_location == TensorProto.EXTERNAL


def is_outside(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes are in another file than the model's own."""
    return is_external(tensor) and extent(tensor).location != OWN_FILE


def extent(tensor: TensorProto) -> Extent:
    """Where an external tensor's bytes are.

    Raises:
        InputError: the entry names no file, or its numbers are not numbers.
    """
    fields = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(fields.get("offset") or 0)
        length = int(fields.get("length") or 0) or dense_bytes(tensor) or 0
        return Extent(fields["location"], offset, length)
    except (KeyError, ValueError):
        raise InputError(
            f"tensor {tensor.name!r} has a broken external data entry: export the model again"
        ) from None


def point_to(tensor: TensorProto, where: Extent) -> None:
    """Make a tensor's bytes be those of a file."""
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("external_data")
    for key, value in (
        ("location", where.location),
        ("offset", str(where.offset_bytes)),
        ("length", str(where.length_bytes)),
    ):
        tensor.external_data.append(StringStringEntryProto(key=key, value=value))


def external_tensors(
    graph: GraphProto, functions: Iterable[FunctionProto]
) -> Iterator[TensorProto]:
    """Every external tensor, those in bodies and functions included."""
    yield from filter(is_external, graph_tensors(graph))
    for function in functions:
        for node in function.node:
            yield from filter(is_external, node_tensors(node))


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files from which a model's weights are read, and what they hold.

    Attributes:
        extents: where the bytes of external tensors are, each once.
        paths: the real file of each location, all links followed.
    """

    extents: tuple[Extent, ...] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, proto: ModelProto, directory: Path | None, path: Path | None) -> "WeightFiles":
        """Find the weight files of a model.

        A location is looked up in the model's directory. Where the model itself is a link (as in
        Hugging Face's cache), a file that is not there is looked up beside the file that the
        model is a link to. Links are followed as long as they end in one of these two
        directories or below: a link out of them could lead to any file of this machine.

        Args:
            proto: the model.
            directory: where it is.
            path: its file; None when it was given in memory.

        Raises:
            InputError: a file is missing, too short, no file of weights or outside the model's
                directories.
        """
        extents = tuple(
            dict.fromkeys(
                extent(tensor) for tensor in external_tensors(proto.graph, proto.functions)
            )
        )
        ends: dict[str, int] = {}
        for item in extents:
            if item.offset_bytes < 0 or item.length_bytes < 0:
                raise InputError(f"external data {item.location!r} has a negative offset or length")
            end_bytes = item.offset_bytes + item.length_bytes
            ends[item.location] = max(ends.get(item.location, 0), end_bytes)
        roots = _roots(directory, path)
        paths = {
            location: path.resolve() if path and location == OWN_FILE else _find(location, roots)
            for location in ends
        }
        for location, end_bytes in ends.items():
            _check_size(paths[location], end_bytes)
        return cls(extents, paths)

    def loaded(self, tensor: TensorProto) -> TensorProto:
        """An external tensor with its bytes inside.

        Raises:
            OSError: the file cannot be read.
        """
        where = extent(tensor)
        whole = TensorProto()
        whole.CopyFrom(tensor)
        whole.ClearField("external_data")
        whole.ClearField("data_location")
        with self.paths[where.location].open("rb") as file:
            file.seek(where.offset_bytes)
            whole.raw_data = file.read(where.length_bytes)
        return whole


def _roots(directory: Path | None, path: Path | None) -> tuple[Path, ...]:
    """The directories that weight files may be in: the model's, then that of its real file."""
    if directory is None:
        return ()
    real = [path.resolve().parent] if path else []
    return tuple(dict.fromkeys((directory.resolve(), *real)))


def _find(location: str, roots: tuple[Path, ...]) -> Path:
    if not roots:
        raise InputError(
            f"the model keeps weights in {location!r} and no directory was given to find it in"
        )
    parts = PurePosixPath(location.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise InputError(f"external data {location!r} is outside the model's directory")
    places = [root / location for root in roots]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"external data file {places[0]} is missing: copy it beside the model")
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise InputError(
            f"external data file {path} is a link to {real}, which is outside the model's"
            " directory: copy that file in its place"
        )
    return real


def _check_size(path: Path, end_bytes: int) -> None:
    size_bytes = path.stat().st_size
    if size_bytes >= end_bytes:
        return
    with path.open("rb") as file:
        foreign = foreign_content(file.read(FOREIGN_BYTES))
    if foreign:
        raise InputError(f"external data file {path} {foreign}")
    raise InputError(
        f"external data file {path} is cut short: {size_bytes} bytes, needs {end_bytes}"
    )


FOREIGN_BYTES = 512
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def foreign_content(start: bytes) -> str | None:
    """What a file holds in place of a model or weights, and what to do, as the end of a sentence.

    Downloads often leave something else under the name of the file. None: nothing known.

    Args:
        start: the first `FOREIGN_BYTES` of the file, or all of it.
    """
    if not start:
        return "is empty: download or export it again"
    if start.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return (
            "is an HTML page, not the file itself (the download was answered by a web page):"
            " download it again, signed in if need be"
        )
    return None


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
    for number, wire_type, begin, value, stop in _fields(data, start, end):
        if number != path[0] or wire_type != _LENGTH:
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
    for number, wire_type, begin, value, stop in _fields(data, start, end):
        if number == _RAW_DATA and wire_type == _LENGTH and raw is None:
            raw = Extent(OWN_FILE, value, stop - value)
        else:
            rest.append(data[begin:stop])
    if raw is None or raw.length_bytes < LEAST_WEIGHT_BYTES:
        return data[start:end]
    tensor = TensorProto.FromString(b"".join(rest))
    if is_external(tensor) or dense_bytes(tensor) != raw.length_bytes:
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
