"""Encodings from the plan to the answer: in the bundle, on the wire, in the report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.bundle.bundle import Bundle
from offload.bundle.engine_input import exposed_inputs
from offload.bundle.write import write_bundle
from offload.costs.encodings import ENCODINGS, parse_allowed
from offload.errors import InputError
from offload.graph.load import load_model
from offload_runtimes.engine import load
from offload_runtimes.local import open_session
from offload_runtimes.measure.accuracy import AccuracyTrial
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.encoding_report import encode_report
from offload_runtimes.measure.encoding_sizes import measure_encodings
from onnx import ModelProto, TensorProto, helper

from tests.runtimes.measure.convnet import PLAIN, Net, inputs, net

TENSOR_ENCODINGS = [name for name, each in ENCODINGS.items() if not each.is_picture]


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return net(tmp_path_factory.mktemp("net"))


def bundle_of(convnet: Net, encodings: str, folder: Path) -> Bundle:
    plan = convnet.planned(encodings)
    return write_bundle(convnet.model, convnet.graph, plan, folder / "net.bundle")


@pytest.mark.parametrize("name", TENSOR_ENCODINGS)
def test_every_encoding_crosses(convnet: Net, name: str, tmp_path: Path) -> None:
    bundle = bundle_of(convnet, name, tmp_path)
    (send,) = bundle.plan.uploads
    assert send.encoding == name
    assert send.tensor == "t"
    varies = ENCODINGS[name].codec != "raw"
    assert (bundle.plan.latency_p95_s is not None) == varies
    assert (bundle.plan.latency_p95_s or float("inf")) > bundle.plan.latency_s
    feeds = inputs(9)[-1]
    (expected,) = load(tmp_path_model(convnet), PLAIN).run(None, feeds)
    with open_session(bundle, optimize=False, threads=1) as session:
        (found,) = session.run(None, feeds)
    worst = float(np.abs(found - expected).max() / np.ptp(expected))
    if ENCODINGS[name].is_lossless:
        assert np.array_equal(found, expected)
    else:
        assert 0 < worst < 0.05


def tmp_path_model(convnet: Net) -> Path:
    assert convnet.model.path is not None
    return convnet.model.path


@pytest.mark.parametrize("name", ["fp16", "uint8+zstd", "uint8-channel"])
def test_a_graph_input_is_encoded_in_a_segment_of_its_own(
    convnet: Net, name: str, tmp_path: Path
) -> None:
    allowed = convnet.catalogue.allowing((ENCODINGS[name],))
    plan = convnet.plan(allowed, ("x",))
    (send,) = plan.uploads
    assert (send.tensor, send.encoding) == ("x", name)
    assert plan.segment("device-0").nodes == ()
    bundle = write_bundle(convnet.model, convnet.graph, plan, tmp_path / "net.bundle")
    feeds = inputs(1)[0]
    (expected,) = load(tmp_path_model(convnet), PLAIN).run(None, feeds)
    with open_session(bundle, threads=1) as session:
        (found,) = session.run(None, feeds)
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["uint8", "uint8-channel+zstd"])
def test_nan_and_infinity_never_become_a_number(
    convnet: Net, name: str, value: float, tmp_path: Path
) -> None:
    bundle = write_bundle(
        convnet.model,
        convnet.graph,
        convnet.plan(convnet.catalogue.allowing((ENCODINGS[name],)), ("x",)),
        tmp_path / "net.bundle",
    )
    feeds = inputs(1)[0]
    feeds["x"][0, 1, 2, 3] = value
    with open_session(bundle, threads=1) as session:
        with pytest.raises(InputError, match=r"'x' holds NaN or infinity.*--encoding lossless"):
            session.run(None, feeds)
        session.run(None, inputs(1)[0])  # the session goes on


def test_what_is_not_finite_in_calibration_is_only_compressed(tmp_path: Path) -> None:
    convnet = net(tmp_path)
    feeds = inputs(2)
    feeds[1]["x"][0, 0, 0, 0] = np.inf
    found = measure_encodings(
        convnet.model, convnet.graph, Calibration(tuple(feeds)), parse_allowed("any"), PLAIN
    )
    for name in ("x", "t"):
        assert {entry.encoding.name for entry in found.of(name)} == {"zstd", "planes"}


def test_old_operator_sets_quantise_too(tmp_path: Path) -> None:
    old = net(tmp_path, opset=9)
    bundle = bundle_of(old, "uint8-channel", tmp_path)
    assert bundle.plan.uploads[0].wire == "t@uint8-channel"
    feeds = inputs(1)[0]
    (expected,) = load(tmp_path / "net.onnx").run(None, feeds)
    with open_session(bundle, threads=1) as session:
        (found,) = session.run(None, feeds)
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_the_report_measures_every_encoding(convnet: Net, tmp_path: Path) -> None:
    bundle = bundle_of(convnet, "uint8", tmp_path)
    found = encode_report(bundle, convnet.calibration, PLAIN)
    (tensor,) = found.tensors
    assert (tensor.send.tensor, tensor.dtype, tensor.shape) == ("t", "float32", (1, 8, 16, 16))
    assert 0.2 < tensor.zeros < 0.8
    ways = {way.measured.encoding.name: way for way in tensor.options}
    assert list(ways) == TENSOR_ENCODINGS
    assert tensor.used is ways[bundle.plan.uploads[0].encoding]
    sizes = {name: way.measured.mean_bytes for name, way in ways.items()}
    assert sizes["raw"] == tensor.raw_bytes == 8 * 16 * 16 * 4
    assert sizes["fp16"] * 2 == sizes["uint8"] * 4 == sizes["raw"]
    assert sizes["zstd"] < sizes["raw"]
    for name, way in ways.items():
        assert way.measured.p95_bytes >= way.measured.mean_bytes * 0.999
        assert (way.effect.worst == 0) == ENCODINGS[name].is_lossless
    assert ways["fp16"].effect.worst < ways["uint8"].effect.worst
    assert found.effect == tensor.used.effect
    assert tensor.prediction_error == pytest.approx(0)


def test_a_bundle_undone_gives_what_the_model_gives(convnet: Net, tmp_path: Path) -> None:
    bundle = bundle_of(convnet, "uint8", tmp_path)
    sources = exposed_inputs(bundle)
    rehearsal = AccuracyTrial(bundle.plan, sources, convnet.calibration, PLAIN)
    whole = load(tmp_path_model(convnet), PLAIN)
    for feeds, outputs in zip(convnet.calibration.feeds, rehearsal.expected, strict=True):
        assert np.array_equal(outputs["y"], whole.run(None, feeds)[0])
    assert load_model(
        ModelProto.FromString(bytes(sources["device-0.onnx"]))
    ).values.outputs.keys() == {"t"}


def camera(folder: Path) -> Path:
    """A camera's bytes `image` -> mean of each colour over the picture, as floats."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["x"], ["y"], "pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "camera",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, 32, 48, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 1, 1))],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("name", ["png", "jpeg"])
def test_pictures_cross_as_pictures(name: str, tmp_path: Path) -> None:
    rows = np.linspace(0, 200, 32 * 48 * 3).reshape(1, 32, 48, 3).astype(np.uint8)
    calibration = Calibration(({"image": rows},))
    seen = net(tmp_path, path=camera(tmp_path), calibration=calibration)
    plan = seen.plan(seen.catalogue.allowing((ENCODINGS[name],)), ("image",))
    (send,) = plan.uploads
    assert send.encoding == name
    assert plan.is_lossless == (name == "png")
    bundle = write_bundle(seen.model, seen.graph, plan, tmp_path / "net.bundle")
    with open_session(bundle, threads=1) as session:
        (found,) = session.run(None, {"image": rows})
    (expected,) = load(tmp_path_model(seen)).run(None, {"image": rows})
    assert np.abs(found - expected).max() <= (1e-4 if name == "png" else 2)


def test_answers_come_back_compressed_where_that_pays(tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    shape = (1, 4, 32, 32)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"], "relu"), helper.make_node("Exp", ["t"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    seen = net(tmp_path, path=path, calibration=Calibration((feeds,)))
    plan = seen.plan(seen.catalogue.allowing(parse_allowed("any")))
    (send,) = plan.downloads
    assert send.encoding in ("zstd", "planes")
    assert (send.size_bytes or 0) < (send.tensor_bytes or 0) == 4 * 4 * 32 * 32
    raw = seen.plan(seen.catalogue.allowing((ENCODINGS["raw"],)))
    assert raw.downloads[0].encoding == "raw"
    assert plan.latency_s < raw.latency_s
    bundle = write_bundle(
        seen.model,
        seen.graph,
        replace(plan, uploads=raw.uploads, steps=raw.steps, segments=raw.segments),
        tmp_path / "net.bundle",
    )
    with open_session(bundle, threads=1, slowdown=2) as session:
        (found,) = session.run(None, feeds)
    (expected,) = load(path).run(None, feeds)
    assert found.tobytes() == expected.tobytes()
