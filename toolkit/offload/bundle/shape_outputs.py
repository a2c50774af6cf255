"""A model that returns the shapes of its inner tensors, so that a run tells their sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import OperatorSetIdProto, TensorProto, helper

from offload.bundle.engine_input import EngineInput, part_input
from offload.bundle.extract import Part
from offload.files import write_bytes
from offload.graph.load import Model

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
    wiring = model.wiring
    nodes = tuple(index for index in wiring.order if index not in wiring.constant)
    part = Part(tuple(sorted(nodes)), tuple(wiring.inputs), tuple(names))
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
