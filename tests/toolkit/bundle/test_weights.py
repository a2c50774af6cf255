import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from offload.bundle import weights
from offload.bundle.subgraph import extract_part, part_of
from offload.bundle.verify import parts_of_cut
from offload.bundle.weights import write_part, write_parts
from offload.errors import InputError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from onnx import ModelProto, TensorProto, helper

from tests.edge_cases import text


def two_layers() -> ModelProto:
    """y = (x @ a) @ b + x @ a, where both products share a weight."""
    rng = np.random.default_rng(0)
    stored = {name: rng.standard_normal((64, 64), np.float32) for name in "abc"}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Add", ["h", "c"], ["g"]),
            helper.make_node("MatMul", ["g", "b"], ["k"]),
            helper.make_node("Add", ["k", "c"], ["y"]),
        ],
        "two",
        [value("x", TensorProto.FLOAT, ["N", 64])],
        [value("y", TensorProto.FLOAT, ["N", 64])],
        [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(proto, {"alphabet": "abc"})
    return proto


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def split_and_compare(source: Path, folder: Path) -> set[str]:
    model = load_model(source)
    graph = read_graph(model)
    parts = {
        "device-0.onnx": part_of(graph, range(2)),
        "server-0.onnx": part_of(graph, range(2, 4)),
    }
    files = write_parts(model, parts, folder)
    x = np.random.default_rng(1).standard_normal((64, 64), np.float32)
    between = run(folder / "device-0.onnx", {"x": x})
    assert between.keys() == {"g"}
    after = run(folder / "server-0.onnx", between)
    assert np.array_equal(after["y"], run(source, {"x": x})["y"])
    for path in files:
        if path.suffix == ".onnx":
            onnx.checker.check_model(path)
    return {path.name for path in files}


def test_weights_stay_inline(tmp_path: Path) -> None:
    onnx.save(two_layers(), tmp_path / "m.onnx")
    out = tmp_path / "bundle"
    out.mkdir()
    assert split_and_compare(tmp_path / "m.onnx", out) == {"device-0.onnx", "server-0.onnx"}
    assert {path.name for path in out.iterdir()} == {"device-0.onnx", "server-0.onnx"}
    device = onnx.load(out / "device-0.onnx")
    assert {tensor.name for tensor in device.graph.initializer} == {"a", "c"}
    assert device.metadata_props[0].value == "abc"


def test_streamed_file_is_what_one_message_would_be(tmp_path: Path) -> None:
    model = load_model(two_layers())
    part = part_of(read_graph(model), range(2))
    write_part(model, part, tmp_path / "part.onnx")
    assert onnx.load(tmp_path / "part.onnx") == extract_part(model, part).whole()


@pytest.mark.parametrize("how", ["one file", "a file each"])
def test_external_weights_are_shared(tmp_path: Path, how: str) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(
        two_layers(),
        source,
        save_as_external_data=True,
        all_tensors_to_one_file=how == "one file",
        location="m.data" if how == "one file" else None,
        size_threshold=0,
    )
    out = tmp_path / "bundle"
    out.mkdir()
    files = split_and_compare(source, out)
    sides = {"device.weights", "server.weights", "shared.weights"}
    assert files == {"device-0.onnx", "server-0.onnx"} | sides
    assert {path.name: path.stat().st_size for path in out.glob("*.weights")} == dict.fromkeys(
        sides, 4 * 64 * 64
    )


def test_a_part_too_large_for_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "INLINE_LIMIT_BYTES", 20_000)
    onnx.save(two_layers(), tmp_path / "m.onnx")
    out = tmp_path / "bundle"
    out.mkdir()
    files = split_and_compare(tmp_path / "m.onnx", out)
    assert "shared.weights" in files
    assert all(path.stat().st_size < 2000 for path in out.glob("*.onnx"))


def test_a_part_that_lacks_a_value() -> None:
    model = load_model(two_layers())
    part = part_of(read_graph(model), [1])
    with pytest.raises(InputError, match="needs 'h', which it neither produces nor has as input"):
        extract_part(model, type(part)(part.nodes, (), part.outputs))


def test_folders_of_another_file_system(tmp_path: Path) -> None:
    """Copies inside the kernel fail between some file systems; bytes then go through memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        source = Path(folder) / "m.onnx"
        onnx.save(two_layers(), source, save_as_external_data=True, size_threshold=0)
        split_and_compare(source, tmp_path)


def test_external_weights_inside_bodies(tmp_path: Path) -> None:
    """Two branches keep their weights in one outside file; a part takes what it uses."""
    proto = text(
        """g (float[N,64] x) => (float[N,64] y) { s = ReduceSum <keepdims=0> (x)
        zero = Constant <value = float {0}> () c = Less(zero, s) a = Relu(x)
        r = If (c) <then_branch = t () => (float[N,64] u) { u = Add(a, p) },
                    else_branch = e () => (float[N,64] v) { v = Mul(a, q) }>
        y = Tanh(r) }"""
    )
    rng = np.random.default_rng(0)
    with (tmp_path / "m.data").open("wb") as file:
        branch = next(node for node in proto.graph.node if node.op_type == "If")
        for attribute, name in zip(branch.attribute, ("p", "q"), strict=True):
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[64, 64])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "m.data"), ("offset", file.tell()), ("length", 16384)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(rng.standard_normal((64, 64), np.float32).tobytes())
            attribute.g.initializer.append(tensor)
    source, out = tmp_path / "m.onnx", tmp_path / "out"
    out.mkdir()
    onnx.save(proto, source)
    model = load_model(source)
    graph = read_graph(model)
    for device in range(len(graph.layers)):
        write_parts(model, parts_of_cut(graph, range(device)), out)
        for sign in (-1, 1):
            values = {"x": sign * np.abs(rng.standard_normal((64, 64), np.float32))}
            want = run(source, values)["y"]
            for name in ("device-0.onnx", "server-0.onnx"):
                inputs = [
                    value.name
                    for value in onnx.load(out / name, load_external_data=False).graph.input
                ]
                if device or name.startswith("server"):
                    values.update(run(out / name, {key: values[key] for key in inputs}))
            assert np.array_equal(values["y"], want)
        for path in out.iterdir():
            path.unlink()
