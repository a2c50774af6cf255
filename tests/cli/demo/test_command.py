"""The demo's sentence, table and page agree with what was measured."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offload.bundle.layers import TimedGraph
from offload.costs.link import Link
from offload.planning.plan import Side
from offload.planning.planner import make_plan
from offload_cli.demo.command import ScenarioResult, write_files
from offload_cli.demo.scenarios import Scenario
from offload_runtimes.measure.plan_trial import PlanTrial

from tests.toolkit.report.test_charts import GRAPH, problem_at

PROBLEM = problem_at(Link(2e7, 2e7), 1.0)
PLANS = {label: make_plan(PROBLEM, label) for label in ("local", "cloud", "joint")}
SCENARIO = Scenario("A <net>", lambda _: None, {}, lambda _: "42", "wifi", 10.0)


def result(**seconds: float) -> ScenarioResult:
    trials = tuple(
        PlanTrial(
            label.upper(),
            PLANS[label],
            (took, took * 1.01, took * 0.99),
            PLANS[label].timeline,
            {"t3": np.zeros(1)},
            0.0,
        )
        for label, took in seconds.items()
    )
    model = TimedGraph(GRAPH, dict.fromkeys(Side, (0.1,) * len(GRAPH.layers)))
    return ScenarioResult(SCENARIO, model, PLANS["joint"], trials)


def test_the_sentence_has_the_figures_of_the_table() -> None:
    slower = result(local=2.0, cloud=0.5, joint=1.0)
    for figure in ("1.00 s measured", "2.0x faster than LOCAL (2.00 s)", "CLOUD is the fastest"):
        assert figure in slower.sentence
    cells = {cell for row in slower.rows for cell in row}
    for figure in re.findall(r"[\d.]+ m?s\b", slower.sentence):
        assert figure in cells
    assert "No other scheme is faster" in result(local=2.0, cloud=0.5, joint=0.4).sentence
    assert "CLOUD is as fast" in result(local=2.0, cloud=0.99, joint=1.0).sentence


def test_the_device_alone_is_predicted_or_the_reason_is_given() -> None:
    predicted_s = PLANS["local"].latency_s
    assert result(local=predicted_s * 1.09, joint=1.0).off_sentence == ""
    sentence = result(local=predicted_s * 0.65, joint=1.0).off_sentence
    assert "LOCAL took 35% less than predicted" in sentence
    assert "another speed" in sentence


def test_the_page_has_the_chart_first_and_links_to_files_that_exist(tmp_path: Path) -> None:
    page = write_files(tmp_path, [result(local=2.0, cloud=0.5, joint=1.0)]).read_text()
    assert page.index("Latency of every scheme") < page.index("<table>") < page.index("<details>")
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 6
    assert all((tmp_path / link).is_file() for link in links)
    assert "cut-figure" in page
    assert "A &lt;net&gt;" in page


def test_every_timeline_of_a_scene_has_the_same_axis(tmp_path: Path) -> None:
    write_files(tmp_path, [result(local=2.0, cloud=0.5, joint=1.0)])
    charts = [(tmp_path / f"scene-0-{name}.svg").read_text() for name in ("local", "cloud")]
    ticks = [re.findall(r'class="mid">([\d.]+)<', chart) for chart in charts]
    assert ticks[0] == ticks[1] != []


def test_lossy_schemes_are_named_as_such() -> None:
    made = result(local=2.0, cloud=0.5, joint=1.0)
    uploads = tuple(replace(send, encoding="fp16") for send in PLANS["cloud"].uploads)
    lossy = replace(made.trials[1], plan=replace(PLANS["cloud"], uploads=uploads))
    made = replace(made, trials=(made.trials[0], lossy, made.trials[2]))
    assert "CLOUD, which changes the outputs slightly, is the fastest" in made.sentence
    assert pytest.approx(0.0) == made.lossless_difference
