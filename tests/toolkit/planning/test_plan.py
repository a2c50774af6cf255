"""Plans, their files, and their forecasts: what the planner would predict of the same program."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Link
from offload.errors import InputError
from offload.graph.model import Graph, Tensor
from offload.planning.cut_costs import Costs
from offload.planning.plan import Forecast, Plan
from offload.planning.planner import compare, make_plan, plan_of
from offload.planning.problem import Constraints, Objective, PlanningProblem
from offload.planning.scheme import SchemeEstimate, estimate_program, forecast_of
from offload.records import from_json, to_json

from tests.toolkit.graphs import graph_of, graphs_with_costs

GRAPH = graph_of([(0, 1), (0, 2), (1, 3), (2, 3)], 4)
COSTS = Costs(
    (1.0, 1.0, 1.0, 9.0),
    (0.1, 0.1, 0.1, 0.9),
    {"x": 90.0, "t0": 90.0, "t1": 1.0, "t2": 1.0, "t3": 1.0},
    {"t3": 0.0},
    dict.fromkeys(("x", "t0", "t1", "t2", "t3"), 32),
)
PLAN = make_plan(PlanningProblem(GRAPH, COSTS))


def test_overlap_wins_where_a_branch_uploads_while_the_other_computes() -> None:
    assert PLAN.scheme == "opss"
    assert PLAN.latency_s == pytest.approx(1 + 1 + 1 + 1 + 0.9)
    assert [segment.id for segment in PLAN.segments] == ["device-0", "device-1", "server-0"]
    assert "wins" in PLAN.reason


def test_forced_scheme_says_what_would_be_faster() -> None:
    plan = make_plan(PlanningProblem(GRAPH, COSTS), "local")
    assert plan.is_local
    assert plan.reason.startswith("all on the device (local) was asked for and takes 12.0 s;")


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="scheme 'best' is not known: use one of auto, local"):
        make_plan(PlanningProblem(GRAPH, COSTS), "best")


def test_other_formats_and_damage_are_refused() -> None:
    value: dict[str, Any] = PLAN.to_json()
    with pytest.raises(InputError, match="format 99"):
        Plan.from_json({**value, "format": 99})
    del value["steps"]
    with pytest.raises(InputError, match="damaged"):
        Plan.from_json(value)


RATES = st.floats(1e5, 1e9)
DIAMOND = (GRAPH, Costs((1.0,) * 4, (0.1,) * 4, {}, {}, {}))


def on(graph: Graph, costs: Costs, link: Link, objective: Objective) -> PlanningProblem:
    """The planning problem on a link, with tensors of many sizes."""
    sizes = {name: 1000 * 7**index % 900_000 for index, name in enumerate(graph.tensors)}
    tensors = {name: Tensor(name, "float", (1,), sizes[name]) for name in sizes}
    return PlanningProblem(
        replace(graph, tensors=tensors),
        replace(
            costs,
            device_s=tuple(s / 20 for s in costs.device_s),
            server_s=tuple(s / 400 for s in costs.server_s),
            upload_s={name: link.upload_s(size) for name, size in sizes.items()},
            download_s={name: link.download_s(size) for name, size in sizes.items()},
            size_bytes=sizes,
        ),
        Constraints(objective),
        link,
    )


@given(
    drawn=graphs_with_costs(6),
    rates=st.tuples(RATES, RATES),
    objective=st.sampled_from((Objective.LATENCY, Objective.THROUGHPUT)),
)
def test_it_is_what_the_planner_would_predict(
    drawn: tuple[Graph, Costs], rates: tuple[float, float], objective: Objective
) -> None:
    planned, moved_to = (
        on(*drawn, Link(rate, 2 * rate, 0.002, 0.001, overhead=1.05), objective) for rate in rates
    )
    for estimate in compare(planned):
        forecast = forecast_of(planned, estimate)
        for problem in (planned, moved_to):
            link = problem.link
            assert link
            moved: SchemeEstimate = estimate_program(
                problem, estimate.scheme, estimate.cut, estimate.program
            )
            assert forecast.latency_s(link) == pytest.approx(moved.latency_s)
            assert forecast.period_s(link) == pytest.approx(moved.alternative.period_s)
            assert forecast.value_s(link) == pytest.approx(moved.value)
            assert forecast.timeline(link) == plan_of(problem, (moved,), moved).timeline


@given(graphs_with_costs(5), RATES)
def test_a_plan_keeps_it_through_its_file(drawn: tuple[Graph, Costs], rate: float) -> None:
    link = Link(rate, rate)
    problem = on(*drawn, link, Objective.LATENCY)
    estimates = compare(problem)
    for chosen in estimates:
        plan = plan_of(problem, estimates, chosen)
        assert plan.forecast.latency_s(link) == pytest.approx(plan.latency_s)
        back = Plan.from_json(plan.to_json())
        assert (back.link, back.forecast) == (link, plan.forecast)


def test_a_damaged_one_is_refused() -> None:
    plan = make_plan(on(*DIAMOND, Link(1e6, 1e6), Objective.LATENCY))
    value = to_json(plan.forecast)
    with pytest.raises(InputError, match="one entry of upload_bytes for each job"):
        from_json(Forecast, {**value, "upload_bytes": [*value["upload_bytes"], 1]})
