"""The engine: right answers, one sentence for every wrong input, deadlines."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from offload.bundle.bundle import ModelValue
from offload.errors import DeadlineError, InputError
from offload_runtimes.engine import EngineOptions, kernel_options, load, profiling
from offload_runtimes.engine.profiling import optimize_to, profile_nodes, tensor_types
from offload_runtimes.engine.values import as_feed
from onnx import TensorProto, helper

from tests.runtimes import models


def relu() -> bytes:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    outputs = [models.floats("y", "n", 3), models.floats("z", "n", 3)]
    return models.model(nodes, [models.floats("x", "n", 3)], outputs).SerializeToString()


def test_outputs_come_in_the_requested_order() -> None:
    engine = load(relu())
    x = np.array([[-1, 0, 2]], np.float32)
    z, y = engine.run(["z", "y"], {"x": x})
    np.testing.assert_array_equal(y, [[0, 0, 2]])
    np.testing.assert_array_equal(z, [[0, 0, -2]])
    assert [array.tolist() for array in engine.run(None, {"x": x})] == [y.tolist(), z.tolist()]


def test_inputs_and_outputs() -> None:
    engine = load(relu())
    (x,) = engine.inputs
    assert (x.name, x.type, x.shape) == ("x", "tensor(float)", ("n", 3))
    assert [value.name for value in engine.outputs] == ["y", "z"]
    assert engine.zeros() is None
    assert set(tensor_types(relu())) == {"x", "y", "z"}


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "'x' is missing"),
        ({"x": np.ones((1, 4), np.float32)}, r"'x' must be float32\[nx3\], not float32\[1x4\]"),
        ({"x": np.ones((1, 3))}, r"'x' must be float32\[nx3\], not float64\[1x3\]"),
        ({"x": np.ones(3, np.float32)}, r"not float32\[3\]"),
        ({"X": np.ones((1, 3), np.float32)}, "no input 'X'"),
    ],
)
def test_wrong_input_is_one_sentence(feeds: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(relu()).run(None, feeds)
    assert "\n" not in str(caught.value)


def test_numbers_are_refused_for_text_and_unsupported_types() -> None:
    """Also float64, which numpy compares as equal to None."""
    for kind, said in (
        ("string", r"must be text\[2\], not float64"),
        ("complex64", "not supported"),
    ):
        with pytest.raises(InputError, match=said):
            as_feed("m", ModelValue("x", f"tensor({kind})", (2,)), np.ones(2))


def test_wrong_output_name() -> None:
    with pytest.raises(InputError, match="no output 'q'"):
        load(relu()).run(["q"], {"x": np.ones((1, 3), np.float32)})


@pytest.mark.parametrize("content", [b"", b"not onnx at all", relu()[:-20]])
def test_refused_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"onnxruntime refuses .*m\.onnx") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(InputError, match=r"nowhere\.onnx does not exist"):
        load("nowhere.onnx")


def test_a_missing_provider_is_an_error_unless_the_cpu_is_allowed() -> None:
    with pytest.raises(InputError, match="install onnxruntime-gpu in place of onnxruntime"):
        load(relu(), EngineOptions(providers=("cuda", "cpu")))
    with pytest.warns(RuntimeWarning, match="CUDAExecutionProvider is not in this onnxruntime"):
        engine = load(relu(), EngineOptions(providers=("cuda", "cpu"), allow_cpu=True))
    assert engine.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("cuda:one",), "'cuda:one': give the number of a GPU, like cuda:1"),
        (("cuda:",), "'cuda:': give the number of a GPU"),
        (("cpu:1",), "'cpu:1' has no number: only cuda and tensorrt do"),
        (("cuda:0", "cuda:1"), "cuda:0 and cuda:1 are different GPUs: give one"),
        (("cuda:1",), "CUDAExecutionProvider is not in this onnxruntime: install onnxruntime-gpu"),
    ],
)
def test_the_number_of_a_gpu(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(relu(), EngineOptions(providers=names))


@pytest.mark.parametrize(
    "words",
    [
        "CUDA failure 101: invalid device ordinal ; GPU=-1 ; hostname=h ;",
        'Failed to parse provider option "device_id": operator() Invalid device ID: 3, must be'
        " between 0 (inclusive) and 1 (exclusive).",
    ],
)
def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Without a GPU: what onnxruntime is given, and its error, are the documented ones."""
    given: list[object] = []

    def refuse(*_: object, providers: list[object], **__: object) -> None:
        given.extend(providers)
        raise RuntimeError(words)

    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(InputError, match="this machine has no GPU 3: `nvidia-smi -L` lists"):
        load(relu(), EngineOptions(providers=("tensorrt:3", "cuda")))
    number = {"device_id": 3}
    cuda = {**number, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
    assert given == [(available[0], number), (available[1], cuda), available[2]]


def test_options_to_time_kernels_with() -> None:
    """Providers that compile many layers into one kernel leave nothing to time in it."""
    options = EngineOptions(("tensorrt:1", "openvino", "CUDAExecutionProvider"), threads=2)
    assert kernel_options(options) == EngineOptions(("cuda:1", "CUDAExecutionProvider"), threads=2)
    assert kernel_options(EngineOptions(("openvino", "cpu"))).on_cpu
    assert not kernel_options(EngineOptions(("tensorrt",))).on_cpu


def test_unknown_provider_and_threads() -> None:
    with pytest.raises(InputError, match="'abacus' is unknown"):
        load(relu(), EngineOptions(providers=("abacus",)))
    with pytest.raises(InputError, match="at least 1"):
        EngineOptions(threads=0)


def test_deadline_ends_an_endless_loop() -> None:
    engine = load(models.endless_loop().SerializeToString())
    with pytest.raises(DeadlineError, match=r"stopped before it finished \(the limit is 200 ms\)"):
        engine.run(None, {"x": np.zeros(1, np.float32)}, deadline_s=0.2)


def test_deadline_far_away_changes_nothing() -> None:
    x = np.ones((1, 3), np.float32)
    assert load(relu()).run(["y"], {"x": x}, deadline_s=60)[0].tolist() == x.tolist()


def test_impossible_allocation_is_an_error() -> None:
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    shape = {"shape": np.array([10**6, 10**6, 10**3], np.int64)}
    huge = models.model([node], [models.floats("x", 1)], [models.floats("y", "a", "b", "c")], shape)
    options = EngineOptions(optimize=False)
    with pytest.raises(
        InputError, match=r"more memory than this machine has \(4000000 GB at once\)"
    ):
        load(huge.SerializeToString(), options).run(None, {"x": np.zeros(1, np.float32)})


def identity(element: onnx.TensorProto.DataType) -> bytes:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    shape = ["n", "m"]
    x = helper.make_tensor_value_info("x", element, shape)
    y = helper.make_tensor_value_info("y", element, shape)
    return models.model(nodes, [x], [y]).SerializeToString()


CARRIERS = {
    TensorProto.BFLOAT16: np.uint16,
    TensorProto.FLOAT8E4M3FN: np.uint8,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BOOL: np.bool_,
}
ENGINES = {element: load(identity(element)) for element in CARRIERS}


@given(data=st.data(), element=st.sampled_from(list(CARRIERS)))
def test_types_that_numpy_lacks_pass_unchanged(
    data: st.DataObject, element: onnx.TensorProto.DataType
) -> None:
    shapes = hnp.array_shapes(min_dims=2, max_dims=2)
    array = data.draw(hnp.arrays(CARRIERS[element], shapes))
    (out,) = ENGINES[element].run(None, {"x": array})
    assert out.dtype == array.dtype
    assert out.tobytes() == array.tobytes()


@pytest.mark.parametrize("element", [TensorProto.INT4, TensorProto.UINT4])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_four_bit_values(element: onnx.TensorProto.DataType, count: int) -> None:
    """Through a dequantizer: an oracle that unpacks by itself."""
    low, carrier = (-8, np.int8) if element == TensorProto.INT4 else (0, np.uint8)
    x = np.arange(low, low + count, dtype=carrier)
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Cast", ["y"], ["z"], to=element)]
    info = helper.make_tensor_value_info
    outputs = [models.floats("y", "n"), info("z", element, ["n"])]
    engine = load(models.model(nodes, [info("x", element, ["n"])], outputs).SerializeToString())
    y, z = engine.run(None, {"x": x})
    assert y.tolist() == x.tolist() == z.tolist()


def test_bfloat16_is_carried_as_its_bits() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)]
    y_info = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n"])
    engine = load(models.model(nodes, [models.floats("x", "n")], [y_info]).SerializeToString())
    x = np.array([1.5, -3.25, 1e30], np.float32)
    (y,) = engine.run(None, {"x": x})
    np.testing.assert_array_equal(y.view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    weights = {"w": np.arange(300, dtype=np.float32)}
    made = models.model(nodes, [models.floats("x", 300)], [models.floats("y", 300)], weights)
    path = tmp_path / "m.onnx"
    onnx.save(made, path, save_as_external_data=True, location="m.weights", size_threshold=0)
    assert (tmp_path / "m.weights").is_file()
    (y,) = load(path).run(None, load(path).zeros() or {})
    np.testing.assert_array_equal(y, weights["w"])
    (tmp_path / "m.weights").unlink()
    with pytest.raises(InputError, match="onnxruntime refuses"):
        load(path)


def conv_relu(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Softmax", ["r"], ["s"], "softmax"),
    ]
    weights = {"w": np.ones((4, 3, 3, 3), np.float32)}
    shapes = [models.floats("x", 1, 3, 8, 8)], [models.floats("s", 1, 4, 6, 6)]
    path = tmp_path / "conv.onnx"
    onnx.save(models.model(nodes, *shapes, weights), path)
    return path


def test_profile_names_every_kernel(tmp_path: Path) -> None:
    path = conv_relu(tmp_path)
    feeds = load(path).zeros() or {}
    plain = profile_nodes(path, feeds, EngineOptions(optimize=False), runs=3, warm_runs=1)
    assert list(plain) == ["conv", "relu", "softmax"]
    assert min(plain.values()) > 0
    fused = profile_nodes(path, feeds, runs=3)
    assert "relu" not in fused


def test_kernels_timed_in_a_waiting_process_are_the_same(tmp_path: Path) -> None:
    """What a GPU's kernels are timed with; here on the CPU."""
    path = conv_relu(tmp_path)
    feeds, options = load(path).zeros() or {}, EngineOptions(optimize=False)
    found = profiling._timed_nodes_waiting(path, feeds, options, 1, 1, 15.0)
    assert list(found) == ["conv", "relu", "softmax"]
    with pytest.raises(InputError, match=r"could not be timed: /.*no.onnx does not exist: "):
        profiling._timed_nodes_waiting(tmp_path / "no.onnx", feeds, options, 1, 1, 15.0)


def test_kernel_providers(tmp_path: Path) -> None:
    path = conv_relu(tmp_path)
    feeds = load(path).zeros() or {}
    options = EngineOptions(("AzureExecutionProvider",))  # in the CPU's wheel; it runs no kernel
    assert profiling.kernel_providers(path, feeds, options) == {"cpu"}


def test_optimized_graph_lacks_fused_tensors(tmp_path: Path) -> None:
    target = tmp_path / "optimized.onnx"
    optimize_to(conv_relu(tmp_path), target)
    names = {name for node in onnx.load(target).graph.node for name in node.output}
    assert "r" in names
    assert "c" not in names
