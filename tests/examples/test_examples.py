"""Each example runs on real inputs, as its first lines say."""

import ast
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload_models.pretrained import build
from offload_models.text import render_line
from offload_models.zoo import save
from offload_runtimes import open_session

from tests.front_door.conftest import door
from tests.front_door.door import ESTIMATED, Door
from tests.runtimes.deploy.sshd import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
__all__ = ["door"]
LINES = ("Split inference 42", "fewer bytes at the cut", "one batch of lines")


def run(door: Door, name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=door.folder,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def bundle_of(door: Door, model: str, name: str, *words: str, batch: int | str = 1) -> None:
    save(build(model, batch=batch), door.folder / f"{name}.onnx")
    door.ok(
        "split", f"{name}.onnx", *ESTIMATED, *words, "--encoding", "raw", "-o", f"{name}.bundle"
    )


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
        assert f"`{path.name}`" in (EXAMPLES / "README.md").read_text() or (
            f"[{path.name}]" in (EXAMPLES / "README.md").read_text()
        )


@pytest.mark.door
def test_camera_reads_a_folder_of_pictures(door: Door) -> None:
    from PIL import Image

    bundle_of(door, "text_orientation", "turned")
    (door.folder / "photos").mkdir()
    for number in range(6):
        picture = render_line("a line of text", 192, 48, upside_down=number % 2 == 1)
        Image.fromarray(picture).save(door.folder / f"photos/{number}.png")
    shown = run(door, "camera.py", "turned.bundle", "photos")
    answers = dict(line.split(": ") for line in shown.splitlines()[:-1])
    assert "picture 5" in answers, "the last picture is never outdated"
    assert all(answer == f"class {int(name[-1]) % 2}" for name, answer in answers.items())
    dropped = int(shown.splitlines()[-1].split()[-2])
    assert len(answers) + dropped == 6


@pytest.mark.door
def test_a_page_is_read_in_one_batch(door: Door) -> None:
    from PIL import Image

    bundle_of(door, "text_detection", "detect")
    shape = ("--shape", "image=4x48x320x3")
    bundle_of(door, "text_recognition", "read", *shape, batch="lines")
    page = np.full((370, 680, 3), 248, np.uint8)
    for row, line in enumerate(LINES):
        page[30 + row * 110 :, 20:660][:64] = render_line(line, 640, 64)
    Image.fromarray(page).save(door.folder / "page.png")
    Image.fromarray(np.full_like(page, 248)).save(door.folder / "empty.png")
    assert (
        tuple(run(door, "read_page.py", "detect.bundle", "read.bundle", "page.png").splitlines())
        == LINES
    )
    assert run(door, "read_page.py", "detect.bundle", "read.bundle", "empty.png") == ""


def post(port: int, body: bytes) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def npz(**arrays: Any) -> bytes:
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()


def test_a_web_service_answers(door: Door) -> None:
    bundle, port = door.split_two_layers(), free_port()
    command = [sys.executable, "-u", str(EXAMPLES / "web.py"), bundle, str(port)]
    with subprocess.Popen(command, cwd=door.folder, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert "127.0.0.1" in service.stdout.readline()
            x = np.linspace(-1, 1, 8, dtype=np.float32)[None]
            status, body = post(port, npz(x=x))
            assert status == 200
            with open_session(door.folder / bundle) as session, np.load(io.BytesIO(body)) as shown:
                (expected,) = session.run(None, {"x": x})
                assert np.array_equal(shown["y"], expected)
            status, sentence = post(port, npz(x=x[:, :3]))
            assert status == 400
            assert b"must be float32[1x8]" in sentence
            assert post(port, b"no arrays")[0] == 400
        finally:
            service.terminate()
        assert service.wait(20) == 0


@pytest.mark.door
def test_the_notebook_draws_the_timeline(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "timeline.ipynb").read_text())
    door.ok("models", "build", "squeezenet", "-o", "net.onnx")
    door.ok(
        "split", "net.onnx", *ESTIMATED, "--scheme", "opss", "--link", "wifi", "-o", "net.bundle"
    )
    monkeypatch.chdir(door.folder)
    names: dict[str, Any] = {}
    values = [
        last_value("".join(cell["source"]), names)
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]
    drawn: list[Callable[[], str]] = [v._repr_svg_ for v in values if hasattr(v, "_repr_svg_")]
    assert [draw().startswith("<svg") for draw in drawn] == [True, True]


def last_value(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, as a notebook shows it."""
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
