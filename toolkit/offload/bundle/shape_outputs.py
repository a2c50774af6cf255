"""A model that returns the shapes of its inner tensors, so that a run tells their sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import OperatorSetIdProto, TensorProto, helper

from offload.bundle.extract import Part
from offload.bundle.weights import write_part
from offload.files import write_bytes
from offload.graph.load import Model

_OPSET = 13  # for a model that imports no version of ONNX's own operators


def write_with_shapes(model: Model, names: Sequence[str], path: Path) -> Mapping[str, str]:
    """Write the model so that it returns inner tensors and, for each, its shape.

    An engine that is asked for the shapes only need not keep the tensors.

    Args:
        model: the source.
        names: tensors of numbers that nodes of its main graph make.
        path: where the model goes, its weights beside it.

    Returns:
        The output with a tensor's shape, by the tensor's name.
    """
    wiring = model.wiring
    nodes = tuple(index for index in wiring.order if index not in wiring.constant)
    write_part(model, Part(tuple(sorted(nodes)), tuple(wiring.inputs), tuple(names)), path)
    proto = onnx.load(path, load_external_data=False)
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
    write_bytes(path, proto.SerializeToString())
    return shapes
