"""Write parts of a model to a folder, streaming their weights.

Weights are written inside a part's file one tensor at a time, so that memory holds the source
and one tensor more. Weights that the source keeps outside, and the large ones of a part that
would grow too big for one message, go to weight files beside it: `device.weights` and
`server.weights` for what one side needs, `shared.weights` for what both do. So do weights that
several parts need, where that is asked for: the parts of several plans. Each side is complete
with its own and the shared file; on one machine nothing is stored twice.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from offload.bundle.subgraph import Excerpt, Part, excerpt
from offload.files import AtomicFiles
from offload.graph.load import Model
from offload.graph.model import Tensor
from offload.graph.onnx_file import (
    OWN_FILE,
    Extent,
    extent,
    external_tensors,
    is_external,
    is_outside,
    point_to,
)
from offload.graph.onnx_types import dense_bytes

# A protobuf message may not reach 2 GiB, and some readers copy it: stay well below.
INLINE_LIMIT_BYTES = 1_500_000_000
# What is smaller stays inside even of a part that is too big: shape arithmetic reads it.
_SMALL_BYTES = 1024
# Types whose lists of numbers can be written as bytes.
_TYPED = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)
# Engines map weight files into memory page by page.
_PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_GRAPH_FIELD = 7  # of ModelProto
_INITIALIZER_FIELD = 5  # of GraphProto
_RAW_DATA_FIELD = 9  # of TensorProto
_LENGTH_BYTES = 5  # a length below 2**35, written in this many bytes whatever its value
_NO_TYPES: Mapping[str, Tensor] = {}
# Changes a part before it is written: its head (all but the graph) and its graph.
Finish = Callable[[ModelProto, GraphProto], None]


def write_part(
    model: Model, part: Part, path: Path, types: Mapping[str, Tensor] = _NO_TYPES
) -> tuple[Path, ...]:
    """Extract one part to a file; its weight file, where it needs one, is `STEM.weights`.

    Returns:
        The files written: the part, and its weight file if there is one.

    Raises:
        InputError: as `extract_part`.
        OSError: the folder can't be written; nothing is left behind.
    """
    piece = excerpt(model, part, types)
    return _write(model, {path.name: piece}, {path.name: path.stem}, path.parent)


def write_parts(
    model: Model,
    parts: Mapping[str, Part],
    folder: Path,
    types: Mapping[str, Tensor] = _NO_TYPES,
    finish: Callable[[str], Finish] = lambda _: _as_is,
    once: bool = False,
) -> tuple[Path, ...]:
    """Extract parts to files of a folder, written beside and renamed when all are complete.

    Args:
        model: the source.
        parts: by file name, `SIDE-NUMBER.onnx`; parts of one side share a weight file.
        folder: where to; it must exist.
        types: as for `extract_part`.
        finish: by file name, what changes a part, its weights aside, before it is written.
        once: store what several parts need in weight files, once.

    Returns:
        The files written, weight files included.

    Raises:
        InputError: as `extract_part`.
        OSError: the folder can't be written; nothing is left behind.

    Complexity: time linear in the bytes of the parts; memory of the largest tensor.
    """
    pieces = {name: excerpt(model, part, types) for name, part in parts.items()}
    for name, piece in pieces.items():
        finish(name)(piece.head, piece.graph)
    sides = {name: Path(name).stem.partition("-")[0] for name in parts}
    return _write(model, pieces, sides, folder, once)


def _as_is(_: ModelProto, __: GraphProto) -> None:
    pass


def _write(
    model: Model,
    pieces: Mapping[str, Excerpt],
    sides: Mapping[str, str],
    folder: Path,
    once: bool = False,
) -> tuple[Path, ...]:
    if not once and _stays_inline(model):
        with AtomicFiles(folder) as files:
            for name, piece in pieces.items():
                _write_message(model, files.file(name), piece, piece.initializers)
        return files.paths()
    outside = _outside(model, pieces, once)
    homes = {key: _home({sides[name] for name in names}) for key, names in outside.items()}
    with AtomicFiles(folder) as files:
        store = _WeightStore(files, model.weights.paths, homes)
        for name, piece in pieces.items():
            for tensor in _inner(model, piece):
                point_to(tensor, store.place(tensor))
            stored = (
                store.stub(tensor) if name in outside.get(_key(tensor), ()) else tensor
                for tensor in piece.initializers
            )
            _write_message(model, files.file(name), piece, stored)
    return files.paths()


def _stays_inline(model: Model) -> bool:
    """Whether no part can need a weight file: the source has none and is small enough itself."""
    if model.has_outside or model.path is None:
        return False
    return model.path.is_file() and model.path.stat().st_size <= INLINE_LIMIT_BYTES


# What tells outside weights apart: where the source keeps them, or the name of an inline one.
_Key = Extent | str


def _inner(model: Model, piece: Excerpt) -> list[TensorProto]:
    """External tensors inside the part's nodes; most models have none anywhere."""
    return list(external_tensors(piece.graph, piece.head.functions)) if model.has_outside else []


def _key(tensor: TensorProto) -> _Key:
    return extent(tensor) if is_external(tensor) else tensor.name


def _outside(model: Model, pieces: Mapping[str, Excerpt], once: bool) -> dict[_Key, set[str]]:
    """Weights that are stored outside, and the pieces that then point there."""
    spilled = {name for name, piece in pieces.items() if _inline_bytes(piece) > INLINE_LIMIT_BYTES}
    users: dict[_Key, set[str]] = {}
    movable: set[_Key] = set()
    for name, piece in pieces.items():
        for tensor in (*_inner(model, piece), *piece.initializers):
            users.setdefault(_key(tensor), set()).add(name)
            if is_external(tensor) or _can_move(tensor):
                movable.add(_key(tensor))
    chosen = {}
    for key in movable:
        outside = isinstance(key, Extent) and key.location != OWN_FILE
        everyone = outside or (once and len(users[key]) > 1)
        chosen[key] = users[key] if everyone else users[key] & spilled
    return {key: names for key, names in chosen.items() if names}


def _home(sides: set[str]) -> str:
    return f"{'shared' if len(sides) > 1 else next(iter(sides))}.weights"


def _can_move(tensor: TensorProto) -> bool:
    """Whether an inline tensor is large enough, and its bytes are at hand as they are stored."""
    plain = tensor.HasField("raw_data") or tensor.data_type in _TYPED
    return plain and _dense_bytes(tensor) > _SMALL_BYTES


def _raw(tensor: TensorProto) -> bytes:
    """An inline tensor's bytes; old exporters keep lists of numbers."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    array = numpy_helper.to_array(tensor)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _dense_bytes(tensor: TensorProto) -> int:
    return dense_bytes(tensor) or 0


def _inline_bytes(piece: Excerpt) -> int:
    return sum(_dense_bytes(tensor) for tensor in piece.initializers if not is_outside(tensor))


@dataclass
class _WeightStore:
    """Weight files being filled.

    Attributes:
        files: where they are opened.
        sources: the real file of each location of the model's external data.
        homes: the weight file of each tensor that goes out.
        placed: where those already stored are.
    """

    files: AtomicFiles
    sources: Mapping[str, Path]
    homes: Mapping[_Key, str]
    placed: dict[_Key, Extent] = field(default_factory=dict)

    def place(self, tensor: TensorProto) -> Extent:
        """Store a tensor's bytes, once, and tell where."""
        key = _key(tensor)
        if key not in self.placed:
            file = self.files.file(self.homes[key])
            end = file.seek(0, os.SEEK_END)
            start = -(-end // _PAGE_BYTES) * _PAGE_BYTES
            file.truncate(start)
            file.seek(start)
            if isinstance(key, Extent):
                _copy(self.sources[key.location], key, file)
            else:
                file.write(_raw(tensor))
            length = file.seek(0, os.SEEK_END) - start
            self.placed[key] = Extent(self.homes[key], start, length)
        return self.placed[key]

    def stub(self, tensor: TensorProto) -> TensorProto:
        """An entry for a tensor whose bytes are outside."""
        entry = TensorProto(
            name=tensor.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            doc_string=tensor.doc_string,
        )
        point_to(entry, self.place(tensor))
        return entry


def _copy(source: Path, what: Extent, target: BinaryIO) -> None:
    """Append a piece of a file, inside the kernel where it can."""
    target.flush()
    with source.open("rb") as file:
        start, left = what.offset_bytes, what.length_bytes
        while left:
            try:
                done = os.copy_file_range(file.fileno(), target.fileno(), left, start)
            except OSError:  # two file systems that can't: through memory, a chunk at a time
                file.seek(start)
                done = target.write(file.read(min(left, _CHUNK_BYTES)))
                target.flush()
            if not done:
                raise OSError(f"{source} became shorter while it was read")
            start, left = start + done, left - done


def _write_message(
    model: Model, file: BinaryIO, piece: Excerpt, stored: Iterable[TensorProto]
) -> None:
    """Serialise a model whose initializers come one by one.

    The graph's length is not known before the last tensor: its five bytes are filled in then
    (a protobuf length may have leading zeros). Weights of a large model file are copied from it.
    """
    file.write(piece.head.SerializeToString())
    file.write(_tag(_GRAPH_FIELD))
    start = file.tell() + _LENGTH_BYTES
    file.write(bytes(_LENGTH_BYTES))
    file.write(piece.graph.SerializeToString())
    for tensor in stored:
        if not is_external(tensor) or is_outside(tensor):
            data = tensor.SerializeToString()
            file.write(_tag(_INITIALIZER_FIELD) + _varint(len(data)))
            file.write(data)
            continue
        where = extent(tensor)
        data = _without_bytes(tensor) + _tag(_RAW_DATA_FIELD) + _varint(where.length_bytes)
        file.write(_tag(_INITIALIZER_FIELD) + _varint(len(data) + where.length_bytes))
        file.write(data)
        _copy(model.weights.paths[OWN_FILE], where, file)
        file.seek(0, os.SEEK_END)
    length = file.tell() - start
    file.seek(start - _LENGTH_BYTES)
    file.write(_varint(length, _LENGTH_BYTES))


def _without_bytes(tensor: TensorProto) -> bytes:
    """An external tensor's message without the place of its bytes."""
    light = TensorProto()
    light.CopyFrom(tensor)
    light.ClearField("data_location")
    light.ClearField("external_data")
    return light.SerializeToString()


def _tag(field_number: int) -> bytes:
    return bytes((field_number << 3 | 2,))  # wire type 2: length-delimited


def _varint(value: int, width_bytes: int = 1) -> bytes:
    digits: list[int] = []
    while value or len(digits) < width_bytes:
        digits.append(value & 0x7F)
        value >>= 7
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])
