from typing import Any

import pytest
from offload.errors import InputError
from offload.planning.cut_costs import Costs
from offload.planning.plan import Plan
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem

from tests.toolkit.graphs import graph_of

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
