"""Where a model can be cut: float16, fused kernels, odd names, and why not elsewhere."""

import xml.dom.minidom
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload.costs.link import parse_link
from offload.errors import InputError
from offload_runtimes.measure.split import SplitRequest, prepare, split
from onnx import TensorProto, helper

from tests.front_door.door import ESTIMATED, PLAIN, Door, plain_onnxruntime, save, value, weight

RAW = ("--encoding", "raw")
make = helper.make_node


def answers(door: Door, bundle: str, feeds: dict[str, Any]) -> dict[str, Any]:
    """What `offload run` writes, nothing optimised."""
    np.savez(door.folder / "in.npz", **feeds)
    door.ok("run", bundle, "--input", "in.npz", "--output", "out.npz", PLAIN)
    with np.load(door.folder / "out.npz") as found:
        return {name: found[name] for name in found.files}


def drawn(*shape: int) -> Any:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def outputs_of_layers(door: Door, name: str) -> set[str]:
    layers = door.json("inspect", name)["layers"]
    return {made for layer in layers for made in layer["outputs"]}


def blocks(path: Path, half: bool) -> None:
    """Convolutions with a shortcut, as `model.half()` and a float16 converter leave them."""
    nodes = [
        make("Conv", ["x", "K0"], ["c0"], pads=[1] * 4),
        make("Relu", ["c0"], ["r0"]),
        make("Conv", ["r0", "K1"], ["c1"], pads=[1] * 4),
        make("Add", ["c1", "r0"], ["a1"]),
        make("Relu", ["a1"], ["r1"]),
        make("GlobalAveragePool", ["r1"], ["p"]),
        make("Flatten", ["p"], ["y"]),
    ]
    dtype = np.float16 if half else np.float32
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    stored = {"K0": weight(8, 3, 3, 3), "K1": weight(8, 8, 3, 3, seed=1)}
    stored = {name: array.astype(dtype) for name, array in stored.items()}
    save(
        path, nodes, [value("x", 1, 3, 12, 12, dtype=kind)], [value("y", 1, 8, dtype=kind)], stored
    )


def test_float16_is_cut_where_float32_is(door: Door) -> None:
    blocks(door.folder / "single.onnx", half=False)
    blocks(door.folder / "half.onnx", half=True)
    found = outputs_of_layers(door, "single.onnx")
    assert {"r0", "r1", "p"} <= found <= outputs_of_layers(door, "half.onnx")


@pytest.mark.door
def test_float16_is_profiled_split_and_run(door: Door) -> None:
    blocks(door.folder / "half.onnx", half=True)
    door.ok("profile", "half.onnx", "-o", "here.json")
    here = ("--device", "here.json", "--server", "here.json")
    found = door.json("split", "half.onnx", "-o", "b", *here, *RAW, "--cut", "r0")
    sent = [(send["tensor"], send["size_bytes"]) for send in found["plan"]["uploads"]]
    assert sent == [("r0", 8 * 12 * 12 * 2)]
    x = drawn(1, 3, 12, 12).astype(np.float16)
    plain = plain_onnxruntime(door.folder / "half.onnx", {"x": x})["y"]
    np.testing.assert_allclose(answers(door, "b", {"x": x})["y"], plain, atol=5e-3)


def test_what_the_engine_merges_or_drops_joins_no_layers(door: Door) -> None:
    """Identity nodes (as Paddle's exporter writes them) and equal nodes that are computed once."""
    nodes = [
        make("Conv", ["x", "K0"], ["c"], pads=[1] * 4),
        make("Identity", ["c"], ["i"]),
        make("Conv", ["i", "K1"], ["left"], pads=[1] * 4),
        make("Conv", ["i", "K2"], ["right"], pads=[1] * 4),
        make("Mul", ["left", "right"], ["m"]),
        make("Relu", ["m"], ["once"]),
        make("Relu", ["m"], ["again"]),
        make("Conv", ["once", "K1"], ["d"], pads=[1] * 4),
        make("Conv", ["once", "K2"], ["e"], pads=[1] * 4),
        make("Sum", ["d", "e", "again"], ["y"]),
    ]
    stored = {f"K{n}": weight(4, 4 if n else 3, 3, 3, seed=n) for n in range(3)}
    inputs, outputs = [value("x", 1, 3, 8, 8)], [value("y", 1, 4, 8, 8)]
    save(door.folder / "net.onnx", nodes, inputs, outputs, stored)
    for layer in door.json("inspect", "net.onnx")["layers"]:
        assert layer["op"].count("Conv") <= 1, layer


def quantized(path: Path) -> None:
    """A linear layer as onnxruntime's dynamic quantiser writes it: one kernel when it runs."""
    nodes = [
        make("Relu", ["x"], ["r"]),
        make("DynamicQuantizeLinear", ["r"], ["q", "scale", "zero"]),
        make("MatMulInteger", ["q", "W", "zero"], ["i"]),
        make("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        make("Mul", ["scale", "W_scale"], ["scales"]),
        make("Mul", ["f", "scales"], ["m"]),
        make("Tanh", ["m"], ["y"]),
    ]
    stored: dict[str, Any] = {
        "W": (weight(16, 16) * 300).astype(np.int8),
        "W_scale": np.array(0.01, np.float32),
    }
    save(path, nodes, [value("x", 2, 16)], [value("y", 2, 16)], stored)


def test_a_tensor_inside_a_fused_kernel_is_cut_at(door: Door) -> None:
    quantized(door.folder / "net.onnx")
    assert "q" not in outputs_of_layers(door, "net.onnx")
    found = door.json("split", "net.onnx", "-o", "b", *ESTIMATED, *RAW, "--cut", "q")
    sent = {send["tensor"] for send in found["plan"]["uploads"]}
    assert sent == {"q", "scale", "zero"}
    x = drawn(2, 16)
    plain = plain_onnxruntime(door.folder / "net.onnx", {"x": x})["y"]
    np.testing.assert_array_equal(answers(door, "b", {"x": x})["y"], plain)


@pytest.mark.door
@pytest.mark.parametrize("name", ["scale", "zero", "i", "f", "m"])
def test_every_tensor_of_a_fused_kernel_is_cut_at(door: Door, name: str) -> None:
    quantized(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *RAW, "--cut", name)
    x = drawn(2, 16)
    plain = plain_onnxruntime(door.folder / "net.onnx", {"x": x})["y"]
    np.testing.assert_array_equal(answers(door, "b", {"x": x})["y"], plain)
    assert "right" in door.ok("verify", "b")


def convolutions(path: Path) -> None:
    nodes = [
        make("Conv", ["x", "K0"], ["c0"]),
        make("Relu", ["c0"], ["r0"]),
        make("Conv", ["r0", "K1"], ["c1"]),
        make("Relu", ["c1"], ["y"]),
    ]
    stored = {"K0": weight(16, 3, 3, 3), "K1": weight(16, 16, 3, 3, seed=1)}
    save(path, nodes, [value("x", 1, 3, 48, 48)], [value("y", 1, 16, 44, 44)], stored)


@pytest.mark.door
def test_a_profile_serves_a_cut_inside_its_kernels(door: Door) -> None:
    """The profile knows the fused layers; a broken one's seconds are shared among its pieces."""
    convolutions(door.folder / "net.onnx")
    door.ok("profile", "net.onnx", "-o", "here.json")
    request = SplitRequest(
        door.folder / "net.onnx",
        parse_link("wifi"),
        cut=("c0",),
        device=door.folder / "here.json",
        server=door.folder / "here.json",
    )
    prepared = prepare(request)
    assert [layer.op for layer in prepared.graph.layers] == ["Conv", "Relu", "Conv+Relu"]
    seconds = prepared.device.costs_of(prepared.graph)
    assert min(seconds) > 0
    assert sum(seconds) == pytest.approx(prepared.device.whole_s)
    whole = prepare(SplitRequest(request.model, request.link, device=request.device, server=1e9))
    assert sum(seconds[:2]) == pytest.approx(whole.device.costs_of(whole.graph)[0])


def test_outputs_of_a_loop_are_cut_at(door: Door) -> None:
    body = helper.make_graph(
        [
            make("Add", ["v", "r"], ["inner"]),
            make("Tanh", ["inner"], ["v_next"]),
            make("Identity", ["go"], ["go_on"]),
            make("Identity", ["v_next"], ["row"]),
        ],
        "body",
        [
            value("step", dtype=TensorProto.INT64),
            value("go", dtype=TensorProto.BOOL),
            value("v", 2, 8),
        ],
        [value("go_on", dtype=TensorProto.BOOL), value("v_next", 2, 8), value("row", 2, 8)],
    )
    nodes = [
        make("Relu", ["x"], ["r"]),
        make("Loop", ["steps", "", "r"], ["last", "rows"], body=body),
        make("MatMul", ["last", "W"], ["m"]),
        make("ReduceSum", ["rows"], ["sum"], keepdims=0),
        make("Add", ["m", "sum"], ["y"]),
    ]
    stored = {"steps": np.array(3, np.int64), "W": weight(8, 8)}
    save(door.folder / "net.onnx", nodes, [value("x", 2, 8)], [value("y", 2, 8)], stored)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *RAW, "--cut", "rows")
    x = drawn(2, 8)
    plain = plain_onnxruntime(door.folder / "net.onnx", {"x": x})["y"]
    np.testing.assert_array_equal(answers(door, "b", {"x": x})["y"], plain)
    said = refused(door.folder / "net.onnx", "inner")
    assert "inside the body of a node Loop" in said
    assert "'last'" in said


def refused(model: Path, *names: str) -> str:
    """The sentence with which a cut is refused, through the Python API."""
    request = SplitRequest(model, parse_link("wifi"), device=1e9, server=1e11, cut=names)
    with pytest.raises(InputError) as caught:
        split(request, model.parent / "never")
    assert not (model.parent / "never").exists()
    return str(caught.value)


def test_why_a_tensor_cannot_be_cut_at(tmp_path: Path) -> None:
    nodes = [
        make("Relu", ["x"], ["r"]),
        make("Mul", ["W", "W"], ["squares"]),
        make("Exp", ["r"], ["unused"]),
        make("Cast", ["r"], ["text"], to=TensorProto.STRING),
        make("Cast", ["text"], ["back"], to=TensorProto.FLOAT),
        make("SplitToSequence", ["back"], ["parts"], axis=0),
        make("SequenceAt", ["parts", "zero"], ["part"]),
        make("SequenceInsert", ["parts", "part"], ["more"]),
        make("ConcatFromSequence", ["more"], ["joined"], axis=0),
        make("Mul", ["joined", "squares"], ["y"]),
    ]
    stored = {"W": weight(8), "zero": np.array(0, np.int64)}
    model = tmp_path / "net.onnx"
    save(model, nodes, [value("x", 2, 8)], [value("y", 3, 8)], stored)
    assert "it is a constant" in refused(model, "W")
    assert "it is a constant" in refused(model, "squares")
    assert "no output of the model depends on it" in refused(model, "unused")
    assert "it is text" in refused(model, "text")
    assert "it is a sequence" in refused(model, "more")
    assert "a value that cannot cross a link" in refused(model, "part")
    assert "did you mean 'joined'" in refused(model, "joinde")
    assert "leaves the device nothing to compute" in refused(model, "x")


def odd(path: Path) -> list[str]:
    """Names as fused TFLite models, scripts and people make them."""
    names = ["conv/Relu,conv/Bias", " a;b:0 ", "[bold]<r>&:smile:", 'n,[/red]"']
    nodes, last = [], "in[0]=x:0"
    for name in names:
        nodes.append(make("MatMul", [last, "W"], [name], name=name))
        last = name
    nodes.append(make("Tanh", [last], ["y"]))
    inputs, outputs = [value("in[0]=x:0", "n", 8)], [value("y", "n", 8)]
    save(path, nodes, inputs, outputs, {"W": weight(8, 8)})
    return names


def test_names_are_taken_and_printed_as_they_are(door: Door) -> None:
    names = odd(door.folder / "net.onnx")
    shape = ("--shape", "in[0]=x:0=2x8")
    cut = ("--cut", names[0], "--cut", names[1])
    found = door.json("split", "net.onnx", "-o", "b", *ESTIMATED, *shape, *RAW, *cut)
    assert [send["tensor"] for send in found["plan"]["uploads"]] == [names[1]]
    printed = door.ok("inspect", "net.onnx", *shape)
    assert all(name in printed for name in names)


@pytest.mark.door
def test_every_odd_name_is_cut_at_and_shown(door: Door) -> None:
    names = odd(door.folder / "net.onnx")
    options = ("net.onnx", "-o", "b", *ESTIMATED, "--shape", "in[0]=x:0=1x8")
    x = drawn(1, 8)
    plain = plain_onnxruntime(door.folder / "net.onnx", {"in[0]=x:0": x})["y"]
    for name in names:
        said = door.ok("split", *options, "--cut", name)
        assert f"-> {name}\n" in said
        given = ("--calibration", "in.npz")
        answer = answers(door, "b", {"in[0]=x:0": x})["y"]
        np.testing.assert_array_equal(answer, plain)
        assert name in door.ok("encode-report", "b", "-o", "sizes.svg", *given)
        door.ok("schedule", "b", "--compare", "--svg", "chart.svg")
        for chart in ("sizes.svg", "chart.svg"):
            xml.dom.minidom.parse(str(door.folder / chart))
    door.ok("simulate", *options[:1], *options[3:], "--svg", "swept.svg", "--points", "3")
    xml.dom.minidom.parse(str(door.folder / "swept.svg"))
    np.savez(door.folder / "n=1.npz", **{"in[0]=x:0": x})
    door.ok("verify", "net.onnx", "--cuts", "2", "--input", "n=1.npz")
    joined = ",".join(names)
    found = door.json("split", *options, "--cut", joined)
    assert [send["tensor"] for send in found["plan"]["uploads"]] == [names[-1]]
