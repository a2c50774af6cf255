"""`--image`: the picture's bytes as input, for models that take one picture."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.errors import InputError
from offload_cli.planning_options import NORMALISATION, image_input
from offload_models.image import save_with_image_input
from offload_runtimes.engine import EngineOptions, load
from onnx import TensorProto, helper


def save_model(path: Path, *shapes: list[int]) -> None:
    names = [f"x{index}" if index else "image" for index in range(len(shapes))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    nodes = [helper.make_node("Relu", [name], [f"y_{name}"]) for name in names]
    outputs = [
        helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def test_bytes_in_give_what_normalised_floats_gave(tmp_path: Path) -> None:
    save_model(tmp_path / "net.onnx", [1, 3, 4, 6])
    model = tmp_path / "net.onnx"
    picture = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), np.uint8)
    mean, std = (np.array(rgb, np.float32) for rgb in NORMALISATION["imagenet"])
    floats = ((picture / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    options = EngineOptions(threads=1)
    (wanted,) = load(model, options).run(None, {"image": floats.astype(np.float32)})
    with image_input(model, "imagenet", {}) as (changed, _):
        (found,) = load(changed, options).run(None, {"image_bytes": picture})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with image_input(model, "", {}) as (same, _):
        assert same == model


def test_what_has_not_one_picture_is_refused(tmp_path: Path) -> None:
    mean, std = NORMALISATION["unit"]
    for shapes in ([[1, 3, 4, 4], [1, 3, 4, 4]], [[1, 10]], [[1, 4, 8, 8]]):
        save_model(tmp_path / "net.onnx", *shapes)
        with pytest.raises(InputError, match="--image needs one float32 input"):
            save_with_image_input(tmp_path / "net.onnx", tmp_path / "made.onnx", mean, std)
    with pytest.raises(InputError, match="does not exist"):
        save_with_image_input(tmp_path / "no.onnx", tmp_path / "made.onnx", mean, std)
    refused = pytest.raises(InputError, match="use one of imagenet")
    with refused, image_input(tmp_path / "net.onnx", "rgb", {}):
        pass
