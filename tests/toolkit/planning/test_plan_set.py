"""The plans of a sweep tile it, and each link gets the plan that was made for it."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Link, parse_links
from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.cut_costs import Costs
from offload.planning.plan import Plan
from offload.planning.plan_set import EVERYWHERE, BandwidthRange, PlanSet, covers_all, plans_over
from offload.planning.planner import make_plan
from offload.planning.problem import Constraints, Objective

from tests.toolkit.graphs import graphs_with_costs
from tests.toolkit.planning.test_forecast import DIAMOND, on

LINKS = parse_links("0.1..1000 Mbit/s", Link(1e6, 2e6, 0.001, 0.001), 9)


def swept(
    graph: Graph, costs: Costs, objective: Objective = Objective.LATENCY
) -> tuple[list[Plan], PlanSet]:
    """The plan of each link, and what is kept of them."""
    plans = [make_plan(on(graph, costs, link, objective)) for link in LINKS]
    by_rate = {link.up_bps: plan for link, plan in zip(LINKS, plans, strict=True)}
    return plans, plans_over(lambda link: by_rate[link.up_bps], LINKS)


@given(graphs_with_costs(6), st.sampled_from((Objective.LATENCY, Objective.THROUGHPUT)))
def test_ranges_tile_and_give_every_link_its_winner(
    drawn: tuple[Graph, Costs], objective: Objective
) -> None:
    plans, plan_set = swept(*drawn, objective)
    assert plan_set.ranges[0].low_bps == 0
    assert plan_set.ranges[-1].high_bps == math.inf
    for before, after in itertools.pairwise(plan_set.ranges):
        assert before.high_bps == after.low_bps
        assert before.plan != after.plan, "neighbours with the same program are one range"
    programs = [plan.program for plan in plan_set.plans]
    assert len(set(programs)) == len(programs), "a program is kept once"
    assert covers_all(plan_set.ranges, len(plan_set.plans))
    for link, plan in zip(LINKS, plans, strict=True):
        (interval,) = [r for r in plan_set.ranges if r.low_bps <= link.up_bps < r.high_bps]
        assert plan_set.at(link.up_bps) == interval.plan
        assert plan_set.plans[interval.plan].program == plan.program


@given(graphs_with_costs(6), st.floats(0.01, 0.5))
def test_plans_that_are_not_worth_it_are_left_out(drawn: tuple[Graph, Costs], worth: float) -> None:
    plans, every = swept(*drawn)
    by_rate = {link.up_bps: plan for link, plan in zip(LINKS, plans, strict=True)}
    plan_set = plans_over(lambda link: by_rate[link.up_bps], LINKS, worth)
    assert covers_all(plan_set.ranges, len(plan_set.plans))
    assert len(plan_set.plans) <= len(every.plans)
    assert {plan.program for plan in plan_set.plans} <= {plan.program for plan in every.plans}
    for link, plan in zip(LINKS, plans, strict=True):
        chosen = plan_set.plans[plan_set.at(link.up_bps)]
        assert chosen.forecast.value_s(link) <= plan.forecast.value_s(link) * (1 + worth) + 1e-12
    last = plans_over(lambda link: by_rate[link.up_bps], LINKS, 1e9)
    assert len(last.plans) == 1


@given(graphs_with_costs(5))
def test_at_a_border_both_plans_take_as_long(drawn: tuple[Graph, Costs]) -> None:
    """Where each is better at the link of the sweep on its side of the border, that is."""
    _, plan_set = swept(*drawn)
    for before, after in itertools.pairwise(plan_set.ranges):
        high = next(link for link in LINKS if link.up_bps >= before.high_bps)
        low = LINKS[LINKS.index(high) - 1]
        first, second = (plan_set.plans[r.plan].forecast for r in (before, after))
        border = replace(low, up_bps=before.high_bps, down_bps=2 * before.high_bps)
        if first.value_s(low) < second.value_s(low) and second.value_s(high) < first.value_s(high):
            assert first.value_s(border) == pytest.approx(second.value_s(border), rel=1e-6)


def test_the_diamond_leaves_the_device_step_by_step() -> None:
    plans, plan_set = swept(*DIAMOND)
    assert plans[0].is_local
    assert not plans[-1].is_local
    assert len(plan_set.ranges) > 1
    assert plan_set.at(1.0) == plan_set.ranges[0].plan
    assert plan_set.at(1e12) == plan_set.ranges[-1].plan


def test_limits_that_one_link_breaks_are_refused() -> None:
    constraints = Constraints(deadline_s=0.15)

    def planned(link: Link) -> Plan:
        return make_plan(replace(on(*DIAMOND, link, Objective.LATENCY), constraints=constraints))

    with pytest.raises(InputError, match=r"^on a link of .*: no plan keeps the limits deadline"):
        plans_over(planned, LINKS)


@pytest.mark.parametrize(
    "ranges",
    [
        (),
        (BandwidthRange(0.0, 5.0, 0),),
        (BandwidthRange(1.0, math.inf, 0),),
        (BandwidthRange(0.0, 5.0, 0), BandwidthRange(6.0, math.inf, 1)),
        (BandwidthRange(0.0, 5.0, 0), BandwidthRange(5.0, math.inf, 0)),
        (BandwidthRange(0.0, 0.0, 0), BandwidthRange(0.0, math.inf, 1)),
    ],
)
def test_gaps_are_seen(ranges: tuple[BandwidthRange, ...]) -> None:
    assert covers_all(EVERYWHERE, 1)
    assert not covers_all(ranges, 2 if ranges else 0)


def test_ranges_keep_open_ends_through_json() -> None:
    for each in (*EVERYWHERE, BandwidthRange(1e6, 2e6, 3)):
        assert BandwidthRange.from_json(each.to_json()) == each
