"""A small network whose first half stays on the device, for tests of the Python API."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, plain_onnxruntime, save, value, weight

WIDTH = 16


def split_chain(door: Door) -> str:
    """Split Tanh(Relu(x W1) W2 + x) after the Relu; the bundle's path. The input x is sent, too."""
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "W2"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["s"]),
        helper.make_node("Tanh", ["s"], ["y"]),
    ]
    stored = {"W1": weight(WIDTH, WIDTH), "W2": weight(WIDTH, WIDTH, seed=1)}
    ends = [value("x", "n", WIDTH)], [value("y", "n", WIDTH)]
    save(door.folder / "net.onnx", nodes, *ends, stored)
    options = ("--shape", f"x=1x{WIDTH}", *ESTIMATED, "--cut", "r", "--encoding", "raw")
    door.ok("split", "net.onnx", "-o", "b", *options)
    return str(door.folder / "b")


def frame(number: int, rows: int = 1) -> dict[str, Any]:
    """The inputs of frame `number`, all frames different."""
    return {"x": np.full((rows, WIDTH), 0.1 * number, np.float32)}


def expected(folder: Path, number: int, rows: int = 1) -> Any:
    """What onnxruntime answers to `frame`."""
    return plain_onnxruntime(folder / "net.onnx", frame(number, rows))["y"]


def python(
    door: Door, code: str, *words: str, timeout_s: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of a user's; the test fails when it hangs."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=door.folder,
        env=door.environment(env),
        check=False,
    )
