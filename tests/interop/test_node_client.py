"""A client in another language, with another protobuf library, runs the server's part."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value

FOLDER = Path(__file__).parent.parent.parent / "examples/node"
pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (FOLDER / "node_modules").is_dir(),
    reason="needs node and its packages: `make test-interop` installs them",
)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def node(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["node", "client.js", *words]
    return subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )


def two_activations(path: Path, width: int) -> None:
    """Two layers without weights, to cut at `h`."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    save(path, nodes, [value("x", 1, width)], [value("y", 1, width)])


@pytest.mark.parametrize("width", [8, 40_001])  # the checksum of large tensors differs
def test_node_gets_the_answer_of_onnxruntime(door: Door, width: int) -> None:
    two_activations(door.folder / "net.onnx", width)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--encoding", "raw")
    bundle = door.folder / "b"
    x = np.random.default_rng(3).standard_normal((1, width)).astype(np.float32)
    (h,) = ort.InferenceSession(bundle / "device-0.onnx").run(["h"], {"x": x})
    h.tofile(door.folder / "h.bin")
    upload = f"h={h.dtype.str}:{'x'.join(map(str, h.shape))}:{door.folder / 'h.bin'}"
    with door.serving("b", "--no-optimize") as address:
        done = node(address, str(bundle), upload)
        wrong = node(address, str(bundle), upload.replace("h=<f4", "h=<f8"))
    assert done.returncode == 0, done.stderr
    (expected,) = ort.InferenceSession(door.folder / "net.onnx").run(None, {"x": x})
    answer = json.loads(done.stdout)
    y = np.frombuffer(base64.b64decode(answer["base64"]), answer["dtype"]).reshape(answer["shape"])
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: tensor 'h' must be float32")
