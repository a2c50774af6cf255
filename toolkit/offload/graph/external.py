"""Weights kept outside the ONNX file: where each tensor's bytes are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

from offload.errors import InputError
from offload.graph.elements import dense_bytes
from offload.graph.scope import graph_tensors, node_tensors


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor's bytes: `length_bytes` from `offset_bytes` on in the file `location`."""

    location: str
    offset_bytes: int
    length_bytes: int


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def extent(tensor: TensorProto) -> Extent:
    """Where an external tensor's bytes are.

    Raises:
        InputError: the entry names no file, or its numbers are not numbers.
    """
    fields = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(fields.get("offset") or 0)
        length = int(fields.get("length") or 0) or dense_bytes(tensor.data_type, tensor.dims) or 0
        return Extent(fields["location"], offset, length)
    except (KeyError, ValueError):
        raise InputError(
            f"tensor {tensor.name!r} has a broken external data entry: export the model again"
        ) from None


def external_tensors(
    graph: GraphProto, functions: Iterable[FunctionProto]
) -> Iterator[TensorProto]:
    """Every tensor whose bytes are in another file, those in bodies and functions included."""
    yield from filter(is_external, graph_tensors(graph))
    for function in functions:
        for node in function.node:
            yield from filter(is_external, node_tensors(node))


def checked_extents(proto: ModelProto, directory: Path | None) -> tuple[Extent, ...]:
    """Extents of all external tensors, each found to lie in a file inside `directory`.

    Raises:
        InputError: a file is missing, too short, or outside the directory.
    """
    found = tuple(
        dict.fromkeys(extent(tensor) for tensor in external_tensors(proto.graph, proto.functions))
    )
    ends: dict[str, int] = {}
    for item in found:
        end = item.offset_bytes + item.length_bytes
        ends[item.location] = max(ends.get(item.location, 0), end)
        if item.offset_bytes < 0 or item.length_bytes < 0:
            raise InputError(f"external data {item.location!r} has a negative offset or length")
    for location, end_bytes in ends.items():
        _check_file(location, end_bytes, directory)
    return found


def _check_file(location: str, end_bytes: int, directory: Path | None) -> None:
    if directory is None:
        raise InputError(
            f"the model keeps weights in {location!r} and no directory was given to find it in"
        )
    parts = PurePosixPath(location.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise InputError(f"external data {location!r} is outside the model's directory")
    path = directory / location
    if not path.is_file():
        raise InputError(f"external data file {path} is missing: copy it beside the model")
    size_bytes = path.stat().st_size
    if size_bytes < end_bytes:
        raise InputError(
            f"external data file {path} is cut short: {size_bytes} bytes, needs {end_bytes}"
        )
