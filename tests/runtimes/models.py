"""Small ONNX models made by hand for the runtime's tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(w, n) for n, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def endless_loop(size: int | str = 1) -> onnx.ModelProto:
    """Adds 1 for (almost) ever: 10^15 iterations."""
    weights = {"count": np.array(10**15, np.int64), "go": np.array(True)}
    return model([_loop(size)], [floats("x", size)], [floats("y", size)], weights)


def counting_loop() -> onnx.ModelProto:
    """Doubles an integer x by adding 1 to it x times, so that its time depends on its input."""
    count = helper.make_node("Cast", ["x"], ["counts"], to=TensorProto.INT64)
    scalar = helper.make_node("Squeeze", ["counts"], ["count"])
    nodes = [count, scalar, _loop(1)]
    return model(nodes, [floats("x", 1)], [floats("y", 1)], {"go": np.array(True)})


def _loop(size: int | str) -> onnx.NodeProto:
    """Adds 1 to `x` as often as `count` says."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["acc_in", "one"], ["acc_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            floats("acc_in", size),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, []), floats("acc_out", size)],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    return helper.make_node("Loop", ["count", "go", "x"], ["y"], body=body)
