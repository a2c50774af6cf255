"""Write parts of a model to a folder, streaming their weights.

Weights are written to a part's file one tensor at a time, so that memory holds the source and one
more tensor. Some weights go to separate weight files: weights that are external in the source, and
the large weights of a part that would be too large for one protobuf message. With several plans,
weights that several parts need go there too. `device.weights` and `server.weights` hold the
weights of one side, `shared.weights` those of both: each side is complete with its own and the
shared file, and on one machine nothing is stored twice.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from onnx import TensorProto, numpy_helper

from offload.bundle.subgraph import Excerpt, Finish, Part, extract_part
from offload.graph.load import Model
from offload.graph.model import Tensor
from offload.graph.onnx_file import (
    GRAPH_FIELD,
    INITIALIZER_FIELD,
    OWN_FILE,
    RAW_DATA_FIELD,
    Extent,
    extent,
    external_tensors,
    is_external,
    is_outside,
    point_to,
    tag,
    varint,
)
from offload.graph.onnx_types import dense_bytes

# A protobuf message may not reach 2 GiB, and some readers copy it: stay well below.
INLINE_LIMIT_BYTES = 1_500_000_000
# Smaller weights always stay in the part's file: shape arithmetic reads them.
_SMALL_BYTES = 1024
# Element types whose lists of numbers can be written as raw bytes.
_CONVERTIBLE = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)
# Engines map weight files into memory page by page.
_PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 5  # a length below 2**35, written in this many bytes whatever its value
_NO_TYPES: Mapping[str, Tensor] = {}


def write_part(
    model: Model,
    part: Part,
    path: Path,
    types: Mapping[str, Tensor] = _NO_TYPES,
    finish: Finish | None = None,
) -> tuple[Path, ...]:
    """Extract one part to a file; its weight file, where it needs one, is `STEM.weights`.

    The other arguments are as for `write_parts`.

    Returns:
        The files written: the part, and its weight file if there is one.

    Raises:
        InputError: as `extract_part`.
        OSError: the folder can't be written.
    """
    excerpt = extract_part(model, part, types, finish)
    return _write(model, {path.name: excerpt}, {path.name: path.stem}, path.parent)


def write_parts(
    model: Model,
    parts: Mapping[str, Part],
    folder: Path,
    types: Mapping[str, Tensor] = _NO_TYPES,
    finish: Mapping[str, Finish] = MappingProxyType({}),
    once: bool = False,
) -> tuple[Path, ...]:
    """Extract parts to files of a folder.

    Args:
        model: the source.
        parts: by file name, `SIDE-NUMBER.onnx`; parts of one side share a weight file.
        folder: the folder to write to; it must exist.
        types: as for `extract_part`.
        finish: by file name, functions that change a part before it is written.
        once: store weights of several parts once, in weight files.

    Returns:
        The files written, weight files included.

    Raises:
        InputError: as `extract_part`.
        OSError: the folder can't be written.

    Complexity: time linear in the bytes of the parts; memory of the largest tensor.
    """
    excerpts = {
        name: extract_part(model, part, types, finish.get(name)) for name, part in parts.items()
    }
    sides = {name: Path(name).stem.partition("-")[0] for name in parts}
    return _write(model, excerpts, sides, folder, once)


def _write(
    model: Model,
    excerpts: Mapping[str, Excerpt],
    sides: Mapping[str, str],
    folder: Path,
    once: bool = False,
) -> tuple[Path, ...]:
    """Write excerpts and the weight files of the sides that they belong to."""
    # A model without weight files that is small itself has no part that needs one.
    file = model.path if model.path is not None and model.path.is_file() else None
    is_small = file is not None and file.stat().st_size <= INLINE_LIMIT_BYTES
    users: Mapping[_Key, set[str]] = {}
    if once or model.has_outside or not is_small:
        users = _users_of_weight_files(model, excerpts, once)
    homes = {}
    for key, names in users.items():
        owners = {sides[name] for name in names}
        homes[key] = f"{'shared' if len(owners) > 1 else next(iter(owners))}.weights"
    paths = tuple(folder / name for name in excerpts)
    with ExitStack() as stack:
        files = {
            home: stack.enter_context((folder / home).open("w+b"))
            for home in sorted(set(homes.values()))
        }
        store = _WeightStore(files, model.weights.paths, homes)
        for path, (name, excerpt) in zip(paths, excerpts.items(), strict=True):
            for tensor in _external_in_nodes(model, excerpt):
                point_to(tensor, store.place(tensor))
            stored = (
                store.external_entry(tensor) if name in users.get(_key(tensor), ()) else tensor
                for tensor in excerpt.initializers
            )
            with path.open("w+b") as part_file:
                _write_message(model, part_file, excerpt, stored)
    return (*paths, *(folder / home for home in files))


# Identifies a weight: its extent in the source's files, or the name of an inline one.
_Key = Extent | str


def _key(tensor: TensorProto) -> _Key:
    return extent(tensor) if is_external(tensor) else tensor.name


def _external_in_nodes(model: Model, excerpt: Excerpt) -> list[TensorProto]:
    """External tensors inside the part's nodes; most models have none."""
    if not model.has_outside:
        return []
    return list(external_tensors(excerpt.graph, excerpt.head.functions))


def _users_of_weight_files(
    model: Model, excerpts: Mapping[str, Excerpt], once: bool
) -> dict[_Key, set[str]]:
    """The weights that are stored in weight files, and the parts that refer to them there."""
    too_large = set()
    for name, excerpt in excerpts.items():
        inline = (tensor for tensor in excerpt.initializers if not is_outside(tensor))
        if sum(dense_bytes(tensor) or 0 for tensor in inline) > INLINE_LIMIT_BYTES:
            too_large.add(name)
    users: dict[_Key, set[str]] = {}
    movable: set[_Key] = set()
    for name, excerpt in excerpts.items():
        for tensor in (*_external_in_nodes(model, excerpt), *excerpt.initializers):
            key = _key(tensor)
            users.setdefault(key, set()).add(name)
            has_bytes = tensor.HasField("raw_data") or tensor.data_type in _CONVERTIBLE
            if is_external(tensor) or (has_bytes and (dense_bytes(tensor) or 0) > _SMALL_BYTES):
                movable.add(key)
    moved = {}
    for key in movable:
        is_outside_source = isinstance(key, Extent) and key.location != OWN_FILE
        for_all = is_outside_source or (once and len(users[key]) > 1)
        moved[key] = users[key] if for_all else users[key] & too_large
    return {key: names for key, names in moved.items() if names}


@dataclass
class _WeightStore:
    """Weight files that are being written.

    Attributes:
        files: the weight files by name, open for writing.
        sources: the real file of each location of the model's external data.
        homes: the weight file of each tensor that is stored in one.
        placed: the location of the tensors that are already written.
    """

    files: Mapping[str, BinaryIO]
    sources: Mapping[str, Path]
    homes: Mapping[_Key, str]
    placed: dict[_Key, Extent] = field(default_factory=dict)

    def place(self, tensor: TensorProto) -> Extent:
        """Write a tensor's bytes unless they are already written; returns their location."""
        key = _key(tensor)
        if key not in self.placed:
            file = self.files[self.homes[key]]
            end = file.seek(0, os.SEEK_END)
            start = -(-end // _PAGE_BYTES) * _PAGE_BYTES
            file.truncate(start)
            file.seek(start)
            if isinstance(key, Extent):
                _copy(self.sources[key.location], key, file)
            elif tensor.HasField("raw_data"):
                file.write(tensor.raw_data)
            else:  # a list of numbers, as old exporters write
                array = numpy_helper.to_array(tensor)
                file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            length = file.seek(0, os.SEEK_END) - start
            self.placed[key] = Extent(self.homes[key], start, length)
        return self.placed[key]

    def external_entry(self, tensor: TensorProto) -> TensorProto:
        """The tensor without its bytes, which are in a weight file."""
        entry = TensorProto(
            name=tensor.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            doc_string=tensor.doc_string,
        )
        point_to(entry, self.place(tensor))
        return entry


def _copy(source: Path, section: Extent, target: BinaryIO) -> None:
    """Append a part of a file to another, inside the kernel where possible."""
    target.flush()
    with source.open("rb") as file:
        start, remaining_bytes = section.offset_bytes, section.length_bytes
        while remaining_bytes:
            try:
                done = os.copy_file_range(file.fileno(), target.fileno(), remaining_bytes, start)
            except OSError:  # another file system: copy in chunks
                file.seek(start)
                done = target.write(file.read(min(remaining_bytes, _CHUNK_BYTES)))
                target.flush()
            if not done:
                raise OSError(f"{source} became shorter while it was read")
            start, remaining_bytes = start + done, remaining_bytes - done


def _write_message(
    model: Model, file: BinaryIO, excerpt: Excerpt, stored: Iterable[TensorProto]
) -> None:
    """Serialise a model, one initializer at a time.

    The graph's length is known after the last tensor only: its five bytes are filled in then (a
    protobuf length may have leading zeros). Weights of a large model file are copied from it.
    """
    file.write(excerpt.head.SerializeToString())
    file.write(tag(GRAPH_FIELD))
    start = file.tell() + _LENGTH_BYTES
    file.write(bytes(_LENGTH_BYTES))
    file.write(excerpt.graph.SerializeToString())
    for tensor in stored:
        if not is_external(tensor) or is_outside(tensor):
            data = tensor.SerializeToString()
            file.write(tag(INITIALIZER_FIELD) + varint(len(data)))
            file.write(data)
            continue
        where = extent(tensor)
        light = TensorProto()
        light.CopyFrom(tensor)
        light.ClearField("data_location")
        light.ClearField("external_data")
        data = light.SerializeToString() + tag(RAW_DATA_FIELD) + varint(where.length_bytes)
        file.write(tag(INITIALIZER_FIELD) + varint(len(data) + where.length_bytes))
        file.write(data)
        _copy(model.weights.paths[OWN_FILE], where, file)
        file.seek(0, os.SEEK_END)
    length = file.tell() - start
    file.seek(start - _LENGTH_BYTES)
    file.write(varint(length, _LENGTH_BYTES))
