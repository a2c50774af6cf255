"""Sizes and work of models as exporters write them: counted right, or said to be unknown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight

node = helper.make_node
INT64 = TensorProto.INT64


def numbers(*values: int) -> Any:
    return np.array(values, np.int64)


def number(single: int) -> Any:
    return np.array(single, np.int64)


def padded(path: Path, batch: int | str = 1) -> None:
    """Convolutions with computed "same" padding, as PyTorch's TorchScript exporter writes it."""
    nodes = [
        node("Shape", ["x"], ["sh"]),
        node("Gather", ["sh", "two"], ["height"]),
        node("Mod", ["height", "two"], ["odd"]),
        node("Sub", ["two", "odd"], ["more"]),
        node("Unsqueeze", ["more", "ax0"], ["more1"]),
        node("Concat", ["zero1", "more1", "zero1", "more1"], ["given"], axis=0),
        node(
            "ConstantOfShape", ["four1"], ["rest"],
            value=helper.make_tensor("v", INT64, [1], [0]),
        ),
        node("Concat", ["given", "rest"], ["all"], axis=0),
        node("Reshape", ["all", "n2"], ["pairs"]),
        node("Slice", ["pairs", "last", "first", "ax0", "last"], ["turned"]),
        node("Transpose", ["turned"], ["t"], perm=[1, 0]),
        node("Reshape", ["t", "last"], ["flat"]),
        node("Cast", ["flat"], ["pads"], to=INT64),
        node("Pad", ["x", "pads"], ["p"]),
        node("Conv", ["p", "K1"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "K2"], ["y"]),
    ]  # fmt: skip
    stored = {
        "two": number(2), "ax0": numbers(0), "zero1": numbers(0), "four1": numbers(4),
        "n2": numbers(-1, 2), "last": numbers(-1), "first": numbers(-(2**63) + 1),
        "K1": weight(16, 3, 3, 3), "K2": weight(8, 16, 3, 3),
    }  # fmt: skip
    save(path, nodes, [value("x", batch, 3, 32, 32)], [value("y", batch, 8, "h", "w")], stored)


def bert(path: Path) -> None:
    """Word and position embeddings of a computed length, then a layer, as transformers have."""
    nodes = [
        node("Gather", ["words", "ids"], ["w"]),
        node("Shape", ["ids"], ["sh"]),
        node("Gather", ["sh", "one"], ["length"]),
        node("Range", ["zero", "length", "one"], ["places"]),
        node("Unsqueeze", ["length", "ax0"], ["length1"]),
        node("Slice", ["table", "ax0", "length1", "one1"], ["row"]),
        node("Gather", ["positions", "row"], ["q"]),
        node("Gather", ["positions", "places"], ["q2"]),
        node("Add", ["w", "q"], ["e1"]),
        node("Add", ["e1", "q2"], ["e"]),
        node("MatMul", ["e", "W1"], ["m1"]),
        node("Concat", ["sh", "heads"], ["target"], axis=0),
        node("Reshape", ["m1", "target"], ["split"]),
        node("Transpose", ["split"], ["turned"], perm=[0, 2, 1, 3]),
        node("MatMul", ["turned", "back"], ["y"]),
    ]
    stored = {
        "words": weight(50, 16), "positions": weight(512, 16), "W1": weight(16, 32),
        "zero": number(0), "one": number(1), "one1": numbers(1), "ax0": numbers(0),
        "table": np.arange(512, dtype=np.int64)[None], "heads": numbers(4, 8), "back": weight(8, 8),
    }  # fmt: skip
    inputs = [value("ids", "batch", "sequence", dtype=INT64)]
    save(path, nodes, inputs, [value("y", "batch", 4, "sequence", 8)], stored)


def exposed_shapes(path: Path, feeds: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of all inner tensors in a run of onnxruntime."""
    proto = onnx.load(path)
    names = [name for each in proto.graph.node for name in each.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return {name: list(a.shape) for name, a in zip(names, session.run(names, feeds), strict=True)}


@pytest.mark.parametrize(
    ("build", "shape", "feeds", "flops"),
    [
        (padded, (), {"x": weight(1, 3, 32, 32)}, 2 * 16 * 27 * 32**2 + 2 * 8 * 144 * 30**2),
        (
            bert,
            ("--shape", "ids=2x5"),
            {"ids": np.ones((2, 5), np.int64)},
            2 * 10 * 16 * 32 + 2 * 40 * 64,
        ),
    ],
)
def test_sizes_that_the_graph_computes_are_known(
    door: Door, build: Any, shape: tuple[str, ...], feeds: dict[str, Any], flops: float
) -> None:
    build(door.folder / "net.onnx")
    found = door.json("inspect", "net.onnx", *shape)
    real = exposed_shapes(door.folder / "net.onnx", feeds)
    assert found["uncounted_share"] == 0
    for name, tensor in found["tensors"].items():
        if name in real:
            assert tensor["shape"] == real[name], name
    heavy = sum(
        layer["flops"] for layer in found["layers"] if "Conv" in layer["op"] or "Mat" in layer["op"]
    )
    assert heavy == pytest.approx(flops, rel=0.1)
    assert found["flops"] == pytest.approx(flops, rel=0.25)  # the rest is elementwise


def body(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
    return helper.make_graph(nodes, name, inputs, outputs)


def looping(path: Path) -> None:
    """A recurrent loop over the input's steps, and a branch that its rank decides."""
    step = body(
        "step",
        [
            node("Gather", ["steps", "i"], ["now"]),
            node("MatMul", ["now", "W"], ["a"]),
            node("Add", ["a", "state"], ["next"]),
            node("Identity", ["go"], ["go_on"]),
            node("Identity", ["next"], ["out"]),
        ],
        [value("i", dtype=INT64), value("go", dtype=TensorProto.BOOL), value("state", 4, 8)],
        [value("go_on", dtype=TensorProto.BOOL), value("next", 4, 8), value("out", 4, 8)],
    )
    squeezed = body("yes", [node("Squeeze", ["x", "ax0"], ["s1"])], [], [value("s1", 10, 4, 8)])
    as_it_is = body("no", [node("Identity", ["x"], ["s2"])], [], [value("s2", 1, 10, 4, 8)])
    nodes = [
        node("Shape", ["x"], ["sh"]),
        node("Gather", ["sh", "zero"], ["first"]),
        node("Equal", ["first", "one"], ["is_one"]),
        node("If", ["is_one"], ["steps"], then_branch=squeezed, else_branch=as_it_is),
        node("Gather", ["sh", "one"], ["count"]),
        node("Loop", ["count", "", "start"], ["last", "all"], body=step),
        node("Sigmoid", ["all"], ["y"]),
    ]
    stored = {
        "W": weight(8, 8), "start": weight(4, 8), "zero": number(0), "one": number(1),
        "ax0": numbers(0),
    }  # fmt: skip
    outputs = [value("last", 4, 8), value("y", "steps", 4, 8)]
    save(path, nodes, [value("x", 1, 10, 4, 8)], outputs, stored)


def test_work_in_bodies_is_counted_once_a_step(door: Door) -> None:
    looping(door.folder / "net.onnx")
    found = door.json("inspect", "net.onnx")
    assert found["tensors"]["y"]["shape"] == [10, 4, 8]
    (loop,) = [layer for layer in found["layers"] if "Loop" in layer["op"]]
    assert loop["flops"] == pytest.approx(10 * (2 * 4 * 8 * 8 + 4 * 8))


def functions(path: Path) -> None:
    """A model-local function whose attribute sizes its work, as PyTorch's newer exporter writes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = [
        node("MatMul", ["a", "w"], ["m"]),
        node("Shape", ["m"], ["sh"]),
        node("Reshape", ["m", "sh"], ["r"]),
        node("Softmax", ["r"], ["b"]),
    ]
    inner[3].attribute.append(
        onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    )
    function = helper.make_function("local", "Head", ["a", "w"], ["b"], inner, opsets[:1], ["axis"])
    nodes = [
        node("Head", ["x", "W"], ["h"], domain="local", axis=-1),
        node("Relu", ["h"], ["y"]),
    ]
    stored = [onnx.numpy_helper.from_array(weight(8, 6), "W")]
    graph = helper.make_graph(nodes, "g", [value("x", 5, 8)], [value("y", 5, 6)], stored)
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    onnx.save(proto, path)


@pytest.mark.door
def test_work_in_functions_is_counted(door: Door) -> None:
    functions(door.folder / "net.onnx")
    found = door.json("inspect", "net.onnx")
    assert found["tensors"]["h"]["shape"] == [5, 6]
    assert found["flops"] == 2 * 5 * 6 * 8 + 30 + 30


def test_recurrent_layers_are_counted_step_by_step(door: Door) -> None:
    nodes = [
        node("LSTM", ["x", "W", "R"], ["s"], hidden_size=16),
        node("Squeeze", ["s", "ax"], ["y"]),
    ]
    stored = {"W": weight(1, 64, 8), "R": weight(1, 64, 16), "ax": numbers(1)}
    save(door.folder / "net.onnx", nodes, [value("x", 50, 1, 8)], [value("y", 50, 1, 16)], stored)
    plan = door.json("split", "net.onnx", "-o", "b", *ESTIMATED, "--encoding", "raw")["plan"]
    local = next(a for a in plan["alternatives"] if a["scheme"] == "local")
    assert local["latency_s"] == pytest.approx(2 * 50 * 64 * (8 + 16) / 1e9, rel=0.01)


def test_operators_that_only_the_engine_knows_get_their_sizes_from_a_run(door: Door) -> None:
    """What onnxruntime's own optimiser writes; no size depends on data."""
    nodes = [
        node("FusedMatMul", ["x", "W"], ["m"], domain="com.microsoft", alpha=0.5),
        node("QuickGelu", ["m"], ["g"], domain="com.microsoft"),
        node("MatMul", ["g", "V"], ["y"]),
    ]
    stored = {"W": weight(32, 64), "V": weight(64, 16)}
    save(
        door.folder / "net.onnx", nodes, [value("x", "n", 32)], [value("y", "n", 16)], stored,
        domains={"com.microsoft": 1}, check=False,
    )  # fmt: skip
    found = door.json("inspect", "net.onnx", "--shape", "x=6x32")
    assert found["tensors"]["y"]["shape"] == [6, 16]
    assert found["uncounted_share"] == 0
    assert found["flops"] == 2 * 6 * 32 * 64 + 6 * 64 + 2 * 6 * 64 * 16


def gated(path: Path, wide: int) -> None:
    """A product over as many rows as are positive: its work depends on data."""
    nodes = [
        node("MatMul", ["x", "W"], ["m"]),
        node("Relu", ["m"], ["r"]),
        node("ReduceMax", ["r"], ["best"], axes=[1], keepdims=0),
        node("NonZero", ["best"], ["found"]),
        node("Squeeze", ["found", "ax0"], ["rows"]),
        node("Gather", ["r", "rows"], ["chosen"]),
        node("MatMul", ["chosen", "V"], ["y"]) if wide else node("Exp", ["chosen"], ["y"]),
    ]
    stored = {"W": weight(64, 64), "ax0": numbers(0), **({"V": weight(64, wide)} if wide else {})}
    save(path, nodes, [value("x", 32, 64)], [value("y", "rows", wide or 64)], stored)


def test_an_estimate_is_refused_where_too_much_work_is_unknown(door: Door) -> None:
    gated(door.folder / "net.onnx", 64)
    text = door.refused("split", "net.onnx", "-o", "b", *ESTIMATED)
    assert "49.6% of the work could not be counted (MatMul)" in text
    assert "`offload profile`" in text
    assert not (door.folder / "b").exists()


@pytest.mark.door
def test_what_is_unknown_is_stated_and_can_be_measured(door: Door) -> None:
    gated(door.folder / "net.onnx", 64)
    assert "49.6%" in door.refused("simulate", "net.onnx", *ESTIMATED, "--points", "3")
    shown = door.offload("inspect", "net.onnx")
    assert "49.6% of the work could not be counted (MatMul)" in shown.stderr
    door.ok("profile", "net.onnx", "-o", "here.json", "--runs", "3")
    door.ok("split", "net.onnx", "-o", "b", "--device", "here.json", "--server", "here.json")


@pytest.mark.door
def test_a_small_unknown_share_is_stated(door: Door) -> None:
    gated(door.folder / "net.onnx", 0)
    done = door.offload("split", "net.onnx", "-o", "b", *ESTIMATED)
    assert done.returncode == 0
    assert "of the work could not be counted (Exp): an average is assumed for it" in done.stderr
    share = door.json("inspect", "net.onnx")["uncounted_share"]
    assert 0 < share < 0.05


def open_sized(path: Path) -> None:
    nodes = [
        node("Conv", ["images", "K1"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "K2"], ["y"]),
    ]
    stored = {"K1": weight(8, 3, 3, 3), "K2": weight(4, 8, 3, 3)}
    outputs = [value("y", "batch", 4, "h", "w")]
    save(path, nodes, [value("images", "batch", 3, "height", "width")], outputs, stored)


OPEN = (
    "input 'images' has the dynamic axes 0 (batch), 2 (height) and 3 (width): give sizes, like"
    " --shape images=1x3x640x640"
)


@pytest.mark.parametrize(
    "words",
    [
        ("split", "net.onnx", "-o", "b", *ESTIMATED),
        ("simulate", "net.onnx", *ESTIMATED, "--link", "wifi"),
        *(
            pytest.param(words, marks=pytest.mark.door)
            for words in (
                ("split", "net.onnx", "-o", "b", *ESTIMATED, "--scheme", "cloud"),
                ("split", "net.onnx", "-o", "b"),
                ("profile", "net.onnx"),
                ("simulate", "net.onnx", *ESTIMATED, "--link", "1..9 Mbit/s"),
            )
        ),
    ],
)
def test_open_sizes_are_refused_with_what_to_write(door: Door, words: tuple[str, ...]) -> None:
    open_sized(door.folder / "net.onnx")
    assert door.refused(*words) == OPEN
    assert not (door.folder / "b").exists()


@pytest.mark.door
def test_the_example_works_as_it_is(door: Door) -> None:
    open_sized(door.folder / "net.onnx")
    _, example = OPEN.split("like ")
    plan = door.json("split", "net.onnx", "-o", "b", *ESTIMATED, *example.split())["plan"]
    assert plan["latency_s"] > 1e-3


def test_a_cut_that_is_asked_for_needs_no_sizes_and_is_not_predicted(door: Door) -> None:
    open_sized(door.folder / "net.onnx")
    done = door.offload(
        "split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r", "--format", "json"
    )
    assert done.returncode == 0
    assert f"times are not predicted: {OPEN}" in done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["reason"] == f"As requested; no times are predicted: {OPEN}."
    assert plan["alternatives"] == []
    assert "split it again with --shape" in door.refused("schedule", "b")


@pytest.mark.door
def test_inspect_lists_the_layers_of_a_model_with_open_sizes_and_says_so(door: Door) -> None:
    open_sized(door.folder / "net.onnx")
    done = door.offload("inspect", "net.onnx")
    assert done.returncode == 0
    assert "work unknown" in done.stdout
    assert OPEN in done.stderr
    assert door.json("inspect", "net.onnx")["flops"] is None


@pytest.mark.door
def test_simulate_takes_one_link(door: Door) -> None:
    padded(door.folder / "net.onnx")
    words = ("--link", "wifi", "--slowdown", "1,50", "--svg", "chart.svg")
    done = door.offload("simulate", "net.onnx", *ESTIMATED, *words, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [cell["rate_bps"] for cell in json.loads(done.stdout)] == [18.88e6] * 2
    assert "nan" not in (door.folder / "chart.svg").read_text()


@pytest.mark.door
def test_a_model_is_not_a_graph_to_schedule(door: Door) -> None:
    padded(door.folder / "net.onnx")
    assert "is a model: split it" in door.refused("schedule", "net.onnx")


def test_work_that_depends_on_an_input_is_counted_on_the_calibration(door: Door) -> None:
    """A sample rate chooses the branch, as in silero-vad; the other branch has an open loop."""
    heavy = helper.make_graph(
        [node("MatMul", ["x", "W1"], ["m"]), node("MatMul", ["m", "W2"], ["heavy"])],
        "then",
        [],
        [value("heavy", 8, 64)],
    )
    light = helper.make_graph(
        [
            node("NonZero", ["x"], ["where"]),
            node("Cast", ["where"], ["places"], to=TensorProto.FLOAT),
            node("MatMul", ["places", "W3"], ["found"]),
            node("ReduceSum", ["found"], ["total"], keepdims=0),
            node("Expand", ["total", "size"], ["light"]),
        ],
        "else",
        [],
        [value("light", 8, 64)],
    )
    nodes = [
        node("Equal", ["rate", "high"], ["is_high"]),
        node("If", ["is_high"], ["y"], then_branch=heavy, else_branch=light),
    ]
    stored = {
        "W1": weight(64, 128),
        "W2": weight(128, 64),
        "W3": weight(512, 16),
        "high": np.array(16000),
        "size": np.array([8, 64]),
    }
    inputs = [value("x", 8, 64), value("rate", dtype=TensorProto.INT64)]
    save(door.folder / "net.onnx", nodes, inputs, [value("y", 8, 64)], stored)
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--encoding", "raw")
    assert "could not be counted" in door.refused(*split)
    x = np.ones((8, 64), np.float32)
    np.savez(door.folder / "in.npz", x=x, rate=np.array(16000))
    plan = door.json(*split, "--calibration", "in.npz")["plan"]
    (local,) = [a for a in plan["alternatives"] if a["scheme"] == "local"]
    assert local["latency_s"] * 1e9 == pytest.approx(2 * 2 * 8 * 64 * 128)
    np.savez(door.folder / "in.npz", x=x, rate=np.array(8000))
    assert "could not be counted (MatMul)" in door.refused(*split, "--calibration", "in.npz")
    door.ok(*split, "--scheme", "cloud")


def test_work_behind_data_dependent_sizes_is_counted_on_the_calibration(door: Door) -> None:
    nodes = [
        node("NonZero", ["x"], ["where"]),
        node("Cast", ["where"], ["places"], to=TensorProto.FLOAT),
        node("Transpose", ["places"], ["rows"], perm=[1, 0]),
        node("MatMul", ["rows", "W"], ["y"]),
    ]
    inputs, outputs = [value("x", 8, 64)], [value("y", "found", 512)]
    save(door.folder / "net.onnx", nodes, inputs, outputs, {"W": weight(2, 512)})
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--encoding", "raw")
    assert "could not be counted" in door.refused(*split)
    x = np.zeros((8, 64), np.float32)
    x[:, ::2] = 1
    np.savez(door.folder / "in.npz", x=x)
    plan = door.json(*split, "--calibration", "in.npz")["plan"]
    (local,) = [a for a in plan["alternatives"] if a["scheme"] == "local"]
    assert local["latency_s"] * 1e9 == pytest.approx(2 * 256 * 2 * 512, rel=0.01)
