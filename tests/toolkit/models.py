"""Tiny ONNX models written in code."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def two_branches(path: Path, size: int = 8, seed: int = 0) -> Path:
    """x -> {left, right} -> joined: MatMul branches that a cut can separate."""
    random = np.random.default_rng(seed)

    def weight(name: str) -> TensorProto:
        return numpy_helper.from_array(random.normal(size=(size, size)).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["stem"], name="stem"),
        helper.make_node("MatMul", ["stem", "w1"], ["left"], name="left"),
        helper.make_node("MatMul", ["stem", "w2"], ["right"], name="right"),
        helper.make_node("Add", ["left", "right"], ["sum"], name="sum"),
        helper.make_node("Tanh", ["sum"], ["y"], name="end"),
    ]
    graph = helper.make_graph(
        nodes,
        "two_branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])],
        [weight(name) for name in ("w0", "w1", "w2")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
