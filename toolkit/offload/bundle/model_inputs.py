"""Inputs and outputs of a model as onnxruntime lists them, and hints about the inputs' values."""

import math
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto

from offload.bundle.bundle import Bundle, ModelValue
from offload.bundle.sample_inputs import ModelInputs, ValueRange, bound
from offload.errors import InputError
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.graph.onnx_file import is_external
from offload.graph.onnx_types import declared_shape, type_name
from offload.graph.value_index import attribute_value, nested_nodes

# Operators that return the numbers of their input, and those that pick rows of a table by them.
_PASSING = frozenset(
    ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice")
)
_PICKING = frozenset(("Gather", "GatherElements"))
_MOST_WORDS = 10_000


def value_of(info: ValueInfoProto) -> ModelValue:
    """A graph input or output as onnxruntime lists it, dynamic dimensions still dynamic."""
    return ModelValue(info.name, type_name(info.type), declared_shape(info.type))


def signature(model: Model, graph: Graph) -> tuple[tuple[ModelValue, ...], tuple[ModelValue, ...]]:
    """Inputs and outputs as onnxruntime lists them, dynamic dimensions still dynamic.

    Raises:
        InputError: one has a type that a session does not support: an optional, or a sequence of
            sequences.
    """
    inputs = tuple(value_of(model.values.inputs[name]) for name in graph.inputs)
    outputs = []
    for value in model.proto.graph.output:
        inferred = model.types.inferred(value.name)
        if not value.type.WhichOneof("value") and inferred is not None:
            value = ValueInfoProto(name=value.name, type=inferred)  # declared without a type
        outputs.append(value_of(value))
    for described in (*inputs, *outputs):
        if "optional(" in described.type or "seq(seq(" in described.type:
            raise InputError(
                f"{described.name!r} is of type {described.type}, which a session does not support:"
                " make it a tensor or a sequence of tensors in the model, or leave it out"
            )
    return inputs, tuple(outputs)


def inputs_of(model: Model, graph: Graph | None = None) -> ModelInputs:
    """The inputs of a model; open sizes are those of `graph`, if it is given."""
    values = tuple(map(value_of, model.values.inputs.values()))
    if graph is not None:
        shapes = {name: graph.tensors[name].shape or () for name in graph.inputs}
        known = {
            name: tuple(size for size in shape if size is not None)
            for name, shape in shapes.items()
            if graph.tensors[name].shape is not None and None not in shape
        }
        values = bound(values, known)
    return ModelInputs(
        values,
        tuple(model.values.defaults),
        _ranges(model.proto),
        tuple(_words([model.proto])),
        tuple(_sizes(model.proto)),
    )


def bundle_inputs(bundle: Bundle) -> ModelInputs:
    """The inputs of a bundle's model, with hints from the segments that are on this machine.

    Raises:
        InputError: a segment's file is damaged.
    """
    files = [bundle.segment_path(segment.part) for segment in bundle.parts()]
    protos = [load_model(path).proto for path in files if path.is_file()]
    ranges: dict[str, ValueRange] = {}
    for proto in protos:
        for name, bounds in _ranges(proto).items():
            known = ranges.get(name, bounds)
            ranges[name] = ValueRange(max(known.low, bounds.low), min(known.high, bounds.high))
    return ModelInputs(bundle.inputs, ranges=ranges, words=tuple(_words(protos)))


def _sizes(proto: ModelProto) -> list[int]:
    """Sizes stored in the model: some exporters store those of their example input."""
    stored = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.INT64]
    for node in proto.graph.node:
        stored.extend(a.t for a in node.attribute if a.t.data_type == TensorProto.INT64)
    small = (tensor for tensor in stored if math.prod(tensor.dims) <= 8 and tensor.raw_data)
    numbers = {int(n) for tensor in small for n in np.frombuffer(tensor.raw_data, np.int64)}
    return sorted(n for n in numbers if 1 < n <= 1024)[:32]


def _words(protos: Iterable[ModelProto]) -> list[str]:
    """Text stored in models: categories, keys, vocabularies, constants."""
    words: set[bytes] = set()
    for proto in protos:
        tensors = list(proto.graph.initializer)
        for node in (inner for outer in proto.graph.node for inner in nested_nodes(outer)):
            for attribute in node.attribute:
                if node.domain == "ai.onnx.ml":
                    words.update(attribute.strings)
                if attribute.HasField("t"):
                    tensors.append(attribute.t)
        for tensor in tensors:
            if tensor.data_type == TensorProto.STRING and not is_external(tensor):
                words.update(tensor.string_data)
        if len(words) >= _MOST_WORDS:
            break
    return sorted({word.decode(errors="replace") for word in words})[:_MOST_WORDS]


def _ranges(proto: ModelProto) -> dict[str, ValueRange]:
    """Bounds of the inputs that pick rows of a stored table, directly or via `_PASSING`."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    origin = {value.name: value.name for value in proto.graph.input if value.name not in sizes}
    ranges: dict[str, ValueRange] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            table = attribute_value(node, "value")
            if table is not None:
                sizes[node.output[0]] = tuple(table.dims)
        elif node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type in _PICKING and node.input[1] in origin and node.input[0] in sizes:
            source, shape = origin[node.input[1]], sizes[node.input[0]]
            axis = attribute_value(node, "axis", 0)
            if -len(shape) <= axis < len(shape) and shape[axis]:
                known = ranges.get(source)
                rows = shape[axis]
                ranges[source] = ValueRange(0, min(rows - 1, known.high) if known else rows - 1)
    return ranges
