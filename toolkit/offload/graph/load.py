"""Load an ONNX model without its external weights."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from offload.errors import InputError
from offload.graph.infer import Types, infer_types
from offload.graph.onnx_file import (
    FOREIGN_BYTES,
    LARGE_FILE_BYTES,
    OWN_FILE,
    WeightFiles,
    find_weight_files,
    foreign_content,
    read_large,
)
from offload.graph.value_index import ValueIndex, index_values


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded ONNX model; its external weights stay in their files.

    Attributes:
        proto: the model as stored, except that large weights of a large file are external, with
            location `OWN_FILE`. It must not be changed.
        path: the file, None when the model was given in memory.
        directory: the directory of its external data, None when it is unknown.
        weights: the files of its external data, each checked to exist.
    """

    proto: ModelProto = field(repr=False)
    path: Path | None
    directory: Path | None
    weights: WeightFiles = field(repr=False)

    @property
    def outside_bytes(self) -> int:
        """Bytes of weights outside the model's own file."""
        return sum(e.length_bytes for e in self.weights.extents if e.location != OWN_FILE)

    @property
    def has_outside(self) -> bool:
        """Whether weights are outside the model's own file."""
        return any(location != OWN_FILE for location in self.weights.paths)

    @property
    def name(self) -> str:
        """A name for humans: the file's stem, or the graph's name."""
        return self.path.stem if self.path else self.proto.graph.name or "model"

    @cached_property
    def digest(self) -> str:
        """SHA-256 hex digest of the file, then of its external files by name, read as a stream.

        Without external data it equals `sha256sum` of the file.
        """
        digest = hashlib.sha256()
        if self.path:
            _add_file(digest, self.path)
        else:
            digest.update(self.proto.SerializeToString(deterministic=True))
        for location in sorted(self.weights.paths.keys() - {OWN_FILE}):
            digest.update(location.encode())
            _add_file(digest, self.weights.paths[location])
        return digest.hexdigest()

    @cached_property
    def values(self) -> ValueIndex:
        """Producers and consumers of each value of the main graph."""
        return index_values(self.proto)

    @cached_property
    def types(self) -> Types:
        """Types of the values of the main graph, dynamic dimensions left dynamic."""
        return infer_types(self.proto, self.values, self.weights)


def load_model(source: str | Path | ModelProto, directory: Path | None = None) -> Model:
    """Load a model from a file, or wrap one that is in memory.

    Args:
        source: path of an `.onnx` file, or a model.
        directory: directory of the external data of a model in memory; ignored for a file.

    Raises:
        InputError: the file is missing, unreadable, not ONNX or damaged, or external data is
            missing, cut short or outside the model's directory.
    """
    if isinstance(source, ModelProto):
        proto, path, outside = source, None, True
    else:
        path = Path(source)
        directory = path.parent
        proto, outside = _read(path)
    where = str(path) if path else "the model"
    if not proto.graph.output or not (proto.opset_import or proto.ir_version < 3):
        raise InputError(f"{where} is not an ONNX model: it has no graph with outputs")
    try:
        weights = find_weight_files(proto, directory, path) if outside else WeightFiles()
        model = Model(proto, path, directory, weights)
        if not model.values.order and not model.values.outputs:
            raise InputError("the graph is empty")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return model


def _read(path: Path) -> tuple[ModelProto, bool]:
    """The model of a file, and whether it may have external tensors."""
    if not path.exists():
        raise InputError(f"model {path} does not exist: check the path")
    if not path.is_file():
        raise InputError(f"model {path} is not a file: give the path of an .onnx file")
    with path.open("rb") as file:
        if foreign := foreign_content(file.read(FOREIGN_BYTES)):
            raise InputError(f"{path} {foreign}")
    try:
        if path.stat().st_size > LARGE_FILE_BYTES:
            return read_large(path), True
        data = path.read_bytes()
        # Every external data entry contains this word: a file without it has no external tensors.
        return ModelProto.FromString(data), b"location" in data
    except DecodeError:
        raise InputError(f"{path} is not an ONNX model, or is damaged: export it again") from None


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: digest)
