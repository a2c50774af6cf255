"""The certified search agrees with dynamic programming, and its parts with plain enumeration."""

import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from offload.scheduling.cut_point_reduction import ReducedInstance, bits
from offload.scheduling.exact import subset_order
from offload.scheduling.search.bounds import ReachableStates, reachability_bound_s
from offload.scheduling.search.minimum_cut import lowest_closed_set, maximum_flow
from offload.scheduling.search.search import FeasibilitySearch, search
from offload.scheduling.search.space import search_space

SECONDS = st.sampled_from([0.0, 0.1, 1.0, 2.0, 3.0, 7.0]) | st.floats(0.0, 10.0)


@st.composite
def problems(draw: st.DrawFn, most: int = 8) -> ReducedInstance:
    """Blocks over random sets of cut points; what a block of one cut point needs comes first."""
    count = draw(st.integers(1, most))
    upload_s = tuple(draw(SECONDS) + 0.01 for _ in range(count))
    masks = draw(st.lists(st.integers(1, (1 << count) - 1), max_size=12))
    blocks = {mask: draw(SECONDS) for mask in masks}
    need = [0] * count
    for after in range(1, count):
        before = draw(st.integers(-2 * count, after - 1))
        if before >= 0:
            need[after] |= 1 << before | need[before]
    closed: dict[int, float] = {}
    for mask, seconds in blocks.items():
        for bit in range(count):
            mask |= 1 << bit if any(need[bit] >> b & 1 for b in bits(mask)) else 0
        closed[mask] = closed.get(mask, 0.0) + seconds
    return ReducedInstance(tuple(range(count)), upload_s, closed, tuple(need), (0,) * count, {})


def height_s(problem: ReducedInstance, chosen: int) -> float:
    return problem.set_compute_s(chosen) - sum(problem.upload_s[bit] for bit in bits(chosen))


def climbed_s(problem: ReducedInstance, chosen: int, bit: int) -> float:
    return height_s(problem, chosen | 1 << bit) + problem.upload_s[bit] * (not chosen >> bit & 1)


def is_closed(problem: ReducedInstance, chosen: int) -> bool:
    return all(problem.need[bit] & ~chosen == 0 for bit in bits(chosen))


def peak_s(problem: ReducedInstance, order: list[int]) -> float:
    chosen, sent, peak = 0, 0.0, 0.0
    for bit in order:
        assert problem.need[bit] & ~chosen == 0
        chosen |= 1 << bit
        peak = max(peak, problem.set_compute_s(chosen) - sent)
        sent += problem.upload_s[bit]
    assert chosen == (1 << len(problem.cuts)) - 1
    return peak


@settings(max_examples=600, deadline=None)
@given(problems())
def test_search_finds_and_proves_the_lowest_peak(problem: ReducedInstance) -> None:
    order, bound_s = search(problem, time.monotonic() + 20.0)
    _, best_s = subset_order(problem.upload_s, problem.blocks, problem.need)
    assert peak_s(problem, order) == pytest.approx(best_s)
    assert bound_s == pytest.approx(best_s)


@settings(max_examples=300, deadline=None)
@given(problems(), st.floats(0.0, 1.2), st.booleans(), st.integers(1, 3))
def test_a_decision_is_never_wrong(
    problem: ReducedInstance, share: float, forward: bool, width: int
) -> None:
    """Narrow frontiers too: yes comes with an order, a complete no means none below next_s."""
    everything = (1 << len(problem.cuts)) - 1
    _, best_s = subset_order(problem.upload_s, problem.blocks, problem.need)
    limit_s = share * best_s
    space = search_space(problem, 0, everything, forward)
    attempt = FeasibilitySearch(limit_s, width, time.monotonic() + 20.0)
    taken = attempt.order(space)
    slack = 1e-9 * max(1.0, best_s)
    if taken is not None:
        assert peak_s(problem, space.in_order(taken)) <= limit_s + slack
    elif attempt.complete:
        assert limit_s < best_s + slack
        assert attempt.next_s <= best_s + slack


@settings(max_examples=300, deadline=None)
@given(problems(), st.data())
def test_the_minimum_cut_is_the_lowest_closed_set(
    problem: ReducedInstance, data: st.DataObject
) -> None:
    everything = (1 << len(problem.cuts)) - 1
    closed = [s for s in range(everything + 1) if is_closed(problem, s)]
    high = data.draw(st.sampled_from(closed))
    low = data.draw(st.sampled_from([s for s in closed if s & ~high == 0]))
    lowest_set = lowest_closed_set(problem.blocks, problem.upload_s, low, high)
    assert low & ~lowest_set == 0
    assert lowest_set & ~high == 0
    assert is_closed(problem, lowest_set)
    between = [s for s in closed if low & ~s == 0 and s & ~high == 0]
    lowest_s = min(height_s(problem, s) for s in between)
    assert height_s(problem, lowest_set) == pytest.approx(lowest_s, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(problems(6), st.integers(0, 63), st.sets(st.integers(0, 11)))
def test_the_unsent_seconds_bound_the_cost_of_paying_for_blocks(
    problem: ReducedInstance, free: int, paid: set[int]
) -> None:
    free &= (1 << len(problem.cuts)) - 1
    masks = [mask for place, mask in enumerate(problem.blocks) if place in paid]
    lowest, left = maximum_flow(problem.blocks, problem.upload_s, free)
    lifted_s = min(
        height_s(problem, s) + sum(problem.blocks[mask] for mask in masks if not mask & s)
        for s in range(free + 1)
        if not s & ~free
    )
    assert lifted_s >= height_s(problem, lowest) + sum(left[mask] for mask in masks) - 1e-9


@settings(max_examples=300, deadline=None)
@given(problems(), st.floats(0.0, 1.0))
def test_the_reach_bound_is_a_bound(problem: ReducedInstance, share: float) -> None:
    everything = (1 << len(problem.cuts)) - 1
    _, best_s = subset_order(problem.upload_s, problem.blocks, problem.need)
    between_s = share * best_s, best_s + 10.0
    bound_s = reachability_bound_s(problem, 0, everything, between_s, time.monotonic() + 20.0)
    assert between_s[0] <= bound_s <= best_s + 1e-9 * max(1.0, best_s)


@settings(max_examples=300, deadline=None)
@given(problems(6), SECONDS)
def test_the_reached_set_is_what_its_states_reach(problem: ReducedInstance, limit_s: float) -> None:
    everything = (1 << len(problem.cuts)) - 1
    result = ReachableStates(problem, 0, everything, time.monotonic() + 20.0).under(limit_s, 0)
    reached, lowest_s = 0, 0.0
    while lowest_s <= limit_s and reached != everything:
        climbs_s = {
            bit: min(climbed_s(problem, s, bit) for s in range(reached + 1) if not s & ~reached)
            for bit in range(len(problem.cuts))
            if not reached >> bit & 1 and not problem.need[bit] & ~reached
        }
        bit = min(climbs_s, key=climbs_s.__getitem__)
        lowest_s = climbs_s[bit]
        assume(abs(lowest_s - limit_s) > 1e-9)  # else rounding decides
        reached |= (lowest_s <= limit_s) << bit
    assert result is not None
    assert result[0] == reached
    assert result[1] == (math.inf if reached == everything else pytest.approx(lowest_s))
