"""Weights in files beside the model, as PyTorch's exporter writes them by default."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.front_door.door import ESTIMATED, PLAIN, Door, plain_onnxruntime, save, value, weight

RAW = ("--encoding", "raw")
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:59\nsize 435852734\n"


def convolutions(path: Path) -> None:
    """Two convolutions with their weights outside."""
    nodes = [
        helper.make_node("Conv", ["x", "K1"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "K2"], ["y"]),
    ]
    stored = {"K1": weight(8, 3, 3, 3), "K2": weight(4, 8, 3, 3, seed=1)}
    outputs = [value("y", 1, 4, 12, 12)]
    save(path, nodes, [value("x", 1, 3, 16, 16)], outputs, stored, external=True)


def picture() -> np.ndarray[Any, np.dtype[Any]]:
    return np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)


def is_run_right(door: Door, bundle: str, model: Path, feeds: dict[str, Any]) -> None:
    np.savez(door.folder / "in.npz", **feeds)
    door.ok("run", bundle, "--input", "in.npz", "--output", "out.npz", PLAIN)
    with np.load(door.folder / "out.npz") as found:
        for name, want in plain_onnxruntime(model, feeds).items():
            np.testing.assert_array_equal(found[name], want)


def test_weights_outside_are_split_and_run(door: Door) -> None:
    convolutions(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r", *RAW)
    is_run_right(door, "b", door.folder / "net.onnx", {"x": picture()})


def test_weights_outside_are_profiled(door: Door) -> None:
    convolutions(door.folder / "net.onnx")
    found = door.json("profile", "net.onnx", "--runs", "3")
    assert found["whole_s"] > 0


@pytest.mark.door
def test_weights_outside_in_every_command_that_measures(door: Door) -> None:
    convolutions(door.folder / "net.onnx")
    door.ok("verify", "net.onnx", "--cuts", "4")
    door.ok("split", "net.onnx", "-o", "b", "--slowdown", "5")
    door.ok("simulate", "net.onnx", "--link", "1..9 Mbit/s", "--points", "3")
    np.savez(door.folder / "some.npz", x=picture())
    lossy = ("--cut", "r", "--calibration", "some.npz", "--tolerance", "0.5")
    door.ok("split", "net.onnx", "-o", "c", *ESTIMATED, *lossy)
    door.ok("encode-report", "c", "--calibration", "some.npz")
    is_run_right(door, "b", door.folder / "net.onnx", {"x": picture()})


def links(folder: Path) -> Path:
    """Model and weights as Hugging Face's cache keeps them: links to files of other names."""
    convolutions(folder / "model.onnx")
    revision, blobs = folder / "snapshots/0123", folder / "blobs"
    revision.mkdir(parents=True)
    blobs.mkdir()
    for name, blob in {"model.onnx": "aaaa", "model.onnx.data": "bbbb"}.items():
        (folder / name).rename(blobs / blob)
        (revision / name).symlink_to(Path("../../blobs") / blob)
    return revision / "model.onnx"


def test_links_to_model_and_weights_are_followed(door: Door) -> None:
    path = links(door.folder)
    door.ok("split", path, "-o", "b", *ESTIMATED, "--cut", "r", *RAW)
    is_run_right(door, "b", path, {"x": picture()})


@pytest.mark.door
def test_linked_weights_are_measured_and_verified(door: Door) -> None:
    path = links(door.folder)
    door.ok("profile", path, "--runs", "3")
    door.ok("verify", path, "--cuts", "3")
    assert door.json("inspect", path)["inputs"] == ["x"]


def test_weights_beside_the_file_that_the_model_is_a_link_to(door: Door) -> None:
    """onnxruntime refuses this one; the file that is meant is certain."""
    (door.folder / "store").mkdir()
    convolutions(door.folder / "store/net.onnx")
    (door.folder / "net.onnx").symlink_to("store/net.onnx")
    door.ok("profile", "net.onnx", "--runs", "3")


def test_a_link_out_of_the_model_directory_is_refused(door: Door) -> None:
    (door.folder / "model").mkdir()
    convolutions(door.folder / "model/net.onnx")
    (door.folder / "model/net.onnx.data").rename(door.folder / "secret")
    (door.folder / "model/net.onnx.data").symlink_to("../secret")
    sentence = door.refused("inspect", "model/net.onnx")
    assert "net.onnx.data is a link to" in sentence
    assert "copy that file in its place" in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS_POINTER, "git lfs pull"),
        pytest.param("", "is empty", marks=pytest.mark.door),
        pytest.param("<!DOCTYPE html>\n<html>", "HTML page", marks=pytest.mark.door),
    ],
)
def test_what_downloads_leave_in_place_of_a_file(door: Door, content: str, words: str) -> None:
    convolutions(door.folder / "net.onnx")
    (door.folder / "net.onnx.data").write_text(content)
    assert words in door.refused("inspect", "net.onnx")
    (door.folder / "net.onnx").write_text(content)
    assert words in door.refused("inspect", "net.onnx")


def odd_places(path: Path) -> None:
    """Weights in a sub-folder: large, scalar, empty, and inside the bodies of an If."""

    def body(name: str, scale: float) -> onnx.GraphProto:
        kept = numpy_helper.from_array(weight(64, 64, seed=int(scale)), f"W_{name}")
        node = helper.make_node("MatMul", ["h", f"W_{name}"], [f"out_{name}"])
        return helper.make_graph([node], name, [], [value(f"out_{name}", 2, 64)], [kept])

    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["m"]),
        helper.make_node("Mul", ["m", "scale"], ["s"]),
        helper.make_node("Concat", ["s", "none"], ["h"], axis=0),
        helper.make_node("ReduceSum", ["h"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "scale"], ["big"]),
        helper.make_node(
            "If", ["big"], ["i"], then_branch=body("then", 1), else_branch=body("else", 2)
        ),
        helper.make_node("Relu", ["i"], ["y"]),
    ]
    stored = {
        "W": weight(64, 64),
        "scale": np.array(0.5, np.float32),
        "none": np.zeros((0, 64), np.float32),
    }
    proto = save(path, nodes, [value("x", 2, 64)], [value("y", 2, 64)], stored)
    (path.parent / "data").mkdir()
    with (path.parent / "data/weights.bin").open("wb") as file:
        bodies = [attribute.g for node in proto.graph.node for attribute in node.attribute]
        for graph in (proto.graph, *bodies):
            for tensor in graph.initializer:
                move_out(tensor, file, "data/weights.bin")
    path.write_bytes(proto.SerializeToString())


def move_out(tensor: TensorProto, file: Any, location: str) -> None:
    place = {"location": location, "offset": file.tell(), "length": len(tensor.raw_data)}
    file.write(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in place.items():
        tensor.external_data.add(key=key, value=str(text))


def test_odd_weights_in_a_folder_and_in_bodies(door: Door) -> None:
    odd_places(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", *RAW)
    is_run_right(door, "b", door.folder / "net.onnx", {"x": weight(2, 64, seed=9)})


@pytest.mark.door
def test_odd_weights_are_measured_and_verified(door: Door) -> None:
    odd_places(door.folder / "net.onnx")
    door.ok("verify", "net.onnx", "--cuts", "4")
    door.ok("profile", "net.onnx", "--runs", "3")
    door.ok("split", "net.onnx", "-o", "b", "--slowdown", "3")


def sparse_chain(path: Path, size: int, count: int) -> None:
    """Matrices of zeros in a sparse file, which takes no room on the disk."""
    matrix_bytes = 4 * size * size
    stored, nodes = [], []
    for index in range(count):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[size, size])
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": f"{path.name}.data", "offset": index * matrix_bytes}
        for key, text in {**place, "length": matrix_bytes}.items():
            tensor.external_data.add(key=key, value=str(text))
        stored.append(tensor)
        nodes.append(helper.make_node("MatMul", [f"v{index}", f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"v{index + 1}"]))
    ends = [value(f"v{index}", 1, size) for index in (0, count)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), path)
    with path.with_name(f"{path.name}.data").open("wb") as file:
        file.truncate(count * matrix_bytes)


def peak_bytes(door: Door, words: Sequence[str]) -> int:
    """Peak resident memory of a command that must succeed."""
    done, peak = door.measured(*words)
    assert done.returncode == 0, done.stderr
    return peak


def test_an_estimated_split_does_not_load_the_weights(door: Door) -> None:
    sparse_chain(door.folder / "small.onnx", 64, 12)
    sparse_chain(door.folder / "large.onnx", 2048, 12)  # 201 MB
    words = (*ESTIMATED, "--cut", "v6", *RAW, "-o", "b")
    small = peak_bytes(door, ("split", "small.onnx", *words))
    large = peak_bytes(door, ("split", "large.onnx", *words))
    assert large - small < 50e6


def test_an_estimated_split_does_not_load_weights_inside_the_file(door: Door) -> None:
    sparse_chain(door.folder / "net.onnx", 2048, 8)  # 134 MB
    onnx.save(onnx.load(door.folder / "net.onnx"), door.folder / "whole.onnx")
    words = (*ESTIMATED, "--cut", "v4", *RAW, "-o", "b")
    outside = peak_bytes(door, ("split", "net.onnx", *words))
    inside = peak_bytes(door, ("split", "whole.onnx", *words))
    assert inside - outside < 50e6
    assert not list((door.folder / "b").glob("*.weights"))


@pytest.mark.door
def test_more_than_2_gb_of_weights_are_split_in_300_mb(door: Door) -> None:
    sparse_chain(door.folder / "large.onnx", 8192, 10)  # 2.7 GB
    words = (*ESTIMATED, "--cut", "v5", *RAW, "-o", "b")
    assert peak_bytes(door, ("split", "large.onnx", *words)) <= 300e6
    written = sum(path.stat().st_size for path in (door.folder / "b").glob("*.weights"))
    assert written == 10 * 4 * 8192**2


@pytest.mark.door
def test_measuring_takes_twice_the_weights_and_500_mb(door: Door) -> None:
    sparse_chain(door.folder / "net.onnx", 4096, 10)
    peak = peak_bytes(door, ("profile", "net.onnx", "--runs", "3"))
    assert peak <= 2 * 10 * 4 * 4096**2 + 500e6


def test_a_full_temporary_folder_is_named(door: Door) -> None:
    """The kernel lets root mount a folder of 1 MB; elsewhere there is no small folder to use."""
    stored = {"W": weight(600, 600)}
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    save(door.folder / "net.onnx", nodes, [value("x", 1, 600)], [value("y", 1, 600)], stored)
    small = door.folder / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {small}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no right to mount a small file system")
    command = (
        f'{mount} && exec {sys.executable} -c "from offload_cli.main import main; main()" "$@"'
    )
    for words in (("profile", "net.onnx"), ("verify", "net.onnx")):
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", command, "sh", *words],
            capture_output=True,
            text=True,
            cwd=door.folder,
            env=door.environment({"TMPDIR": str(small)}),
            check=False,
        )
        assert done.returncode == 1
        error = done.stderr.splitlines()[-1]
        assert error.startswith(f"error: the folder for temporary files, {small}, is full")
        assert "set TMPDIR" in error
