"""Models and parts as an engine loads them, without a copy of their weights if possible."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import onnx
from onnx import GraphProto, ModelProto, OperatorSetIdProto, TensorProto, helper

from offload.bundle.boundary_ops import boundary_ops, expose
from offload.bundle.bundle import Bundle
from offload.bundle.subgraph import Finish, Part, extract_part
from offload.bundle.weights import write_part
from offload.graph.load import Model, load_model
from offload.graph.model import Tensor
from offload.graph.onnx_file import extent, external_tensors, point_to
from offload.graph.onnx_types import dense_bytes
from offload.planning.plan import Plan, Segment

EngineInput = Path | bytes
# Locations of external data in serialised models are relative to this directory.
ROOT = Path("/")
# Engines need small tensors inside the model: shape arithmetic reads them.
_SMALL_BYTES = 1024
_NO_TYPES: Mapping[str, Tensor] = {}


def whole_input(model: Model) -> EngineInput:
    """The whole model: its file, or its bytes if its weights are external."""
    if not model.weights.extents:
        return model.path or model.proto.SerializeToString()
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    return _rooted(model, proto)


def part_input(
    model: Model,
    part: Part,
    path: Path,
    types: Mapping[str, Tensor] = _NO_TYPES,
    finish: Finish | None = None,
) -> EngineInput:
    """A part: its bytes if the model's weights are external, else a file with copied weights.

    Args:
        model: the source.
        part: the part to extract.
        path: the file to write if one is needed; its folder must exist.
        types: as for `extract_part`.
        finish: changes the part.

    Raises:
        InputError: as `extract_part`.
        OSError: the file cannot be written.
    """
    if not model.weights.extents:
        write_part(model, part, path, types, finish)
        return path
    return _rooted(model, extract_part(model, part, types, finish).whole())


def _rooted(model: Model, proto: ModelProto) -> bytes:
    """Serialise a model: small weights inside, locations of others relative to `ROOT`."""
    for tensor in external_tensors(proto.graph, proto.functions):
        if (dense_bytes(tensor) or 0) <= _SMALL_BYTES:
            tensor.CopyFrom(model.weights.loaded(tensor))
            continue
        where = extent(tensor)
        path = model.weights.paths[where.location]
        point_to(tensor, replace(where, location=str(path.relative_to(ROOT))))
    return proto.SerializeToString()


def with_weights_at(source: bytes, place: Callable[[Path], Path]) -> bytes:
    """A model in bytes whose external data lie elsewhere, as on another machine.

    Args:
        source: as `whole_input` and `part_input` give it.
        place: the new path of a file of external data, by its path.
    """
    proto = ModelProto.FromString(source)
    for tensor in external_tensors(proto.graph, proto.functions):
        where = extent(tensor)
        path = place(ROOT / where.location)
        point_to(tensor, replace(where, location=str(path.relative_to(ROOT))))
    return proto.SerializeToString()


def with_inner_outputs(
    model: Model,
    names: Sequence[str],
    path: Path,
    types: Mapping[str, Tensor] = _NO_TYPES,
    finish: Finish | None = None,
) -> EngineInput:
    """The whole model with inner tensors as its outputs.

    Args:
        model: the source.
        names: tensors that nodes of its main graph compute.
        path: the file to write if one is needed; its folder must exist.
        types: as for `extract_part`.
        finish: changes the model.
    """
    values = model.values
    nodes = tuple(sorted(set(values.order) - values.constant))
    return part_input(model, Part(nodes, tuple(values.inputs), tuple(names)), path, types, finish)


_OPSET = 13  # for a model that imports no version of ONNX's own operators


def with_shapes(
    model: Model, names: Sequence[str], path: Path
) -> tuple[EngineInput, Mapping[str, str]]:
    """The model with inner tensors and their shapes as outputs.

    An engine that computes the shapes only need not keep the tensors.

    Args:
        model: the source.
        names: tensors of numbers that nodes of its main graph produce.
        path: the file to write if one is needed; its folder must exist.

    Returns:
        The model to load, and the name of the output with the shape of each tensor.
    """
    taken = {*model.values.inputs, *model.values.producer, *model.values.initializers}
    shapes = {}
    for number, name in enumerate(names):
        shapes[name] = f"shape_{number}"
        while shapes[name] in taken:
            shapes[name] += "_"

    def add_shapes(head: ModelProto, graph: GraphProto) -> None:
        for name, output in shapes.items():
            graph.node.append(helper.make_node("Shape", [name], [output], output))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, None))
        if not any(each.domain in ("", "ai.onnx") for each in head.opset_import):
            head.opset_import.append(OperatorSetIdProto(domain="", version=_OPSET))

    return with_inner_outputs(model, names, path, finish=add_shapes), shapes


def bare_segments(plan: Plan) -> tuple[Segment, ...]:
    """The segments that compute something, without boundary operations, device's first."""
    segments = []
    for segment in plan.segments:
        inputs, outputs = boundary_ops(plan, segment).bare(segment.inputs, segment.outputs)
        if segment.nodes or not set(outputs) <= set(inputs):
            segments.append(replace(segment, inputs=inputs, outputs=outputs))
    return tuple(segments)


def bare_inputs(
    model: Model,
    plan: Plan,
    folder: Path,
    types: Mapping[str, Tensor],
    shown: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> dict[str, EngineInput]:
    """The segments of a plan, extracted from its model without encodings, by file name.

    Args:
        model: the source.
        plan: a plan of this model.
        folder: the folder for files, if the model's weights are not external.
        types: types of tensors that shape inference can't follow.
        shown: for each segment, inner tensors to add to its outputs.

    Raises:
        InputError: a tensor at the cut can't cross.
    """
    sources = {}
    for s in bare_segments(plan):
        outputs = tuple(dict.fromkeys((*s.outputs, *shown.get(s.id, ()))))
        part = Part(s.nodes, s.inputs, outputs)
        sources[s.file] = part_input(model, part, folder / s.file, types)
    return sources


def exposed_inputs(bundle: Bundle) -> dict[str, EngineInput]:
    """The segments of a complete bundle, with their encodings removed, by file name."""
    sources = {}
    for segment in bare_segments(bundle.plan):
        operations = boundary_ops(bundle.plan, bundle.plan.segment(segment.id))
        proto = onnx.load(bundle.segment_path(segment.part), load_external_data=False)
        expose(proto, (*operations.encodes, *operations.decodes))
        sources[segment.file] = whole_input(load_model(proto, bundle.path))
    return sources


def undefined_names(source: EngineInput) -> tuple[str, ...]:
    """Names that are used in a model but not defined in it, sorted.

    Deliberately simple and independent of how parts are extracted: it explains a failure.
    """
    used: set[str] = set()
    defined: set[str] = set()
    content = source if isinstance(source, bytes) else source.read_bytes()
    pending: list[GraphProto] = [ModelProto.FromString(content).graph]
    while pending:
        graph = pending.pop()
        defined.update(value.name for value in graph.input)
        defined.update(tensor.name for tensor in graph.initializer)
        defined.update(tensor.values.name for tensor in graph.sparse_initializer)
        used.update(value.name for value in graph.output)
        for node in graph.node:
            defined.update(node.output)
            used.update(node.input)
            for attribute in node.attribute:
                pending.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return tuple(sorted(used - defined - {""}))
