import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from offload.costs.link import Link, parse_links
from offload.planning.cut_costs import Costs
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload.planning.sweep import SweepPoint, sweep, winning_intervals
from offload.report.charts import SchemeTimes, pairs_svg, what_if_svg
from offload.report.svg import COLOURS, NAMES, Axis

from tests.toolkit.graphs import graph_of

SVG = "{http://www.w3.org/2000/svg}"
GRAPH = graph_of([(0, 1), (0, 2), (1, 3), (2, 3)], 4)
BYTES = {"x": 4e6, "t0": 2e6, "t1": 1e5, "t2": 1e5, "t3": 1e3}


def problem_at(link: Link, slowdown: float) -> PlanningProblem:
    device_s = (0.2 * slowdown, 0.3 * slowdown, 0.3 * slowdown, 0.4 * slowdown)
    return PlanningProblem(
        GRAPH,
        Costs(
            device_s,
            (0.01, 0.01, 0.01, 0.02),
            {name: link.upload_s(size) for name, size in BYTES.items()},
            {"t3": link.download_s(1e3)},
            {name: int(size) for name, size in BYTES.items()},
        ),
    )


LINKS = parse_links("1..1000 Mbit/s", Link(1e6, 2e6, 0.01, 0.01), 25)
CELLS = list(sweep(problem_at, LINKS, (1.0, 3.0)))


def test_the_sentence_of_every_cell_names_the_one_that_won() -> None:
    assert len(CELLS) == 50
    for cell in CELLS:
        link = next(link for link in LINKS if link.up_bps == cell.rate_bps)
        reason = make_plan(problem_at(link, cell.slowdown)).reason
        assert f"({cell.winner})" in reason.partition(" wins at ")[0].partition(" takes ")[0]
        simple = [cell.latency_s(scheme) for scheme in ("local", "cloud", "partition")]
        assert cell.chosen.latency_s <= min(s for s in simple if s is not None) * (1 + 1e-9)


def test_every_cell_is_won_by_the_fastest_and_the_simplest_of_those() -> None:
    for cell in CELLS:
        best_s = min(a.latency_s for a in cell.alternatives)
        assert cell.chosen.latency_s <= best_s * (1 + 1e-9)
        first = next(a for a in cell.alternatives if a.latency_s <= best_s * (1 + 1e-9))
        assert cell.winner == first.scheme
    assert CELLS[0].winner == "local"
    assert CELLS[24].winner == "cloud"
    assert len({cell.winner for cell in CELLS}) > 2


def test_intervals_cover_the_range_without_gaps_and_change_plan_at_each_border() -> None:
    slow = [cell for cell in CELLS if cell.slowdown == 3.0]
    intervals = winning_intervals(slow)
    assert [cell for interval in intervals for cell in interval.cells] == slow
    assert intervals[0].from_bps == slow[0].rate_bps
    assert intervals[-1].to_bps == slow[-1].rate_bps
    for before, after in itertools.pairwise(intervals):
        assert before.to_bps == after.from_bps

        def plan(cell: SweepPoint) -> tuple[str, frozenset[str]]:
            return cell.winner, frozenset(cell.chosen.cut)

        assert plan(before.cells[0]) != plan(after.cells[0])


def test_the_chart_has_axes_units_legend_and_a_panel_for_each_slow_down() -> None:
    svg = what_if_svg(CELLS, "net <1>")
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.text]
    assert "net <1>" in texts
    assert texts.count("uplink bandwidth (Mbit/s)") == texts.count("predicted latency") == 2
    assert {"device slowed down 1x", "device slowed down 3x", "1000", "wins"} <= set(texts)
    assert COLOURS.keys() == NAMES.keys()


def test_the_legend_names_only_schemes_that_are_drawn() -> None:
    svg = what_if_svg(CELLS, "net")
    lines = {title.text for title in ET.fromstring(svg).iter(f"{SVG}title")}
    named = [name for name in NAMES.values() if f">{name}</text>" in svg]
    assert named
    for name in named:
        scheme = next(key for key, value in NAMES.items() if value == name)
        wins = any(str(line).startswith(f"{scheme}: ") for line in lines)
        assert name in lines or wins
    equal = [
        replace(cell, alternatives=(local, replace(local, scheme="joint")), chosen=local)
        for cell in CELLS
        for local in cell.alternatives
        if local.scheme == "local"
    ]
    assert NAMES["joint"] not in what_if_svg(equal, "net")


def test_pairs_have_one_axis_and_a_bar_for_each_time() -> None:
    schemes = [
        SchemeTimes("LO", 2.0, (2.0, 1.9, 2.2)),
        SchemeTimes(
            "a = name = of = many = schemes = that = are = one = program", 1.0, (1.0,), True
        ),
        SchemeTimes("not predicted", None, (4.0,)),
    ]
    root = ET.fromstring(pairs_svg("All", schemes))
    widths = {
        title.text: float(rect.get("width", ""))
        for rect in root.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    }
    first = widths["LO, predicted: 2.00 s"]
    assert widths["LO, measured: 2.00 s (1.90 s to 2.20 s)"] == first
    assert widths["not predicted, measured: 4.00 s (4.00 s to 4.00 s)"] == 2 * first
    assert len(widths) == 5
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "a = name = of = many = schemes =" in texts, "a long name takes several lines"


def test_a_long_title_is_not_clipped() -> None:
    title = "a title of many words that would not fit on a single line of this chart " * 3
    root = ET.fromstring(pairs_svg(title, [SchemeTimes("LO", 1.0, (1.0,))]))
    lines = [e.text or "" for e in root.iter(f"{SVG}text") if e.get("class") == "title"]
    assert " ".join(lines) == title.strip()
    assert max(map(len, lines)) * 9 < 860


def test_a_scheme_that_cannot_run_leaves_a_gap() -> None:
    pinned = [
        replace(cell, alternatives=tuple(a for a in cell.alternatives if a.scheme != "cloud"))
        for cell in CELLS
        if cell.winner != "cloud"
    ]
    assert NAMES["cloud"] not in what_if_svg(pinned, "net")


def test_log_ticks_are_round_and_inside() -> None:
    axis = Axis(0.9, 110.0, 0.0, 300.0, log=True)
    assert axis.ticks() == (1, 2, 5, 10, 20, 50, 100)
    assert axis.at(0.9) == 0.0
    assert axis.at(110.0) == pytest.approx(300.0)
    assert Axis(1.0, 4.0, 0, 1, log=True).ticks() == (1, 1.5, 2, 3, 4)
