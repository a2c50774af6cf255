"""The light models with drawn weights against their originals and the runtime's arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from offload.errors import InputError
from offload_models import kernels
from offload_models.onnx_topologies import build_topology

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"


def fed(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether a node reads what another layer made, not only constants."""
    constant = {n.output[0] for n in graph.node if n.op_type == "ConstantOfShape"}
    constant |= {i.name for i in graph.initializer}
    return not set(node.input) <= constant


@pytest.mark.parametrize("topology", ["inception_v1", "shufflenet"])
def test_the_layers_are_those_of_the_original(topology: str) -> None:
    original = onnx.load(FOLDER / f"light_{topology}.onnx").graph
    revived = build_topology(topology).graph
    layers = [node for node in original.node if node.op_type != "ConstantOfShape"]
    dropped = [node for node in layers if node not in list(revived.node)]
    assert [node for node in layers if node not in dropped] == list(revived.node)
    assert all(node.op_type == "Reshape" and not fed(original, node) for node in dropped)
    assert list(revived.output) == list(original.output)
    assert len(revived.input) == 1


def test_a_missing_file_is_said_in_a_sentence() -> None:
    with pytest.raises(InputError, match="light_nothing"):
        build_topology("nothing")


def runtime(op: str, *arrays: kernels.Array, **attributes: Any) -> kernels.Array:
    """What ONNX Runtime makes of one node."""
    fed = {f"x{i}": array for i, array in enumerate(arrays)}
    node = onnx.helper.make_node(op, list(fed), ["y"], **attributes)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in (*fed, "y")
    ]
    graph = onnx.helper.make_graph([node], "one", values[:-1], values[-1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    runs = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: kernels.Array = runs.run(None, fed)[0]
    return found


def noise(*shape: int) -> kernels.Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("kernel", "stride", "pad", "groups"), [(1, 1, 0, 1), (3, 2, 1, 3)])
def test_conv_is_the_runtimes(kernel: int, stride: int, pad: int, groups: int) -> None:
    x, weight = noise(2, 6, 9, 8), noise(6, 6 // groups, kernel, kernel)
    made = kernels.conv(x, weight, stride, pad, groups)
    expected = runtime(
        "Conv", x, weight, strides=[stride] * 2, pads=[pad] * 4, group=groups,
        kernel_shape=[kernel] * 2,
    )  # fmt: skip
    np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (0, 1)])
def test_pools_are_the_runtimes(pads: tuple[int, int]) -> None:
    x = noise(2, 3, 8, 8)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [pads[0]] * 2 + [pads[1]] * 2}
    made = kernels.max_pool(x, 3, 2, pads), kernels.average_pool(x, 3, 2, pads)
    for found, op in zip(made, ("MaxPool", "AveragePool"), strict=True):
        np.testing.assert_allclose(found, runtime(op, x, **attributes), atol=1e-6)


def test_lrn_is_the_runtimes() -> None:
    x = noise(2, 9, 3, 3)
    settings = {"size": 5, "alpha": 0.1, "beta": 0.75, "bias": 2.0}
    np.testing.assert_allclose(
        kernels.lrn(x, 5, 0.1, 0.75, 2.0), runtime("LRN", x, **settings), rtol=1e-5
    )
