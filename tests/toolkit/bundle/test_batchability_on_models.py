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
    assert bundle.batch == {"server-0": "", "server-1": ""}
    assert open_bundle(bundle.path).why_alone("server-1") == ""


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    assert "fixed at 4" in made(tmp_path, 4).why_alone("server-0")


def rewritten(bundle: Bundle, batch: object) -> Bundle:
    """The bundle with another verdict; None: without, as older versions wrote it."""
    content = json.loads((bundle.path / MANIFEST).read_text())
    del content["digest"], content["batch"]
    if batch is not None:
        content["batch"] = batch
    manifest = {"digest": manifest_digest(content), **content}
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    return open_bundle(bundle.path)


def test_an_older_bundle_says_nothing_and_stays_alone(tmp_path: Path) -> None:
    bundle = rewritten(made(tmp_path, "n"), None)
    assert "older version" in bundle.why_alone("server-0")


def test_a_damaged_verdict_is_seen(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="damaged"):
        rewritten(made(tmp_path, "n"), ["server-0"])
