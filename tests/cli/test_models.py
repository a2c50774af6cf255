"""`offload models` from the outside."""

import json
from pathlib import Path

import onnx
from offload.errors import InputError
from offload_cli.main import app
from offload_models.zoo import ZOO
from typer.testing import CliRunner


def test_the_list_names_every_model_in_both_formats() -> None:
    shown = CliRunner().invoke(app, ["models", "--format", "json"])
    listed = {model["name"]: model for model in json.loads(shown.stdout)}
    assert listed.keys() == ZOO.keys()
    assert listed["googlenet"]["parameters"] == ZOO["googlenet"].parameters
    table = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"}).stdout
    assert all(name in table for name in ZOO)


def test_build_writes_the_model_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    asked = ["models", "build", "mobilenet_v2", "-o", str(path), "--seed", "4"]
    shown = CliRunner().invoke(app, [*asked, "--format", "json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["size_bytes"] == path.stat().st_size
    assert onnx.load(path) == ZOO["mobilenet_v2"].build(4)


def test_an_unknown_model_leaves_no_file(tmp_path: Path) -> None:
    asked = ["models", "build", "nope", "-o", str(tmp_path / "m.onnx")]
    shown = CliRunner().invoke(app, asked)
    assert isinstance(shown.exception, InputError)
    assert not list(tmp_path.iterdir())
