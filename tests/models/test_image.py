"""Preprocessing inside the graph against the same arithmetic in numpy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from offload.errors import InputError
from offload_models.image import with_image_input
from onnx import TensorProto, helper

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def model(names: tuple[str, ...] = ("x", "y")) -> onnx.ModelProto:
    """Adds its two inputs; has all that must survive a rewrite."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 4, 6)) for n in names]
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 3, 4, 6))
    graph = helper.make_graph([helper.make_node("Add", names, ["z"])], "sum", values, [out])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    identity = helper.make_node("Identity", ["a"], ["b"])
    function = helper.make_function("local", "f", ["a"], ["b"], [identity], opsets[:1])
    made = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    helper.set_model_props(made, {"character": "a\nb"})
    return made


def test_bytes_of_a_picture_give_what_the_normalised_picture_gave() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, 4, 6, 3), np.uint8)
    other = rng.standard_normal((1, 3, 4, 6)).astype(np.float32)
    made = with_image_input(model(), "x", 4, 6, MEAN, STD)
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.input] == ["image", "y"]
    runs = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = runs.run(None, {"image": pixels, "y": other})[0]
    expected = ((pixels / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2) + other
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_everything_else_is_copied() -> None:
    source = model()
    untouched = source.SerializeToString()
    made = with_image_input(source, "x", 4, 6, MEAN, STD)
    assert source.SerializeToString() == untouched
    assert made.ir_version == source.ir_version
    assert list(made.opset_import) == list(source.opset_import)
    assert list(made.metadata_props) == list(source.metadata_props)
    assert list(made.functions) == list(source.functions)


def test_a_wrong_input_is_refused_with_the_inputs_there_are() -> None:
    with pytest.raises(InputError, match="its inputs are x, y"):
        with_image_input(model(), "data", 4, 6, MEAN, STD)
    with pytest.raises(InputError, match="rename"):
        with_image_input(model(("x", "image")), "x", 4, 6, MEAN, STD)
