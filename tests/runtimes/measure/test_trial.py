from pathlib import Path

import pytest
from offload.bundle.sample_inputs import draw
from offload.costs.link import Link
from offload.graph.load import load_model
from offload.planning.cut import cut_after
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.plan_trial import MachinePair, try_plans
from offload_runtimes.measure.profile import measure, optimized_model

from tests.toolkit.models import two_branches


def test_all_schemes_are_run_and_agree(tmp_path: Path) -> None:
    model = load_model(two_branches(tmp_path / "model.onnx", 64))
    subject = optimized_model(model, tmp_path, {"x": (16, 64)}, frozenset({"left", "right"}))
    options = EngineOptions(threads=1)
    link = Link(1e7, 1e7)
    profile = measure(subject, options, runs=3)
    assert sum(cost.seconds_s for cost in profile.layers) == pytest.approx(profile.whole_s)
    situation = PlanningProblem.of(subject.graph, profile, profile, link)
    feeds = draw(subject.inputs)
    bench = MachinePair(model, subject.graph, feeds, link, 1.0, options, tmp_path)
    cut = cut_after(subject.graph, ["left", "right"])
    plans = {
        "LO": make_plan(situation, "local"),
        "CO": make_plan(situation, "cloud"),
        "cut": make_plan(situation, "opss", cut),
    }
    trials = {trial.label: trial for trial in try_plans(bench, plans, repeats=2)}
    assert {label: len(trial.seconds) for label, trial in trials.items()} == dict.fromkeys(plans, 2)
    assert max(trial.difference for trial in trials.values()) < 1e-5
    assert trials["LO"].upload_bytes == 0
    assert trials["CO"].upload_bytes == 16 * 64 * 4
    assert trials["cut"].latency_s >= link.upload_s(2 * 16 * 64 * 4)
