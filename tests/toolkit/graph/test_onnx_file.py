from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.bundle.engine_input import whole_input
from offload.bundle.subgraph import extract_part, part_of
from offload.bundle.weights import write_part
from offload.errors import InputError
from offload.graph import load, onnx_file
from offload.graph.load import load_model
from offload.graph.onnx_file import is_external
from offload.graph.read import read_graph
from offload_runtimes.engine import EngineOptions
from offload_runtimes.engine import load as load_engine
from onnx import ModelProto, TensorProto, helper, numpy_helper


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, with large and small weights of several kinds."""
    monkeypatch.setattr(load, "LARGE_FILE_BYTES", 1)
    monkeypatch.setattr(onnx_file, "LEAST_WEIGHT_BYTES", 256)
    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32), "W"),
        numpy_helper.from_array(np.array([0.5], np.float32), "small"),
        helper.make_tensor("listed", TensorProto.FLOAT, [16, 16], rng.standard_normal(256)),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("Mul", ["a", "small"], ["b"]),
        helper.make_node("MatMul", ["b", "listed"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 16]) for end in "xy"]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(proto, {"alphabet": "abc"})
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_large_weights_stay_in_the_file(path: Path) -> None:
    model = load_model(path)
    where = {tensor.name: is_external(tensor) for tensor in model.proto.graph.initializer}
    assert where == {"W": True, "small": False, "listed": False}
    assert not model.has_outside
    assert model.proto.metadata_props[0].value == "abc"


def test_the_digest_is_that_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = load_model(path).digest
    monkeypatch.undo()
    assert load_model(path).digest == digest


def test_a_part_has_its_weights_inside(path: Path, tmp_path: Path) -> None:
    model = load_model(path)
    part = part_of(read_graph(model), [0, 1])
    files = write_part(model, part, tmp_path / "part.onnx")
    written = onnx.load(tmp_path / "part.onnx")
    assert files == (tmp_path / "part.onnx",)
    extracted = extract_part(model, part).whole()
    for tensor in filter(is_external, extracted.graph.initializer):
        tensor.CopyFrom(model.weights.loaded(tensor))
    assert written == extracted
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert list(written.graph.initializer) == [stored["W"], stored["small"]]


def test_an_engine_reads_the_weights_from_the_file(path: Path) -> None:
    source = whole_input(load_model(path))
    assert isinstance(source, bytes)
    plain = EngineOptions(optimize=False)
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    (got,) = load_engine(source, plain).run(None, {"x": x})
    (want,) = load_engine(path, plain).run(None, {"x": x})
    assert np.array_equal(got, want)


def test_damaged_large_files_are_refused(path: Path) -> None:
    content = path.read_bytes()
    for damaged in (content[:-300], content[:1000], b"\x3a\xff" + content, bytes(range(256)) * 9):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not an ONNX model"):
            load_model(path)


def test_the_model_equals_what_protobuf_reads(path: Path) -> None:
    model = load_model(path)
    whole = ModelProto()
    whole.CopyFrom(model.proto)
    for tensor in whole.graph.initializer:
        if is_external(tensor):
            tensor.CopyFrom(model.weights.loaded(tensor))
    assert whole == onnx.load(path)
