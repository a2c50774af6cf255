import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.errors import InputError
from offload.graph.load import load_model
from onnx import TensorProto, helper


def adder(weights: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> onnx.ModelProto:
    size = len(weights)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "adder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "adder.onnx"
    weights = np.arange(4096, dtype=np.float32)
    onnx.save(adder(weights), path, save_as_external_data=True, location="adder.data")
    return path


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "adder.onnx"
    onnx.save(adder(np.ones(4, np.float32)), path)
    assert load_model(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_digest_covers_external_data(external: Path) -> None:
    before = load_model(external).digest
    data = bytearray((external.parent / "adder.data").read_bytes())
    data[5000] ^= 1
    (external.parent / "adder.data").write_bytes(data)
    assert load_model(external).digest != before


def test_external_weights_stay_outside(external: Path) -> None:
    model = load_model(external)
    assert not model.proto.graph.initializer[0].raw_data
    assert model.weights.extents[0].length_bytes == 4 * 4096


def test_model_in_memory(tmp_path: Path) -> None:
    proto = adder(np.ones(4, np.float32))
    assert load_model(proto).name == "adder"
    assert load_model(proto).digest == load_model(adder(np.ones(4, np.float32))).digest
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="nowhere.data")
    with pytest.raises(InputError, match="no directory was given"):
        load_model(proto)
    with pytest.raises(InputError, match="missing"):
        load_model(proto, tmp_path)


def test_missing_external_data(external: Path) -> None:
    (external.parent / "adder.data").unlink()
    with pytest.raises(InputError, match=r"adder\.data is missing: copy it beside the model"):
        load_model(external)


def test_short_external_data(external: Path) -> None:
    (external.parent / "adder.data").write_bytes(b"short")
    with pytest.raises(InputError, match="cut short: 5 bytes"):
        load_model(external)


@pytest.mark.parametrize("location", ["../adder.data", "/etc/hostname"])
def test_external_data_outside_the_directory(external: Path, location: str) -> None:
    proto = onnx.load(external, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    external.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="outside the model's directory"):
        load_model(external)


def test_files_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is not a file"):
        load_model(tmp_path)
    path = tmp_path / "text.onnx"
    for content in (b"hello, this is no model at all", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not an ONNX model"):
            load_model(path)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is an HTML page"),
    ],
)
def test_failed_downloads_are_recognised(tmp_path: Path, content: bytes, advice: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=advice):
        load_model(path)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(adder(np.ones(64, np.float32)).SerializeToString()[:-30])
    with pytest.raises(InputError, match="damaged"):
        load_model(path)


def broken(change: str) -> onnx.ModelProto:
    proto = adder(np.ones(4, np.float32))
    nodes = proto.graph.node
    if change == "twice":
        nodes.append(helper.make_node("Relu", ["x"], ["y"]))
    elif change == "which no node produces":
        nodes[0].input[1] = "ghost"
    elif change == "no node produces output":
        proto.graph.output[0].name = "ghost"
    else:
        nodes[0].input[1] = "y"
    return proto


@pytest.mark.parametrize(
    "change", ["two nodes produce", "which no node produces", "no node produces output", "cycle"]
)
def test_invalid_graphs(change: str) -> None:
    with pytest.raises(InputError, match=change):
        load_model(broken("twice" if change == "two nodes produce" else change))
