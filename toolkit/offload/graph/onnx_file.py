"""Locations of the weights of an ONNX file, and reading a large file without its weights."""

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
    """Make a tensor external, its bytes in a part of a file."""
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
    """The files that store a model's external weights.

    Attributes:
        extents: locations of the bytes of external tensors, each once.
        paths: the real file of each location, all links followed.
    """

    extents: tuple[Extent, ...] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)

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


def find_weight_files(proto: ModelProto, directory: Path | None, path: Path | None) -> WeightFiles:
    """Find the weight files of a model.

    A location is looked up in the model's directory. If the model's file is a symbolic link (as in
    Hugging Face's cache), the directory of the link's target is searched next. Weight files may be
    symbolic links to files in these two directories or below: a link to another place could lead
    to any file of this machine.

    Args:
        proto: the model.
        directory: the directory of the model.
        path: its file; None when it was given in memory.

    Raises:
        InputError: a file is missing, too short, not a weight file, or outside the model's
            directories.
    """
    extents = tuple(
        dict.fromkeys(extent(tensor) for tensor in external_tensors(proto.graph, proto.functions))
    )
    needed_bytes: dict[str, int] = {}
    for item in extents:
        if item.offset_bytes < 0 or item.length_bytes < 0:
            raise InputError(f"external data {item.location!r} has a negative offset or length")
        end_bytes = item.offset_bytes + item.length_bytes
        needed_bytes[item.location] = max(needed_bytes.get(item.location, 0), end_bytes)
    roots = [] if directory is None else [directory.resolve()]
    if directory is not None and path is not None:
        roots = list(dict.fromkeys((*roots, path.resolve().parent)))
    paths = {}
    for location, end_bytes in needed_bytes.items():
        if path and location == OWN_FILE:
            file = path.resolve()
        else:
            file = _find_weight_file(location, roots)
        paths[location] = file
        size_bytes = file.stat().st_size
        if size_bytes < end_bytes:
            with file.open("rb") as start:
                foreign = foreign_content(start.read(FOREIGN_BYTES))
            raise InputError(
                f"external data file {file} "
                + (foreign or f"is cut short: {size_bytes} bytes, needs {end_bytes}")
            )
    return WeightFiles(extents, paths)


def _find_weight_file(location: str, roots: list[Path]) -> Path:
    """The real file of a location, in one of the directories."""
    if not roots:
        raise InputError(
            f"the model keeps weights in {location!r} and no directory was given to find it in"
        )
    parts = PurePosixPath(location.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise InputError(f"external data {location!r} is outside the model's directory")
    candidates = [root / location for root in roots]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise InputError(f"external data file {candidates[0]} is missing: copy it beside the model")
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise InputError(
            f"external data file {path} is a link to {real}, which is outside the model's"
            " directory: copy that file in its place"
        )
    return real


FOREIGN_BYTES = 512
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def foreign_content(start: bytes) -> str | None:
    """Recognise a file that is not a model or weights: its content and the remedy; None otherwise.

    Downloads often leave another file under the expected name. The result is the end of a sentence.

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


# Smaller files, and smaller weights of large files, are read as a whole.
LARGE_FILE_BYTES = 1 << 26
LEAST_WEIGHT_BYTES = 1 << 16
GRAPH_FIELD = 7  # of ModelProto
INITIALIZER_FIELD = 5  # of GraphProto
RAW_DATA_FIELD = 9  # of TensorProto
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types of protobuf


def read_large(path: Path) -> ModelProto:
    """The model of a file, its large weights external, with location `OWN_FILE`.

    Raises:
        DecodeError: the file is not a protobuf message.
    """
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        weights = (GRAPH_FIELD, INITIALIZER_FIELD)
        return ModelProto.FromString(_without_weights(data, 0, len(data), weights))


def _without_weights(data: mmap, start: int, end: int, path: tuple[int, ...]) -> bytes:
    """A message with the large tensors at a path of field numbers made external."""
    pieces = []
    for number, wire_type, begin, value, stop in _fields(data, start, end):
        if number != path[0] or wire_type != _LENGTH:
            pieces.append(data[begin:stop])
            continue
        if path[1:]:
            inner = _without_weights(data, value, stop, path[1:])
        else:
            inner = _without_raw_data(data, value, stop)
        pieces += [tag(number), varint(len(inner)), inner]
    return b"".join(pieces)


def _without_raw_data(data: mmap, start: int, end: int) -> bytes:
    """Replace a tensor's large raw data by a reference to the file; keep other tensors."""
    if end - start < LEAST_WEIGHT_BYTES:
        return data[start:end]
    other_fields, raw = [], None
    for number, wire_type, begin, value, stop in _fields(data, start, end):
        if number == RAW_DATA_FIELD and wire_type == _LENGTH and raw is None:
            raw = Extent(OWN_FILE, value, stop - value)
        else:
            other_fields.append(data[begin:stop])
    if raw is None or raw.length_bytes < LEAST_WEIGHT_BYTES:
        return data[start:end]
    tensor = TensorProto.FromString(b"".join(other_fields))
    if is_external(tensor) or dense_bytes(tensor) != raw.length_bytes:
        return data[start:end]
    point_to(tensor, raw)
    return tensor.SerializeToString()


def _fields(data: mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of the value, and end of each field of a message."""
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


def tag(field_number: int) -> bytes:
    """The start of a length-delimited protobuf field."""
    return varint(field_number << 3 | _LENGTH)


def varint(value: int, width_bytes: int = 1) -> bytes:
    """A protobuf integer, in at least `width_bytes` bytes (leading zeros are allowed)."""
    digits = bytearray()
    while value >= 0x80 or len(digits) < width_bytes - 1:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
