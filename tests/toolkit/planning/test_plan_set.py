"""The plans of a sweep tile it; a plan is left only when another is surely better."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.costs.link import Link, parse_links
from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.cut_costs import Costs
from offload.planning.plan import Plan, Speeds
from offload.planning.plan_set import (
    EVERYWHERE,
    BandwidthRange,
    PlanSet,
    SlowdownRanges,
    SwitchPolicy,
    SwitchState,
    best_of,
    covers_all,
    plans_over,
    slowdowns_between,
    step,
)
from offload.planning.planner import at_planned_speed, make_plan
from offload.planning.problem import Constraints, Objective

from tests.toolkit.graphs import graphs_with_costs
from tests.toolkit.planning.test_plan import DIAMOND, on

LINKS = parse_links("0.1..1000 Mbit/s", Link(1e6, 2e6, 0.001, 0.001), 9)


def swept(
    graph: Graph, costs: Costs, objective: Objective = Objective.LATENCY
) -> tuple[list[Plan], PlanSet]:
    """The plan of each link, and what is kept of them."""
    plans = [make_plan(on(graph, costs, link, objective)) for link in LINKS]
    by_rate = {link.up_bps: plan for link, plan in zip(LINKS, plans, strict=True)}
    return plans, plans_over(lambda link, _: by_rate[link.up_bps], LINKS)


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
    plan_set = plans_over(lambda link, _: by_rate[link.up_bps], LINKS, worth)
    assert covers_all(plan_set.ranges, len(plan_set.plans))
    assert len(plan_set.plans) <= len(every.plans)
    assert {plan.program for plan in plan_set.plans} <= {plan.program for plan in every.plans}
    for link, plan in zip(LINKS, plans, strict=True):
        chosen = plan_set.plans[plan_set.at(link.up_bps)]
        assert chosen.forecast.value_s(link) <= plan.forecast.value_s(link) * (1 + worth) + 1e-12
    last = plans_over(lambda link, _: by_rate[link.up_bps], LINKS, 1e9)
    assert len(last.plans) == 1


SLOWDOWNS = (1.0, 4.0, 16.0)


@given(
    graphs_with_costs(5),
    st.sampled_from((Objective.LATENCY, Objective.THROUGHPUT)),
    st.sampled_from((0.0, 0.05, 0.3)),
)
@settings(deadline=None, max_examples=40)
def test_in_a_region_no_plan_is_better_by_more_than_worth(
    drawn: tuple[Graph, Costs], objective: Objective, worth: float
) -> None:
    graph, costs = drawn
    planned: dict[tuple[Link, float], Plan] = {}
    best_s: dict[tuple[Link, float], float] = {}

    def plan_at(link: Link, slowdown: float) -> Plan:
        slower = replace(costs, device_s=tuple(slowdown * s for s in costs.device_s))
        plan = make_plan(on(graph, slower, link, objective))
        best_s[link, slowdown] = plan.forecast.value_s(link)
        planned[link, slowdown] = at_planned_speed(plan, slowdown)
        return planned[link, slowdown]

    plan_set = plans_over(plan_at, LINKS[3:6], worth, SLOWDOWNS)
    assert covers_all(plan_set.ranges, len(plan_set.plans), (), plan_set.slower)
    assert [each.slowdown for each in plan_set.slower] == [4.0, 16.0]
    by_slowdown = {1.0: plan_set.ranges, **{e.slowdown: e.ranges for e in plan_set.slower}}
    for (link, slowdown), planned_s in best_s.items():
        speeds = Speeds(device=slowdown)
        values = [plan.forecast.value_s(link, speeds) for plan in planned.values()]
        assert planned[link, slowdown].forecast.value_s(link, speeds) == pytest.approx(planned_s)
        kept = [plan.forecast.value_s(link, speeds) for plan in plan_set.plans]
        (here,) = (r.plan for r in by_slowdown[slowdown] if r.low_bps <= link.up_bps < r.high_bps)
        assert kept[here] <= planned_s * (1 + worth) * (1 + 1e-9) + 1e-12
        assert min(kept) <= min(values) * (1 + worth) * (1 + 1e-9) + 1e-12
    first = [
        min((i for i, r in enumerate(plan_set.ranges) if r.plan == n), default=math.inf)
        for n in range(len(plan_set.plans))
    ]
    assert first == sorted(first), "plans without a range as planned come last"


def diamond_at(link: Link, slowdown: float) -> Plan:
    graph, costs = DIAMOND
    slower = replace(costs, device_s=tuple(slowdown * s for s in costs.device_s))
    return at_planned_speed(make_plan(on(graph, slower, link, Objective.LATENCY)), slowdown)


def test_at_a_border_of_a_slow_device_both_plans_take_as_long() -> None:
    plan_set = plans_over(diamond_at, LINKS, 0.0, (1.0, 3.0))
    (slower,) = plan_set.slower
    assert len(slower.ranges) > 1
    for before, after in itertools.pairwise(slower.ranges):
        border = replace(LINKS[0], up_bps=before.high_bps, down_bps=2 * before.high_bps)
        first, second = (
            plan_set.plans[r.plan].forecast.value_s(border, Speeds(device=3.0))
            for r in (before, after)
        )
        assert first == pytest.approx(second, rel=1e-6)


def test_a_plan_for_a_slow_device_is_kept_behind_those_as_planned() -> None:
    plan_set = plans_over(diamond_at, [Link(20e6, 20e6)], 0.05, (1.0, 100.0))
    local, cloud = plan_set.plans
    assert (local.scheme, cloud.scheme) == ("local", "cloud")
    assert plan_set.ranges == EVERYWHERE
    assert plan_set.slower == (SlowdownRanges(100.0, (BandwidthRange(0.0, math.inf, 1),)),)
    assert (local.slowdown, cloud.slowdown) == (1.0, 100.0)
    assert local.made_for == "20 Mbit/s"
    assert cloud.made_for == "20 Mbit/s, device 100x slower"


@given(graphs_with_costs(5), st.floats(1, 50))
def test_a_plan_at_planned_speed_is_valid(drawn: tuple[Graph, Costs], slowdown: float) -> None:
    plan = at_planned_speed(make_plan(on(*drawn, LINKS[4], Objective.LATENCY)), slowdown)
    assert plan.lower_bound_s <= plan.latency_s
    assert (plan.status == "optimal") == (plan.latency_s <= plan.lower_bound_s * (1 + 1e-9))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("least", "most", "count"), [(1, 3, 3), (1, 2, 2), (2, 2.1, 2), (0.5, 4, 4), (1, 1e9, 7)]
)
def test_few_slowdowns_are_planned(least: float, most: float, count: int) -> None:
    factors = slowdowns_between(least, most)
    assert (factors[0], factors[-1], len(factors)) == (least, most, count)
    ratios = [b / a for a, b in itertools.pairwise(factors)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


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

    def planned(link: Link, _: float) -> Plan:
        return make_plan(replace(on(*DIAMOND, link, Objective.LATENCY), constraints=constraints))

    with pytest.raises(InputError, match=r"^on a link of .*: no plan keeps the limits deadline"):
        plans_over(planned, LINKS)

    def slow(link: Link, slowdown: float) -> Plan:
        if slowdown == 1:
            return make_plan(on(*DIAMOND, link, Objective.LATENCY))
        return planned(link, slowdown)

    with pytest.raises(InputError, match=r"^on a link of .* with the device 1.5x slower: no plan"):
        plans_over(slow, LINKS, slowdowns=(1.0, 1.5))


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
    assert covers_all(EVERYWHERE, 2, (0.5, 0.5))
    assert not covers_all(EVERYWHERE, 2)


ONE = (BandwidthRange(0.0, math.inf, 1),)


def test_ranges_of_slow_downs_must_be_complete() -> None:
    assert covers_all(EVERYWHERE, 2, (), (SlowdownRanges(2.0, ONE),))
    assert covers_all(EVERYWHERE, 2, (0.5, 0.5), (SlowdownRanges(2.0, EVERYWHERE),))
    assert not covers_all(EVERYWHERE, 3, (), (SlowdownRanges(2.0, ONE),)), "a plan without a range"
    assert not covers_all(EVERYWHERE, 1, (), (SlowdownRanges(2.0, ONE),)), "a range without a plan"
    assert not covers_all(EVERYWHERE, 2, (), (SlowdownRanges(2.0, ()), SlowdownRanges(3.0, ONE)))
    for wrong in ((1.0,), (0.5,), (3.0, 2.0), (2.0, 2.0), (math.inf,), (math.nan,)):
        assert not covers_all(EVERYWHERE, 2, (), [SlowdownRanges(each, ONE) for each in wrong])


def test_ranges_keep_open_ends_through_json() -> None:
    for each in (*EVERYWHERE, BandwidthRange(1e6, 2e6, 3)):
        assert BandwidthRange.from_json(each.to_json()) == each


POLICY = SwitchPolicy(margin=0.1, estimates=3, dwell_s=2.0)
seconds = st.floats(1e-3, 10)


def follow(estimates: Sequence[tuple[float, ...]], policy: SwitchPolicy = POLICY) -> list[int]:
    """The plan after each estimate, four a second, from plan 0 on."""
    state, seen = SwitchState(0), []
    for number, values in enumerate(estimates):
        state = step(state, values, number / 4, policy)
        seen.append(state.plan)
    return seen


def test_it_takes_three_estimates_in_a_row() -> None:
    assert follow([(2.0, 1.0)] * 4) == [0, 0, 1, 1]
    assert follow([(2.0, 1.0), (2.0, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 1.0)]) == [0] * 5


def test_less_than_the_margin_is_not_enough() -> None:
    assert set(follow([(1.09, 1.0)] * 20)) == {0}
    assert follow([(1.11, 1.0)] * 3) == [0, 0, 1]


def test_which_of_two_better_plans_may_change_meanwhile() -> None:
    assert follow([(3.0, 1.0, 1.1), (3.0, 1.1, 1.0), (3.0, 1.1, 1.0)]) == [0, 0, 2]


def test_a_plan_is_kept_for_a_while() -> None:
    back_and_forth = [(2.0, 1.0)] * 3 + [(1.0, 2.0)] * 10
    seen = follow(back_and_forth)
    assert seen[2] == 1
    assert seen[2:].index(0) == 8, "two seconds, though three estimates had passed in one"


def test_one_that_cannot_run_is_never_taken() -> None:
    assert set(follow([(2.0, math.inf)] * 9)) == {0}
    assert follow([(math.inf, 2.0)] * 3) == [0, 0, 1]


@given(
    st.lists(st.tuples(seconds, seconds, seconds), max_size=60),
    st.floats(0, 1),
    st.integers(1, 5),
    st.floats(0, 3),
)
def test_every_change_was_earned(
    estimates: list[tuple[float, ...]], margin: float, count: int, dwell_s: float
) -> None:
    policy = SwitchPolicy(margin, count, dwell_s)
    plans = [0, *follow(estimates, policy)]
    last = -math.inf
    for number in range(1, len(plans)):
        before, after = plans[number - 1 : number + 1]
        if before != after:
            now_s = (number - 1) / 4
            assert now_s - last >= dwell_s
            last = now_s
            earned = estimates[max(number - count, 0) : number]
            assert len(earned) == count
            assert all(min(values) * (1 + margin) < values[before] for values in earned)
            assert estimates[number - 1][after] == min(estimates[number - 1])


@given(st.floats(0.95, 1.05), st.lists(st.floats(0.96, 1.04), min_size=40, max_size=40))
def test_noise_around_a_border_changes_nothing(ratio: float, noise: list[float]) -> None:
    """Two plans whose times differ by less than the error of the estimates."""
    assert set(follow([(ratio * each, 1.0) for each in noise])) == {0}


def test_ties_stay() -> None:
    assert best_of((1.0, 1.0), 1) == 1
    assert best_of((1.0, 1.0, 0.5), 1) == 2


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"estimates": 0}, {"dwell_s": -1.0}])
def test_wrong_policys_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="margin and times must be"):
        SwitchPolicy(**wrong)  # type: ignore[arg-type]
