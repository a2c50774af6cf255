"""Exceptions that nobody expected: one sentence, exit code 70, nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight

# Loaded by the interpreter before the command: the last step of writing fails as a bug would.
BREAKS_RENAMES = """
import pathlib
def rename(self, target):
    raise ValueError("renaming is broken")
pathlib.Path.rename = pathlib.Path.replace = rename
"""


@pytest.fixture
def broken(door: Door) -> dict[str, str]:
    (door.folder / "site").mkdir()
    (door.folder / "site/sitecustomize.py").write_text(BREAKS_RENAMES)
    return {"PYTHONPATH": str(door.folder / "site")}


def model(path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    save(path, nodes, [value("x", 1, 8)], [value("y", 1, 8)], {"W": weight(8, 8)})


def test_a_bug_is_one_sentence_and_leaves_nothing(door: Door, broken: dict[str, str]) -> None:
    model(door.folder / "net.onnx")
    words = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--encoding", "raw")
    done = door.offload(*words, env=broken)
    assert done.returncode == 70, done.stderr
    assert "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "this is a bug: ValueError" in error
    assert "renaming is broken; OFFLOAD_DEBUG=1 shows where" in error
    left = {path.name for path in door.folder.iterdir()} - {"cache", "site"}
    assert left == {"net.onnx"}
    shown = door.offload(*words, env={**broken, "OFFLOAD_DEBUG": "1"})
    assert shown.returncode == 70
    assert "Traceback" in shown.stderr


def test_a_bug_of_the_light_command_is_one_sentence(door: Door, broken: dict[str, str]) -> None:
    import numpy as np

    model(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--encoding", "raw")
    np.savez(door.folder / "in.npz", x=np.zeros((1, 8), np.float32))
    command = [sys.executable, "-m", "offload_runtimes", "run", "b", "--input", "in.npz"]
    done = subprocess.run(
        [*command, "--output", "out.npz"],
        cwd=door.folder,
        env={**os.environ, **broken},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 70, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: this is a bug: ValueError")
    assert not list(door.folder.glob("*out.npz*"))
