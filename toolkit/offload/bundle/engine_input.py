"""Give a model, or a part of it, to an engine without copying its weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import onnx
from onnx import GraphProto, ModelProto, OperatorSetIdProto, TensorProto, helper

from offload.bundle.boundary_ops import boundary_ops, expose
from offload.bundle.bundle import Bundle
from offload.bundle.subgraph import Part, excerpt_part
from offload.bundle.weights import write_part
from offload.files import write_bytes
from offload.graph.load import Model, load_model
from offload.graph.model import Tensor
from offload.graph.onnx_file import extent, external_tensors, point_to
from offload.graph.onnx_types import dense_bytes
from offload.planning.plan import Plan, Segment

EngineInput = Path | bytes
# External data in bytes are named from here.
ROOT = Path("/")
# Shape arithmetic reads small numbers, and engines want those inside the model.
_SMALL_BYTES = 1024
_NO_TYPES: Mapping[str, Tensor] = {}


def whole_input(model: Model) -> EngineInput:
    """The whole model: its file, or bytes where its weights were not read with it."""
    if not model.weights.extents:
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
    if model.weights.extents:
        return _rooted(model, excerpt_part(model, part, types).whole())
    write_part(model, part, path, types)
    return path


def _rooted(model: Model, proto: ModelProto) -> bytes:
    """Serialise a model, its external data named from the root directory, small ones inside."""
    for tensor in external_tensors(proto.graph, proto.functions):
        if (dense_bytes(tensor) or 0) <= _SMALL_BYTES:
            tensor.CopyFrom(model.weights.loaded(tensor))
            continue
        where = extent(tensor)
        path = model.weights.paths[where.location]
        point_to(tensor, replace(where, location=str(path.relative_to(ROOT))))
    return proto.SerializeToString()


_OPSET = 13  # for a model that imports no version of ONNX's own operators


def with_shapes(
    model: Model, names: Sequence[str], path: Path
) -> tuple[EngineInput, Mapping[str, str]]:
    """The model, returning inner tensors and, for each, its shape.

    An engine that is asked for the shapes only need not keep the tensors.

    Args:
        model: the source.
        names: tensors of numbers that nodes of its main graph make.
        path: the file to write where one is needed; its folder must exist.

    Returns:
        What an engine loads, and the output with a tensor's shape, by the tensor's name.
    """
    values = model.values
    nodes = tuple(index for index in values.order if index not in values.constant)
    part = Part(tuple(sorted(nodes)), tuple(values.inputs), tuple(names))
    source = part_input(model, part, path)
    if isinstance(source, bytes):
        proto = onnx.ModelProto.FromString(source)
    else:
        proto = onnx.load(source, load_external_data=False)
    taken = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    shapes = {}
    for number, name in enumerate(names):
        output = f"shape_{number}"
        while output in taken:
            output += "_"
        proto.graph.node.append(helper.make_node("Shape", [name], [output], output))
        proto.graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, None))
        shapes[name] = output
    if not any(each.domain in ("", "ai.onnx") for each in proto.opset_import):
        proto.opset_import.append(OperatorSetIdProto(domain="", version=_OPSET))
    data = proto.SerializeToString()
    if isinstance(source, bytes):
        return data, shapes
    write_bytes(source, data)
    return source, shapes


def bare_segments(plan: Plan) -> tuple[Segment, ...]:
    """The segments that compute, device's first, with the model's own tensors at their ends."""
    found = []
    for segment in plan.segments:
        inputs, outputs = boundary_ops(plan, segment).bare(segment.inputs, segment.outputs)
        made = tuple(name for name in outputs if name not in inputs)
        if segment.nodes or made:
            found.append(replace(segment, inputs=inputs, outputs=outputs))
    return tuple(found)


def bare_inputs(
    model: Model,
    plan: Plan,
    folder: Path,
    types: Mapping[str, Tensor],
    shown: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> dict[str, EngineInput]:
    """The segments of a plan from its model, without encodings, by file name.

    Args:
        model: the source.
        plan: of that model.
        folder: where files go, if the model keeps its weights inside.
        types: types of tensors that shape inference can't follow.
        shown: by segment, tensors that it makes and gives as outputs too.

    Raises:
        InputError: a tensor at the cut can't cross.
    """
    found = {}
    for s in bare_segments(plan):
        outputs = tuple(dict.fromkeys((*s.outputs, *shown.get(s.id, ()))))
        part = Part(s.nodes, s.inputs, outputs)
        found[s.file] = part_input(model, part, folder / s.file, types)
    return found


def exposed_inputs(bundle: Bundle) -> dict[str, EngineInput]:
    """The segments of a bundle that is complete, its encodings taken out again, by file name."""
    found = {}
    for segment in bare_segments(bundle.plan):
        worn = boundary_ops(bundle.plan, bundle.plan.segment(segment.id))
        proto = onnx.load(bundle.segment_path(segment.part), load_external_data=False)
        expose(proto, (*worn.encodes, *worn.decodes))
        found[segment.file] = whole_input(load_model(proto, bundle.path))
    return found


def undefined_names(source: EngineInput) -> tuple[str, ...]:
    """Names read somewhere in a model and defined nowhere in it, sorted.

    Deliberately simple, and apart from how parts are made: it only has to explain a failure.
    """
    read: set[str] = set()
    made: set[str] = set()
    content = source if isinstance(source, bytes) else source.read_bytes()
    pending: list[GraphProto] = [ModelProto.FromString(content).graph]
    while pending:
        graph = pending.pop()
        made.update(value.name for value in graph.input)
        made.update(tensor.name for tensor in graph.initializer)
        made.update(tensor.values.name for tensor in graph.sparse_initializer)
        read.update(value.name for value in graph.output)
        for node in graph.node:
            made.update(node.output)
            read.update(node.input)
            for attribute in node.attribute:
                pending.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    return tuple(sorted(read - made - {""}))
