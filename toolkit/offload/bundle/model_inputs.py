"""Read from a model what it takes, and what it says itself about those values."""

import math
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, TensorProto

from offload.bundle.bundle import Bundle
from offload.bundle.sample_inputs import ModelInputs, Range, bound
from offload.bundle.write import value_of
from offload.graph.external import is_external
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.graph.scope import nested_nodes

# Operators that hand on the numbers they get, and those that use them to pick rows of a table.
_PASSING = frozenset(
    ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice")
)
_PICKING = frozenset(("Gather", "GatherElements"))
_MOST_WORDS = 10_000


def inputs_of(model: Model, graph: Graph | None = None) -> ModelInputs:
    """What a model takes; open sizes as a graph of it has bound them, if one is given."""
    listed = {value.name: value for value in model.proto.graph.input}
    values = tuple(value_of(listed[name]) for name in model.wiring.inputs)
    if graph is not None:
        values = bound(values, _known_shapes(graph))
    return ModelInputs(
        values,
        tuple(model.wiring.defaults),
        _ranges(model.proto),
        tuple(_words([model.proto])),
        tuple(_sizes(model.proto)),
    )


def bundle_inputs(bundle: Bundle) -> ModelInputs:
    """What a bundle's model takes, as far as the segments that are here tell.

    Raises:
        InputError: a segment's file is damaged.
    """
    files = [bundle.segment_path(segment.part) for segment in bundle.parts()]
    protos = [load_model(path).proto for path in files if path.is_file()]
    ranges: dict[str, Range] = {}
    for proto in protos:
        for name, found in _ranges(proto).items():
            known = ranges.get(name, found)
            ranges[name] = Range(max(known.low, found.low), min(known.high, found.high))
    return ModelInputs(bundle.inputs, ranges=ranges, words=tuple(_words(protos)))


def _known_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The inputs all of whose sizes a graph knows."""
    found = {}
    for name in graph.inputs:
        shape = graph.tensors[name].shape
        if shape is not None and None not in shape:
            found[name] = tuple(size for size in shape if size is not None)
    return found


def _sizes(proto: ModelProto) -> list[int]:
    """Sizes that the model itself names: some exporters bake those of their example in."""
    stored = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT64]
    for node in proto.graph.node:
        stored.extend(a.t for a in node.attribute if a.t.data_type == TensorProto.INT64)
    small = (tensor for tensor in stored if math.prod(tensor.dims) <= 8 and tensor.raw_data)
    found = {int(n) for tensor in small for n in np.frombuffer(tensor.raw_data, np.int64)}
    return sorted(n for n in found if 1 < n <= 1024)[:32]


def _words(protos: Iterable[ModelProto]) -> list[str]:
    """Text that models know: categories, keys, vocabularies, constants."""
    found: set[str] = set()
    for proto in protos:
        for tensor in proto.graph.initializer:
            found.update(_stored_words(tensor))
        for node in (inner for outer in proto.graph.node for inner in nested_nodes(outer)):
            if node.domain == "ai.onnx.ml":
                found.update(w.decode(errors="replace") for a in node.attribute for w in a.strings)
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found.update(_stored_words(attribute.t))
        if len(found) >= _MOST_WORDS:
            break
    return sorted(found)[:_MOST_WORDS]


def _stored_words(tensor: TensorProto) -> list[str]:
    if tensor.data_type != TensorProto.STRING or is_external(tensor):
        return []
    return [word.decode(errors="replace") for word in tensor.string_data]


def _ranges(proto: ModelProto) -> dict[str, Range]:
    """Bounds of the inputs that pick rows of a stored table, through operators that hand on."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    origin = {value.name: value.name for value in proto.graph.input if value.name not in sizes}
    ranges: dict[str, Range] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            table = next((a.t for a in node.attribute if a.name == "value"), None)
            if table is not None:
                sizes[node.output[0]] = tuple(table.dims)
        elif node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type in _PICKING and node.input[1] in origin and node.input[0] in sizes:
            source, shape = origin[node.input[1]], sizes[node.input[0]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if -len(shape) <= axis < len(shape) and shape[axis]:
                known = ranges.get(source)
                rows = shape[axis]
                ranges[source] = Range(0, min(rows - 1, known.high) if known else rows - 1)
    return ranges
