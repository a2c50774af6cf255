"""What is said of inputs whose sizes are open."""

import pytest
from offload.graph.load import load_model
from offload.graph.open_sizes import open_sizes
from offload.graph.read import read_graph
from onnx import TensorProto, helper

INPUTS: dict[str, list[int | str | None]] = {
    "images": ["batch", 3, "height", "width"],
    "ids": ["batch", "sequence"],
    "mask": ["batch", "past_length + sequence"],
    "past": ["batch", 4, "past_length", 8],
    "plain": [None, 7],
}


def sentence(*names: str, **shapes: tuple[int, ...]) -> str:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, INPUTS[n]) for n in names]
    nodes = [helper.make_node("Relu", [n], [f"{n}_out"]) for n in names]
    outputs = [helper.make_tensor_value_info(f"{n}_out", TensorProto.FLOAT, None) for n in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    return open_sizes(model, read_graph(model, shapes))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("images",), "input 'images' (batchx3xheightxwidth: axes 0, 2 and 3) are open: give them,"
         " like --shape images=1x3x640x640"),
        (("plain",), "input 'plain' (?x7: axis 0) are open: give them, like --shape plain=1x7"),
        (("ids", "mask", "past"), "like --shape ids=1x128 --shape mask=1x129"
         " --shape past=1x4x1x8"),
    ],
)  # fmt: skip
def test_open_inputs_are_named_with_an_example(names: tuple[str, ...], expected: str) -> None:
    assert expected in sentence(*names)


def test_nothing_is_open_once_shapes_are_given() -> None:
    assert sentence("images", images=(1, 3, 8, 8)) == ""
    assert "'ids'" not in sentence("ids", "mask", ids=(1, 5))
    assert "'mask'" in sentence("ids", "mask", ids=(1, 5))
