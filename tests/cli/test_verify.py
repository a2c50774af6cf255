import json
from pathlib import Path

import onnx
import pytest
from offload.graph import value_index
from offload.graph.value_index import consumed_values
from offload_cli.main import app
from onnx import NodeProto
from typer.testing import CliRunner

from tests.edge_cases import EDGE_CASES

BY_NAME = {case.name: case.model for case in EDGE_CASES}


def saved(name: str, folder: Path) -> str:
    onnx.save(BY_NAME[name], folder / "m.onnx")
    return str(folder / "m.onnx")


def test_a_right_split(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["verify", saved("scan captures", tmp_path)])
    assert shown.exit_code == 0
    assert "cuts: bit-equal without optimisations" in shown.output


def test_json(tmp_path: Path) -> None:
    path = saved("many tensors cross", tmp_path)
    shown = CliRunner().invoke(app, ["verify", path, "--cuts", "5", "--format", "json"])
    found = json.loads(shown.stdout)
    assert found["ok"]
    assert len(found["cuts"]) == 5
    assert found["cuts"][0]["worst_exact"] == 0


def test_a_planted_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(node: NodeProto) -> tuple[str, ...]:
        return tuple(name for name in consumed_values(node) if node.op_type != "If" or name != "b")

    path = saved("if captures activations, weights and constants", tmp_path)
    monkeypatch.setattr(value_index, "consumed_values", forgetful)
    shown = CliRunner().invoke(app, ["verify", path])
    assert shown.exit_code == 1
    assert "lacks tensor 'b'" in shown.output


def test_wishes_are_understood(tmp_path: Path) -> None:
    path = saved("an input needed late", tmp_path)
    options = ["--input", "x=0..1", "--shape", "x=2x4", "--shape", "z=2x4", "--format", "json"]
    shown = CliRunner().invoke(app, ["verify", path, *options])
    assert json.loads(shown.stdout)["inputs"] == [{"x": [2, 4], "z": [2, 4]}]
    wrong = CliRunner().invoke(app, ["verify", path, "--input", "x=many"])
    assert "is not understood: write in.npz, name=16000 or name=0..99" in str(wrong.exception)
