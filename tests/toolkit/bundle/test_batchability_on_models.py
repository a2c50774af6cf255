"""A bundle keeps, for each of the server's parts, whether its rows may run with others'."""

import json
from pathlib import Path

import pytest
from offload.bundle.bundle import MANIFEST, Bundle, manifest_digest, open_bundle
from offload.bundle.write import write_plans
from offload.errors import BundleError
from offload.graph.load import load_model
from offload.graph.read import read_graph

from tests.toolkit.bundle.several import WIDTHS, funnel, ranged_over


def made(folder: Path, rows: int | str) -> Bundle:
    model = load_model(funnel(folder / "net.onnx", rows))
    graph = read_graph(model, {"x": (4, WIDTHS[0])})
    return write_plans(model, graph, ranged_over(graph), folder / "b")


def test_an_open_batch_stays_open_and_is_told(tmp_path: Path) -> None:
    bundle = made(tmp_path, "n")
    assert bundle.why_alone("server-0") == bundle.why_alone("server-1") == ""


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    assert "fixed at 4" in made(tmp_path, 4).why_alone("server-0")


def test_a_damaged_verdict_is_seen(tmp_path: Path) -> None:
    path = made(tmp_path, "n").path
    content = json.loads((path / MANIFEST).read_text())
    del content["digest"]
    content["files"]["server-0.onnx"]["why_alone"] = ["mixes rows"]
    (path / MANIFEST).write_text(json.dumps({"digest": manifest_digest(content), **content}))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(path)
