"""Inputs drawn and given: scalars, text, caches, sizes, calibration, pictures."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from tests.front_door.door import ESTIMATED, PLAIN, Door, plain_onnxruntime, save, value, weight

QUICK = ("--runs", "3", "--threads", "1")
RNG = np.random.default_rng(0)


def speech(path: Path) -> None:
    """A recurrent step as speech models have it: a frame, the sample rate as a number, a word."""
    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["is16k"]),
        helper.make_node("Where", ["is16k", "x", "half"], ["w"]),
        helper.make_node("LabelEncoder", ["language"], ["row"], domain="ai.onnx.ml",
                         keys_strings=["de", "en"], values_int64s=[0, 1], default_int64=2),
        helper.make_node("Gather", ["table", "row"], ["e"]),
        helper.make_node("Add", ["w", "e"], ["a"]),
        helper.make_node("MatMul", ["a", "W"], ["m"]),
        helper.make_node("Tanh", ["m"], ["y"]),
    ]  # fmt: skip
    stored = {
        "rate": np.array(16000),
        "half": np.array(0.5, np.float32),
        "table": weight(3, 64),
        "W": weight(64, 32),
    }
    inputs = [
        value("x", 1, 64),
        value("sr", dtype=TensorProto.INT64),
        value("language", 1, dtype=TensorProto.STRING),
    ]
    save(path, nodes, inputs, [value("y", 1, 32)], stored, domains={"ai.onnx.ml": 2})


def test_numbers_and_words_are_measured(door: Door) -> None:
    speech(door.folder / "net.onnx")
    assert door.json("profile", "net.onnx", *QUICK)["whole_s"] > 0


@pytest.mark.door
def test_numbers_and_words_are_calibrated(door: Door) -> None:
    speech(door.folder / "net.onnx")
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    np.savez(door.folder / "in.npz", x=x, sr=np.int64(16000), language=np.array(["en"]))
    given = ("--calibration", "in.npz")
    first = door.json("profile", "net.onnx", *QUICK, *given)
    again = door.json("profile", "net.onnx", *QUICK, *given)
    assert first["whole_s"] == again["whole_s"]  # kept by the inputs' digest
    split = ("split", "net.onnx", "-o", "b", "--threads", "1", "--slowdown", "10")
    for more in ((), given, (*given, "--tolerance", "0.01")):
        door.ok(*split, *more)


def test_a_sequence_is_refused_with_a_way_out(door: Door) -> None:
    nodes = [
        helper.make_node("SequenceAt", ["s", "i"], ["e"]),
        helper.make_node("Relu", ["e"], ["y"]),
    ]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [4]))
    inputs = [helper.make_value_info("s", kind), value("i", dtype=TensorProto.INT64)]
    save(door.folder / "net.onnx", nodes, inputs, [value("y", 4)])
    said = door.refused("profile", "net.onnx", *QUICK)
    assert "input 's' is seq(tensor(float))" in said
    assert "split --device 5e9 --server 5e11 --encoding raw" in said


def open_picture(path: Path) -> None:
    """A convolution over pictures of any number and size, as exporters' dynamic axes make it."""
    nodes = [
        helper.make_node("Conv", ["images", "K"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    inputs = [value("images", "batch", 3, "height", "width")]
    save(path, nodes, inputs, [value("y", "batch", 8, 1, 1)], {"K": weight(8, 3, 3, 3)})


def test_a_hint_names_the_models_own_input_and_axes(door: Door) -> None:
    open_picture(door.folder / "net.onnx")
    said = door.refused("profile", "net.onnx", *QUICK)
    assert "input 'images' has the dynamic axes 0 (batch), 2 (height) and 3 (width)" in said
    assert said.endswith("--shape images=1x3x640x640")


def test_an_input_gives_open_sizes(door: Door) -> None:
    open_picture(door.folder / "net.onnx")
    np.savez(door.folder / "in.npz", images=np.zeros((1, 3, 32, 48), np.float32))
    assert door.json("profile", "net.onnx", *QUICK, "--input", "in.npz")["whole_s"] > 0


def decoder(path: Path) -> None:
    """One attention step over a cache, its sizes named as PyTorch's exporter names them."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
        helper.make_node("Transpose", ["present"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("Unsqueeze", ["mask", "one"], ["row"]),
        helper.make_node("Cast", ["row"], ["added"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["scores", "added"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["p"]),
        helper.make_node("MatMul", ["p", "present"], ["y"]),
    ]
    inputs = [
        value("ids", "batch", "s", dtype=TensorProto.INT64),
        value("mask", "batch", "past + s", dtype=TensorProto.INT64),
        value("past", "batch", "past", 8),
    ]
    outputs = [value("y", "batch", "s", 8), value("present", "batch", "past + s", 8)]
    save(path, nodes, inputs, outputs, {"table": weight(11, 8, scale=1), "one": np.array([1])})


def test_sizes_of_a_cache_agree(door: Door) -> None:
    decoder(door.folder / "net.onnx")
    found = door.json("verify", "net.onnx", "--cuts", "3")
    assert found["ok"]
    for shapes in found["inputs"]:
        assert shapes["mask"][1] == shapes["ids"][1] + shapes["past"][1]


@pytest.mark.door
def test_sizes_of_a_cache_follow_from_others(door: Door) -> None:
    decoder(door.folder / "net.onnx")
    shape = ("--shape", "ids=1x4", "--shape", "mask=1x20")
    assert door.json("profile", "net.onnx", *QUICK, *shape)["whole_s"] > 0


@pytest.mark.door
def test_a_name_that_is_the_sum_of_two_others(door: Door) -> None:
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
        helper.make_node("Relu", ["present"], ["r"]),
        helper.make_node("MatMul", ["mask", "r"], ["y"]),
    ]
    inputs = [value("mask", 1, 1, "total"), value("past", 1, "past", 8), value("x", 1, "s", 8)]
    save(door.folder / "net.onnx", nodes, inputs, [value("y", 1, 1, 8)])
    for shapes in door.json("verify", "net.onnx", "--cuts", "3")["inputs"]:
        assert shapes["mask"][2] == shapes["past"][1] + shapes["x"][1]


def finder(path: Path, limit: float) -> None:
    """What is above a limit, as the tail of a detector: as many values as there are."""
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["flat"], axis=0),
        helper.make_node("Greater", ["flat", "limit"], ["is"]),
        helper.make_node("NonZero", ["is"], ["where"]),
        helper.make_node("Transpose", ["where"], ["t"], perm=[1, 0]),
        helper.make_node("GatherND", ["flat", "t"], ["found"]),
        helper.make_node("Exp", ["found"], ["y"]),
    ]
    stored = {"K": weight(16, 3, 3, 3), "limit": np.array(limit, np.float32)}
    save(path, nodes, [value("x", 1, 3, 33, 33)], [value("y", "n")], stored)


def photos(path: Path, count: int = 4) -> None:
    np.savez(path, x=RNG.standard_normal((count, 3, 33, 33)).astype(np.float32))


def test_sizes_that_depend_on_data_are_those_of_the_calibration(door: Door) -> None:
    finder(door.folder / "net.onnx", 0.5)
    photos(door.folder / "in.npz")
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--encoding", "raw", "--cut", "found")
    plan = door.json(*split, "--calibration", "in.npz")["plan"]
    with np.load(door.folder / "in.npz") as held:
        answers = [plain_onnxruntime(door.folder / "net.onnx", {"x": x[None]}) for x in held["x"]]
    mean = round(sum(answer["y"].nbytes for answer in answers) / len(answers))
    assert plan["uploads"][0]["size_bytes"] == mean


@pytest.mark.door
def test_a_measured_split_says_what_it_measured_on(door: Door) -> None:
    finder(door.folder / "net.onnx", 0.5)
    photos(door.folder / "in.npz")
    split = ("split", "net.onnx", "-o", "b", "--threads", "1")
    assert "random input" in door.offload(*split).stderr
    assert "random input" not in door.offload(*split, "--calibration", "in.npz").stderr


LOSSY = ("--link", "20 kbit/s", "--cut", "r", "--tolerance", "0.05", "--calibration", "in.npz")


def test_a_detector_that_finds_nothing_proves_nothing(door: Door) -> None:
    finder(door.folder / "net.onnx", 100.0)
    photos(door.folder / "in.npz")
    plan = door.json("split", "net.onnx", "-o", "b", *ESTIMATED, *LOSSY)["plan"]
    assert "All is lossless: output 'y' is empty on all 4 calibration inputs" in plan["reason"]
    assert {send["encoding"] for send in plan["uploads"]} <= {"raw", "zstd", "planes"}


def test_outputs_of_varying_length_are_compared_by_their_rows(door: Door) -> None:
    finder(door.folder / "net.onnx", 0.5)
    photos(door.folder / "in.npz")
    plan = door.json("split", "net.onnx", "-o", "b", *ESTIMATED, *LOSSY)["plan"]
    assert "Lossy: 'r' as" in plan["reason"]


def test_a_shape_says_how_many_rows_a_sample_has(door: Door) -> None:
    """Photos joined on an open batch axis are samples, not one batch that crosses together."""
    open_picture(door.folder / "net.onnx")
    images = RNG.standard_normal((8, 3, 16, 16)).astype(np.float32)
    np.savez(door.folder / "in.npz", images=images)
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r", "--encoding", "zstd")
    shape = ("--shape", "images=1x3x16x16", "--link", "20 kbit/s")
    plan = door.json(*split, *shape, "--calibration", "in.npz")["plan"]
    assert plan["uploads"][0]["size_bytes"] < 8 * 16 * 16 * 4


@pytest.mark.door
def test_a_report_asks_how_many_rows_a_sample_has(door: Door) -> None:
    open_picture(door.folder / "net.onnx")
    images = RNG.standard_normal((8, 3, 16, 16)).astype(np.float32)
    np.savez(door.folder / "in.npz", images=images)
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r", "--encoding", "zstd")
    shape = ("--shape", "images=1x3x16x16")
    door.ok(*split, *shape, "--calibration", "in.npz")
    report = ("encode-report", "b", "--calibration", "in.npz")
    assert "--shape images=1x3x16x16" in door.refused(*report)
    found = door.json(*report, *shape)
    assert found["inputs"] == 8
    assert found["tensors"][0]["shape"] == [1, 8, 16, 16]


def pictures(folder: Path, count: int = 3) -> None:
    folder.mkdir()
    for number in range(count):
        pixels = RNG.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_a_cameras_bytes_and_open_sizes(door: Door) -> None:
    """Every detector exported with dynamic axes: --image, --shape and a folder of pictures."""
    open_picture(door.folder / "net.onnx")
    pictures(door.folder / "photos")
    shape = ("--shape", "images=1x3x16x24")
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--image", "unit", "--scheme", "cloud")
    plan = door.json(*split, *shape, "--calibration", "photos")["plan"]
    assert plan["uploads"][0]["tensor_bytes"] in (None, 16 * 24 * 3)
    said = door.refused("run", "b", "--input", "photos", "--output", "out")
    assert "--shape image=1x640x640x3" in said
    shape = ("--shape", "image=1x16x24x3")
    done = door.json("run", "b", "--input", "photos", "--output", "out", PLAIN, *shape)
    assert done["inputs"] == ["0.png", "1.png", "2.png"]
    for name in done["inputs"]:
        with Image.open(door.folder / "photos" / name) as opened:
            pixels = np.asarray(opened.resize((24, 16)), np.float32) / 255
        images = pixels.transpose(2, 0, 1)[None]
        want = plain_onnxruntime(door.folder / "net.onnx", {"images": images})
        with np.load(door.folder / "out" / f"{name}.npz") as found:
            np.testing.assert_allclose(found["y"], want["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.door
def test_what_is_no_input_is_one_sentence(door: Door) -> None:
    finder(door.folder / "net.onnx", 0.5)
    np.save(door.folder / "one.npy", np.zeros(3))
    (door.folder / "one.npy").rename(door.folder / "one.npz")
    np.savez(door.folder / "objects.npz", x=np.array([{}], object))
    (door.folder / "empty").mkdir()
    estimated = ("split", "net.onnx", "-o", "b", *ESTIMATED)
    for words, sentence in (
        (("profile", "net.onnx", "--input", "one.npz"), "one array without a name"),
        (("verify", "net.onnx", "--input", "x.npz"), "does not exist"),
        ((*estimated, "--calibration", "objects.npz"), "not an .npz file of plain arrays"),
        ((*estimated, "--calibration", "empty"), "holds no pictures"),
    ):
        assert sentence in door.refused(*words)


def test_sizes_called_by_a_question_mark_need_not_be_equal(door: Door) -> None:
    """As PP-OCR's files have them: the batch, the height and the width are all called `?`."""
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    inputs, outputs = [value("x", "?", 3, "?", "?")], [value("y", "?", 8, 1, 1)]
    save(door.folder / "net.onnx", nodes, inputs, outputs, {"K": weight(8, 3, 3, 3)})
    shown = door.json("inspect", "net.onnx", "--shape", "x=1x3x16x24")
    assert shown["tensors"]["c"]["shape"] == [1, 8, 14, 22]
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--shape", "x=1x3x16x24")
    door.ok("profile", "net.onnx", "--runs", "3", "--shape", "x=1x3x16x24")
