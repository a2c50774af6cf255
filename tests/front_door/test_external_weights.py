"""Weights in a file beside the model, as PyTorch's exporter writes them by default."""

from pathlib import Path

import numpy as np
from onnx import helper

from tests.front_door.door import ESTIMATED, PLAIN, Door, plain_onnxruntime, save, value, weight


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


def test_weights_outside_are_split_and_run(door: Door) -> None:
    convolutions(door.folder / "net.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.savez(door.folder / "in.npz", x=x)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r", "--encoding", "raw")
    door.ok("run", "b", "--input", "in.npz", "--output", "out.npz", PLAIN)
    with np.load(door.folder / "out.npz") as found:
        np.testing.assert_array_equal(
            found["y"], plain_onnxruntime(door.folder / "net.onnx", {"x": x})["y"]
        )
