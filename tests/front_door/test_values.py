"""What goes into a session and comes out: every type, shape and name, on either side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from offload.errors import InputError
from offload_runtimes.local import open_session
from onnx import TensorProto, helper

from tests.front_door.door import (
    ESTIMATED,
    PLAIN,
    Array,
    Door,
    plain_onnxruntime,
    save,
    value,
    weight,
)

ML = {"ai.onnx.ml": 3}
LOCAL, CLOUD = ("--scheme", "local"), ("--scheme", "cloud")
X = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def sequence_of(name: str, element: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, helper.make_sequence_type_proto(element))


def map_of(key: int, entry: int) -> onnx.TypeProto:
    return helper.make_map_type_proto(key, helper.make_tensor_type_proto(entry, []))


def floats() -> onnx.TypeProto:
    return helper.make_tensor_type_proto(TensorProto.FLOAT, None)


def classifier(path: Path, **labels: Any) -> None:
    """A label and, by ZipMap, a map of probabilities for each row: scikit-learn's way."""
    key = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["scores"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", **labels),
    ]
    outputs = [
        value("label", "n", dtype=TensorProto.INT64),
        sequence_of("maps", map_of(key, TensorProto.FLOAT)),
    ]
    save(path, nodes, [value("x", "n", 3)], outputs, {"W": weight(3, 3)}, domains=ML)


def words(path: Path) -> None:
    """Text in, its embedding and the text itself out."""
    encode: dict[str, Any] = {
        "keys_strings": ["cat", "owl"],
        "values_int64s": [0, 1],
        "default_int64": 2,
    }
    nodes = [
        helper.make_node("Identity", ["s"], ["t"]),
        helper.make_node("LabelEncoder", ["t"], ["ids"], domain="ai.onnx.ml", **encode),
        helper.make_node("Gather", ["E", "ids"], ["e"]),
        helper.make_node("Relu", ["e"], ["y"]),
    ]
    text = [value(name, "n", dtype=TensorProto.STRING) for name in "st"]
    save(path, nodes, text[:1], [value("y", "n", 4), text[1]], {"E": weight(3, 4)}, domains=ML)


def same(got: Any, want: Any) -> bool:
    """Whether two values are equal, in type, shape and bits."""
    if isinstance(want, np.ndarray):
        same_kind = isinstance(got, np.ndarray) and (got.dtype, got.shape) == (
            want.dtype,
            want.shape,
        )
        return same_kind and np.array_equal(got, want)
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        kinds = [[type(v) for pair in one.items() for v in pair] for one in (got, want)]
        return bool(got == want) and kinds[0] == kinds[1]
    return bool(got == want)


def answers_as_onnxruntime(
    door: Door,
    feeds: Mapping[str, Any],
    ways: Sequence[Sequence[str]] = (LOCAL, CLOUD),
    given: Mapping[str, Any] | None = None,
    *options: str,
) -> None:
    """Split `net.onnx` in some ways and run each, against onnxruntime; `given`: other feeds."""
    want = plain_onnxruntime(door.folder / "net.onnx", feeds)
    for way in ways:
        door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *way, *options)
        with open_session(door.folder / "b", optimize=False, on_server_loss="raise") as session:
            got = session.run(None, feeds if given is None else given)
            names = [output.name for output in session.get_outputs()]
        for name, each in zip(names, got, strict=True):
            assert same(each, want[name]), f"{way}: {name} is {each}, not {want[name]}"


def test_text_goes_in_and_comes_out(door: Door) -> None:
    words(door.folder / "net.onnx")
    text = np.array(["owl", "é", ""])
    feeds = {"s": text.astype(object)}
    answers_as_onnxruntime(door, feeds, [CLOUD], {"s": text}, "--shape", "s=3")
    np.savez(door.folder / "in.npz", s=text)
    door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", PLAIN)
    with np.load(door.folder / "out.npz", allow_pickle=False) as found:
        assert found["t"].dtype == np.dtype("<U3")
        assert found["t"].tolist() == text.tolist()


@pytest.mark.door
def test_text_on_either_side_and_from_a_server(door: Door) -> None:
    words(door.folder / "net.onnx")
    feeds = {"s": np.array(["owl", "é", ""], object)}
    ways = (LOCAL, CLOUD, ("--cut", "e"))
    answers_as_onnxruntime(door, feeds, ways, None, "--shape", "s=3")
    np.savez(door.folder / "in.npz", s=feeds["s"].astype(str))
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *CLOUD, "--shape", "s=3")
    with door.serving("b") as address:
        where = ("--server", address, "--on-server-loss", "raise")
        door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", *where)
    with np.load(door.folder / "out.npz", allow_pickle=False) as found:
        assert found["t"].tolist() == feeds["s"].tolist()
    np.savez(door.folder / "pickled.npz", s=feeds["s"])
    said = door.refused("run", "b", "--input", "pickled.npz")
    assert "text as array.astype(str)" in said


@pytest.mark.parametrize(
    "labels", [{"classlabels_int64s": [3, 1, 2]}, {"classlabels_strings": ["a", "b", "ç"]}]
)
def test_maps_come_back_from_the_server(door: Door, labels: dict[str, Any]) -> None:
    classifier(door.folder / "net.onnx", **labels)
    answers_as_onnxruntime(door, {"x": X}, [CLOUD], None, "--shape", "x=2x3")


def test_maps_are_written_as_json_beside_the_arrays(door: Door) -> None:
    classifier(door.folder / "net.onnx", classlabels_int64s=[3, 1, 2])
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *LOCAL, "--shape", "x=2x3")
    np.savez(door.folder / "in.npz", x=X)
    said = door.offload("run", "b", "--input", "in.npz", "--output", "out.npz", PLAIN)
    assert "wrote out.npz and out.json" in said.stderr + said.stdout
    want = plain_onnxruntime(door.folder / "net.onnx", {"x": X})
    with np.load(door.folder / "out.npz", allow_pickle=False) as found:
        assert found.files == ["label"]
    written = json.loads((door.folder / "out.json").read_text())
    assert written == {"maps": [{str(key): p for key, p in row.items()} for row in want["maps"]]}


@pytest.mark.door
def test_bundles_with_maps_are_deployed_and_proved(door: Door) -> None:
    classifier(door.folder / "net.onnx", classlabels_int64s=[3, 1, 2])
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "p", "--shape", "x=2x3")
    for side in ("device", "server"):
        assert "probe passed" in door.ok("deploy", "b", f"./{side}", "--side", side)
    assert "right" in door.ok("verify", "b")


@pytest.mark.door
def test_sequences_and_maps_go_in_from_json(door: Door) -> None:
    nodes = [
        helper.make_node("ConcatFromSequence", ["s"], ["c"], axis=0),
        helper.make_node("Reshape", ["c", "sizes"], ["r"]),  # an estimate needs known sizes
        helper.make_node("MatMul", ["r", "W"], ["y"]),
        helper.make_node("Identity", ["s"], ["t"]),
    ]
    ends = [sequence_of(name, floats()) for name in "st"]
    save(
        door.folder / "net.onnx",
        nodes,
        ends[:1],
        [value("y", 4, 3), ends[1]],
        {"W": weight(3, 3), "sizes": np.array([4, 3])},
    )
    answers_as_onnxruntime(door, {"s": [X, X + 1]}, (LOCAL, CLOUD, ("--cut", "c")))
    (door.folder / "in.json").write_text(json.dumps({"s": [X.tolist(), X.tolist()]}))
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *CLOUD)
    door.ok("run", "b", "--input", "in.json", "--output", "out.npz")
    assert json.loads((door.folder / "out.json").read_text())["t"] == [X.tolist()] * 2
    assert "must be a list" in refusal(door, {"s": X})

    to_array = {"map_form": "DENSE", "cast_to": "TO_FLOAT"}
    save(
        door.folder / "net.onnx",
        [
            helper.make_node("CastMap", ["d"], ["f"], domain="ai.onnx.ml", **to_array),
            helper.make_node("Reshape", ["f", "sizes"], ["r0"]),
            # An estimate needs to count 95 % of the work; CastMap is not counted.
            *(helper.make_node("MatMul", [f"r{k}", "W"], [f"r{k + 1}"]) for k in range(24)),
            helper.make_node("Relu", ["r24"], ["y"]),
        ],
        [helper.make_value_info("d", map_of(TensorProto.INT64, TensorProto.FLOAT))],
        [value("y", 1, 2)],
        {"sizes": np.array([1, 2]), "W": np.eye(2, dtype=np.float32)},
        domains=ML,
    )
    answers_as_onnxruntime(door, {"d": {0: 1.5, 1: -2.0}}, (LOCAL, CLOUD))
    (door.folder / "in.json").write_text('{"d": {"0": 1.5, "1": 2}}')
    door.ok("run", "b", "--input", "in.json", "--output", "out.npz")
    with np.load(door.folder / "out.npz") as found:
        assert found["y"].tolist() == [[1.5, 2.0]]
    assert "must be a dict" in refusal(door, {"d": {"zero": 1.0}})


def refusal(door: Door, feeds: Mapping[str, Any]) -> str:
    """What a session on the bundle says of some inputs."""
    with open_session(door.folder / "b") as session, pytest.raises(InputError) as caught:
        session.run(None, feeds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_optionals_are_refused_by_split(door: Door) -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2, 3]))
    save(
        door.folder / "net.onnx",
        [helper.make_node("Optional", ["x"], ["y"])],
        [value("x", 2, 3)],
        [helper.make_value_info("y", optional)],
    )
    said = door.refused("split", "net.onnx", "-o", "b", *ESTIMATED)
    assert "'y' is of type optional(tensor(float))" in said
    assert "leave it out" in said
    assert not (door.folder / "b").exists()


def scalars(path: Path) -> None:
    """Scalar inputs beside an output that numpy has no type for."""
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["m"]),
        helper.make_node("Gather", ["m", "i"], ["h"], axis=0),
        helper.make_node("Cast", ["h"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("Where", ["on", "h", "s"], ["y"]),
    ]
    inputs = [
        value("x", 2, 3),
        value("s"),
        value("i", dtype=TensorProto.INT64),
        value("on", dtype=TensorProto.BOOL),
    ]
    save(path, nodes, inputs, [value("half", 3, dtype=TensorProto.BFLOAT16), value("y", 3)])


def test_scalars_stay_scalars_and_numbers_are_taken(door: Door) -> None:
    scalars(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *CLOUD)
    with open_session(door.folder / "b", on_server_loss="raise") as session:
        for s, i, on in (
            (np.array(0.5, np.float32), np.array(1), np.array(True)),
            (np.float32(0.5), np.int64(1), np.bool_(True)),
            (0.5, 1, True),
        ):
            half, y = session.run(None, {"x": X, "s": s, "i": i, "on": on})
            np.testing.assert_array_equal(y, 0.5 * X[1])
            assert half.shape == (3,)
        for wrong in (
            {"s": "half"},
            {"s": np.float64(0.5)},
            {"s": [0.5]},
            {"i": 0.5},
            {"i": 2**70},
        ):
            with pytest.raises(InputError, match=f"input '{next(iter(wrong))}'"):
                session.run(None, {"x": X, "s": 0.5, "i": 1, "on": True, **wrong})


def test_arrays_of_ml_dtypes_are_taken(door: Door) -> None:
    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2fnuz", "int4", "uint4")
    nodes, inputs, outputs, feeds, want = [], [], [], {}, {}
    for name in names:
        kind = getattr(TensorProto, name.replace("_", "").upper())
        nodes.append(helper.make_node("Cast", [name], [f"{name}/y"], to=TensorProto.FLOAT))
        inputs.append(value(name, "n", dtype=kind))
        outputs.append(value(f"{name}/y", "n"))
        want[name] = [1, 0, 3] if name == "uint4" else [1, -2, 3]
        feeds[name] = np.array(want[name], getattr(ml_dtypes, name))
    save(door.folder / "net.onnx", nodes, inputs, outputs, opset=21, ir_version=10)
    shapes = [word for name in names for word in ("--shape", f"{name}=3")]
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *CLOUD, *shapes)
    np.savez(door.folder / "in.npz", **feeds)  # type: ignore[arg-type]  # any keyword
    with np.load(door.folder / "in.npz") as saved, open_session(door.folder / "b") as session:
        for given in (feeds, dict(saved)):
            for name, y in zip(names, session.run(None, given), strict=True):
                assert y.tolist() == want[name], name
        for name in names:
            with pytest.raises(InputError, match=f"input '{name}' must be"):
                session.run(None, {**feeds, name: feeds[name].astype(np.float32)})


def test_declared_outputs_are_not_believed(door: Door) -> None:
    """A tool changed the batch, and another one appended an output by its name alone."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ReduceMax", ["r"], ["y"], axes=[1], keepdims=0),
    ]
    outputs = [value("y", 1), value("r", 1, 3), onnx.ValueInfoProto(name="h")]
    stored = {"W": weight(3, 3)}
    save(door.folder / "net.onnx", nodes, [value("x", "n", 3)], outputs, stored, check=False)
    answers_as_onnxruntime(door, {"x": X}, [CLOUD], None, "--shape", "x=2x3")
    with open_session(door.folder / "b") as session:
        assert session.get_outputs()[2].type == "tensor(float)"


def test_sizes_grow_beyond_the_plan(door: Door) -> None:
    """Planned for 147 MB and for 16 steps of a cache; small and large ones pass."""
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
        helper.make_node("ReduceSum", ["present"], ["y"]),
    ]
    inputs = [value("x", "n", 1, 8), value("past", "n", "before", 8)]
    outputs = [value("y", 1, 1, 1), value("present", "n", "steps", 8)]
    save(door.folder / "net.onnx", nodes, inputs, outputs)
    for steps in (16, 4_600_000):
        shapes = ("--shape", "x=1x1x8", "--shape", f"past=1x{steps}x8")
        door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *CLOUD, "--encoding", "raw", *shapes)
        with open_session(door.folder / "b", on_server_loss="raise") as session:
            for length in (0, 16, 4096):
                past = np.ones((1, length, 8), np.float32)
                y, present = session.run(
                    None, {"x": past[:, :0].sum(1, keepdims=True), "past": past}
                )
                assert y.item() == 8 * length
                assert present.shape == (1, length + 1, 8)


def defaults(path: Path) -> None:
    """Two inputs with a default, listed before the one without; `bias` is used at both ends."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Add", ["h", "bias"], ["a"]),
        helper.make_node("Mul", ["a", "gain"], ["g"]),
        helper.make_node("Add", ["g", "bias"], ["y"]),
    ]
    inputs = [value("gain", 1), value("bias", 3), value("x", "n", 3)]
    stored = {"W": weight(3, 3), "gain": weight(1), "bias": weight(3)}
    save(path, nodes, inputs, [value("y", "n", 3)], stored)


GIVEN: tuple[dict[str, Array], ...] = (
    {},
    {"gain": np.array([3], np.float32)},
    {"bias": np.arange(3, dtype=np.float32), "gain": np.array([-1], np.float32)},
)


def test_inputs_with_a_default_are_given_or_left_out(door: Door) -> None:
    defaults(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "a", "--shape", "x=2x3")
    with open_session(door.folder / "b", optimize=False, on_server_loss="raise") as session:
        optional = [each.name for each in session.get_overridable_initializers()]
        assert optional == ["gain", "bias"]
        for given in GIVEN:
            feeds = {**given, "x": X}
            (y,) = session.run(None, feeds)
            assert same(y, plain_onnxruntime(door.folder / "net.onnx", feeds)["y"])
    assert "['x', 'gain', 'bias']" in refusal(door, {"x": X, "scale": X})


@pytest.mark.door
@pytest.mark.parametrize("way", [LOCAL, CLOUD, ("--cut", "g"), ("--cut", "h")])
def test_defaults_on_either_side(door: Door, way: Sequence[str]) -> None:
    defaults(door.folder / "net.onnx")
    for given in GIVEN:
        feeds = {**given, "x": X}
        answers_as_onnxruntime(door, feeds, [way], None, "--shape", "x=2x3")


def test_a_server_part_that_needs_no_upload_begins(door: Door) -> None:
    nodes = [
        helper.make_node("Mul", ["gain", "gain"], ["g"]),
        helper.make_node("Add", ["g", "W"], ["y"]),
    ]
    stored = {"W": weight(3, 3), "gain": weight(1)}
    save(door.folder / "net.onnx", nodes, [value("gain", 1)], [value("y", 3, 3)], stored)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, *CLOUD)
    with open_session(
        door.folder / "b", optimize=False, on_server_loss="raise", deadline_s=10
    ) as session:
        assert session.is_split
        for feeds in ({}, {"gain": np.array([2], np.float32)}):
            (y,) = session.run(None, feeds)
            assert same(y, plain_onnxruntime(door.folder / "net.onnx", feeds)["y"])


@pytest.mark.door
def test_models_with_little_to_do(door: Door) -> None:
    """No inputs, constant answers, nothing to compute, an input that nobody reads."""
    stored = {"W": weight(3, 3)}
    add = helper.make_node("Add", ["W", "W"], ["k"])
    x, k, w = value("x", 2, 3), value("k", 3, 3), value("W", 3, 3)
    relu = [helper.make_node("Relu", ["x"], ["y"]), add]
    for nodes, inputs, outputs, feeds in (
        ([add], [], [k], {}),
        ([add], [x], [k], {"x": X}),
        ([], [x], [x], {"x": X}),
        ([], [], [w], {}),
        (relu, [x], [value("y", 2, 3), k, w], {"x": X}),
    ):
        save(door.folder / "net.onnx", nodes, inputs, outputs, stored, check=False)
        answers_as_onnxruntime(door, feeds)
    random = [
        helper.make_node("RandomNormal", [], ["r"], shape=[2, 3], seed=1.0),
        helper.make_node("Shape", ["r"], ["y"]),
    ]
    save(door.folder / "net.onnx", random, [], [value("y", 2, dtype=TensorProto.INT64)])
    answers_as_onnxruntime(door, {})


NAMES = ("file", "allow_pickle", "../y", "/y", "a/b", "y.npy", "self", "args")


def test_outputs_of_any_name_are_saved(door: Door) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"])]
    nodes += [helper.make_node("Neg", ["r"], [name]) for name in NAMES]
    outputs = [value(name, 2, 3) for name in NAMES]
    save(door.folder / "net.onnx", nodes, [value("x", 2, 3)], outputs)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r")
    np.savez(door.folder / "in.npz", x=X)
    door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", PLAIN)
    with np.load(door.folder / "out.npz", allow_pickle=False) as found:
        assert tuple(found.files) == NAMES
        for name in NAMES:
            np.testing.assert_array_equal(found[name], -np.maximum(X, 0))
    assert {path.name for path in door.folder.iterdir()} <= {
        "net.onnx", "b", "in.npz", "out.npz", "cache",
    }  # fmt: skip


@pytest.mark.door
def test_bodies_whose_names_shadow_outer_ones(door: Door) -> None:
    """A Loop's body has an input and a weight of names that the graph uses, too."""
    for shadow in ("input", "weight"):
        own = "h" if shadow == "input" else "v"
        body = helper.make_graph(
            [
                helper.make_node("Add", [own, "W"], ["o"]),
                helper.make_node("Identity", ["go"], ["on"]),
            ],
            "body",
            [
                value("i", dtype=TensorProto.INT64),
                value("go", dtype=TensorProto.BOOL),
                value(own, 2, 3),
            ],
            [value("on", dtype=TensorProto.BOOL), value("o", 2, 3)],
            [onnx.numpy_helper.from_array(weight(2, 3, seed=1), "W")],
        )
        nodes = [
            helper.make_node("MatMul", ["x", "W"], ["h"]),
            helper.make_node("Abs", ["h"], ["g"]),
            helper.make_node("Loop", ["n", "", "g"], ["l"], body=body),
            helper.make_node("Mul", ["l", "h"], ["y"]),
        ]
        stored = {"W": weight(3, 3), "n": np.array(3)}
        save(door.folder / "net.onnx", nodes, [value("x", 2, 3)], [value("y", 2, 3)], stored)
        cuts = [("--cut", name) for name in ("h", "g", "l")]
        answers_as_onnxruntime(door, {"x": X}, (LOCAL, CLOUD, *cuts))
