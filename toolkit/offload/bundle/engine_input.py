"""Give a model, or a part of it, to an engine on this machine without copying its weights.

An engine is given a file, or a model's bytes. Bytes name their external data from the root
directory (`data/net.onnx.data` for `/data/net.onnx.data`): each weight is read from where the
source keeps it, whatever links led there, and none is copied to a temporary folder.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from offload.bundle.extract import Part, excerpt
from offload.bundle.weights import write_part
from offload.graph.elements import dense_bytes
from offload.graph.external import extent, external_tensors, point_to
from offload.graph.load import Model
from offload.graph.model import Tensor

EngineInput = Path | bytes
# External data in bytes are named from here.
ROOT = Path("/")
# Shape arithmetic reads small numbers, and engines want those inside the model.
_SMALL_BYTES = 1024
_NO_TYPES: Mapping[str, Tensor] = {}


def whole_input(model: Model) -> EngineInput:
    """The whole model: its file, or bytes where its weights were not read with it."""
    if not model.extents:
        return model.path or model.proto.SerializeToString()
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    return _rooted(model, proto)


def part_input(
    model: Model, part: Part, path: Path, types: Mapping[str, Tensor] = _NO_TYPES
) -> EngineInput:
    """A part: bytes where weights were not read with the model, else a file, weights copied.

    Args:
        model: the source.
        part: what to cut out.
        path: the file to write where one is needed; its folder must exist.
        types: as for `extract_part`.

    Raises:
        InputError: as `extract_part`.
        OSError: the file cannot be written.
    """
    if model.extents:
        return _rooted(model, excerpt(model, part, types).whole())
    write_part(model, part, path, types)
    return path


def _rooted(model: Model, proto: ModelProto) -> bytes:
    """Serialise a model, its external data named from the root directory, small ones inside."""
    for tensor in external_tensors(proto.graph, proto.functions):
        if (dense_bytes(tensor.data_type, tensor.dims) or 0) <= _SMALL_BYTES:
            tensor.CopyFrom(model.weights.loaded(tensor))
            continue
        where = extent(tensor)
        path = model.weights.paths[where.location]
        point_to(tensor, replace(where, location=str(path.relative_to(ROOT))))
    return proto.SerializeToString()
