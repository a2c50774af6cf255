"""Every model of the zoo: valid, of published size, and live."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from offload.errors import InputError
from offload_models.zoo import ZOO, build, save

Array = NDArray[np.float32]
Feed = dict[str, Array]


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def feed(runs: ort.InferenceSession, seed: int, batch: int = 1) -> Feed:
    rng = np.random.default_rng(seed)
    return {
        i.name: rng.standard_normal((batch, *i.shape[1:])).astype(np.float32)
        for i in runs.get_inputs()
    }


def trained_numbers(model: onnx.ModelProto) -> int:
    """Parameters as frameworks count them: no running statistics, no bounds of a Clip.

    A normalisation from Caffe is two layers; the second (Mul, Add) holds scale and shift.
    """
    from_caffe = any(node.op_type == "Mul" for node in model.graph.node)
    first = {"BatchNormalization": 1 if from_caffe else 3, "Clip": 1}
    untrained = {
        name for node in model.graph.node for name in node.input[first.get(node.op_type, 99) :]
    }
    held = [i for i in model.graph.initializer if i.name not in untrained and i.data_type == 1]
    return sum(int(np.prod(i.dims)) for i in held)


def scores(runs: ort.InferenceSession, given: Feed) -> Array:
    """The scores before a softmax, if the model ends in one (up to a constant)."""
    found: Array = runs.run(None, given)[0]
    return np.log(found) if "softmax" in runs.get_outputs()[0].name or found.min() > 0 else found


QUICK_LIGHT = ("light_inception_v1", "light_shufflenet", "light_squeezenet")
NAMES = [
    pytest.param(name, marks=pytest.mark.slow)
    if name.startswith("light") and name not in QUICK_LIGHT
    else pytest.param(name)
    for name in ZOO
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> onnx.ModelProto:
    return build(name)


def test_a_model_is_what_its_paper_says(name: str, model: onnx.ModelProto) -> None:
    assert abs(trained_numbers(model) / ZOO[name].parameters - 1) < 0.01
    onnx.checker.check_model(model)
    assert model.ir_version == 8
    assert [o.version for o in model.opset_import] == [9 if name.startswith("light") else 17]
    assert not {i.name for i in model.graph.initializer} & {i.name for i in model.graph.input}
    names = [node.name for node in model.graph.node if node.name]
    assert len(set(names)) == len(names)


def test_a_model_is_live(model: onnx.ModelProto) -> None:
    """Another input, whichever of them changes, gives other scores, and no softmax is flat."""
    runs = session(model)
    first = feed(runs, 1)
    found = scores(runs, first)
    assert 0.5 < found.std() < 8
    for name, changed in feed(runs, 2).items():
        assert np.abs(scores(runs, {**first, name: changed}) - found).mean() > 0.05
    blank = scores(runs, {name: np.zeros_like(x) for name, x in first.items()})
    assert np.isfinite(blank).all()
    assert blank.std() > 0.5


def test_declared_shapes_are_true(model: onnx.ModelProto) -> None:
    declared = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    found = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    assert declared.items() <= found.items()


def test_a_seed_gives_one_model_and_another_seed_another() -> None:
    same, again, other = build("mobilenet_v2", 3), build("mobilenet_v2", 3), build("mobilenet_v2")
    assert same.SerializeToString() == again.SerializeToString()
    assert same.SerializeToString() != other.SerializeToString()


def test_the_batch_can_stay_dynamic() -> None:
    runs = session(build("mobilenet_v2", batch="n"))
    assert runs.get_inputs()[0].shape[0] == "n"
    two = feed(runs, 5, batch=2)
    both: Array = runs.run(None, two)[0]
    alone: Array = runs.run(None, {name: x[1:] for name, x in two.items()})[0]
    assert both.shape == (2, 1000)
    np.testing.assert_allclose(both[1:], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["googlenet"], indirect=True)
def test_an_inception_module_has_four_branches_to_cut(model: onnx.ModelProto) -> None:
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        inception = f"inception_{module}"
        joined = next(n for n in model.graph.node if f"{inception}/concat" in n.output)
        branches = [f"{inception}/{b}/relu" for b in ("1x1", "3x3", "5x5", "pool_proj")]
        assert list(joined.input) == branches


def ancestors(model: onnx.ModelProto, tensor: str) -> set[str]:
    """Names of all nodes and graph inputs that a tensor needs."""
    maker = {name: node for node in model.graph.node for name in node.output}
    inputs = {value.name for value in model.graph.input}
    seen: set[str] = set()
    pending = [tensor]
    while pending:
        name = pending.pop()
        if name in maker and maker[name].name not in seen:
            seen.add(maker[name].name)
            pending.extend(maker[name].input)
        elif name in inputs:
            seen.add(name)
    return seen


@pytest.mark.parametrize("name", ["alexnet_parallel"], indirect=True)
def test_towers_share_the_image_and_nothing_else(model: onnx.ModelProto) -> None:
    one, other = (ancestors(model, f"tower{t}/pool5") for t in (1, 2))
    assert one & other == {"image"}
    assert len(one) == len(other) == 16


@pytest.mark.parametrize("name", ["multi_stream"], indirect=True)
def test_streams_share_nothing(model: onnx.ModelProto) -> None:
    streams = {name: ancestors(model, f"{name}/scores") for name in ("human", "object", "pairwise")}
    for name, stream in streams.items():
        assert {value.name for value in model.graph.input} & stream == {name}
        assert all(node == name or node.startswith(f"{name}/") for node in stream)


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match="googlenet"):
        build("googlenot")
    with pytest.raises(InputError, match="seed"):
        build("googlenet", seed=-1)
    with pytest.raises(InputError, match="batch"):
        build("googlenet", batch=0)
    with pytest.raises(InputError, match="batch of 1"):
        build("light_resnet50", batch="n")


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = onnx.ModelProto(ir_version=8), tmp_path / "m.onnx"
    save(model, path)
    assert onnx.load_model_from_string(path.read_bytes()) == model
    before = path.read_bytes()

    def full_disk(beside: Path, data: bytes) -> int:
        with beside.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(onnx.ModelProto(ir_version=9), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == before


def test_an_impossible_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="create it first"):
        save(onnx.ModelProto(), tmp_path / "none" / "m.onnx")
    with pytest.raises(InputError, match="is a folder"):
        save(onnx.ModelProto(), tmp_path)
