"""Models that frameworks really exported: the parts give what the framework itself answered.

The files are kept here, with inputs and answers; `make test-frameworks` exports them anew.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload.bundle.batchability import why_alone
from offload.bundle.compare import difference
from offload.bundle.sample_inputs import SampleOptions
from offload.bundle.subgraph import Part
from offload.bundle.verify import distinct_cuts
from offload.bundle.write import write_bundle
from offload.costs.link import parse_link
from offload.costs.profile import LayerCost, Profile
from offload.graph.load import load_model
from offload.graph.model import Graph
from offload.graph.read import read_graph
from offload.planning.cut import cut_at
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.local import open_session
from offload_runtimes.measure.verify import check_of, missing_types, opener
from offload_runtimes.serving.batching import disagreement

FOLDER = Path(os.environ.get("OFFLOAD_EXPORTED", Path(__file__).parent / "exported"))
MODELS = sorted(FOLDER.glob("*/*.onnx"))
OPTIONS = EngineOptions(threads=1)


def kept(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Inputs by name, and the framework's answers in order."""
    with np.load(path.with_suffix(".npz")) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    shown = {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in found.items()}
    inputs = {name[3:]: array for name, array in shown.items() if name.startswith("in/")}
    return inputs, [shown[f"out/{place}"] for place in range(len(shown) - len(inputs))]


def assert_close(want: Any, got: Any) -> None:
    assert want.shape == got.shape
    if want.dtype.kind == "f":
        limit = 5e-3 if want.dtype == np.float16 else 1e-5
        assert difference(want.astype(np.float64), got.astype(np.float64)) <= limit
    else:
        assert np.array_equal(want, got)


def flat_profile(graph: Graph) -> Profile:
    """A machine on which every layer takes a millisecond."""
    costs = tuple(LayerCost(layer.name, 1e-3, 1e-3, 1e-3) for layer in graph.layers)
    return Profile(graph.digest, "flat", "cpu", 1, costs, 1e-3 * len(costs), 1)


def test_all_frameworks_are_here() -> None:
    known = {"pytorch", "pytorch-legacy", "keras", "jax", "paddle", "sklearn"}
    assert {path.parent.name for path in MODELS} == known


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_tried_cut_is_right(path: Path) -> None:
    feeds, answers = kept(path)
    check = check_of(load_model(path), OPTIONS, SampleOptions(arrays=feeds))
    whole = opener(OPTIONS)(path, True)(feeds)
    for want, got in zip(answers, whole.values(), strict=True):
        assert_close(want, got)
    for item in check.cuts(distinct_cuts(check.graph, 6)):
        assert not item.mismatches


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_split_over_grpc(path: Path, tmp_path: Path) -> None:
    feeds, answers = kept(path)
    model = load_model(path)
    graph = read_graph(model)
    flat = flat_profile(graph)
    middle = graph.ancestors(range((len(graph.layers) + 1) // 2))
    situation = PlanningProblem.of(graph, flat, flat, parse_link("wifi"))
    plan = make_plan(situation, "opss", cut_at(graph, middle))
    bundle = write_bundle(model, graph, plan, tmp_path / "b", missing_types(model, graph))
    with open_session(bundle, threads=1) as session:
        for want, got in zip(answers, session.run(None, feeds), strict=True):
            assert_close(want, got)


BATCHED = {
    "jax/mixer", "keras/convolutional", "paddle/squeeze", "pytorch/inception", "pytorch/residual",
    "pytorch-legacy/inception", "pytorch-legacy/residual",
}  # fmt: skip


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_rows_together_are_rows_alone_where_that_is_said(path: Path) -> None:
    """An open batch alone is not enough: the encoders and recurrent networks have one, too."""
    model = load_model(path)
    nodes = tuple(range(len(model.proto.graph.node)))
    why = why_alone(model, Part(nodes, (*model.values.inputs,), (*model.values.outputs,)))
    if "OFFLOAD_EXPORTED" not in os.environ:
        assert (why == "") == (f"{path.parent.name}/{path.stem}" in BATCHED), why
    if not why:
        assert disagreement(load(path, OPTIONS), 60) == ""
