"""The layers that a bundle keeps for pictures."""

import json
from pathlib import Path

import pytest
from offload.bundle.bundle import open_bundle
from offload.bundle.layers import GRAPH, TimedGraph, read_layers
from offload.bundle.write import write_bundle
from offload.errors import InputError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload.planning.plan import Side

from tests.toolkit.bundle.several import funnel, ranged_over


def written(folder: Path) -> tuple[Path, TimedGraph]:
    model = load_model(funnel(folder / "net.onnx"))
    graph = read_graph(model)
    times = tuple(0.1 * number for number in range(len(graph.layers)))
    seconds = {Side.DEVICE: times, Side.SERVER: times[::-1]}
    bundle = write_bundle(model, graph, ranged_over(graph), folder / "b", seconds=seconds)
    return bundle.path, TimedGraph(graph, seconds)


def test_a_bundle_keeps_layers_and_seconds(tmp_path: Path) -> None:
    path, model = written(tmp_path)
    assert read_layers(path) == model


def test_no_side_needs_the_layers(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    (file,) = (file for file in open_bundle(path).files if file.name == GRAPH)
    assert file.sides == ()
    (path / GRAPH).unlink()
    open_bundle(path, tuple(Side))
    with pytest.raises(InputError, match=r"has no graph\.json.*take the bundle that"):
        read_layers(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 99}, "format 99"),
        ({"seconds": {"device": [1.0]}}, "seconds"),
        ({"graph": 1}, "damaged"),
    ],
)
def test_damaged_layers_are_refused(tmp_path: Path, change: object, reason: str) -> None:
    path, _ = written(tmp_path)
    value = json.loads((path / GRAPH).read_text())
    assert isinstance(change, dict)
    (path / GRAPH).write_text(json.dumps({**value, **change}))
    with pytest.raises(InputError, match=reason):
        read_layers(path)
