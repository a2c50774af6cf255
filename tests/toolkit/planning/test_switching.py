"""A plan is left when another is surely better, and only then."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.errors import InputError
from offload.planning.plan_set import SwitchPolicy, SwitchState, best_of, step

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
    """Two plans that take as long, give or take what estimates are off by."""
    assert set(follow([(ratio * each, 1.0) for each in noise])) == {0}


def test_ties_stay() -> None:
    assert best_of((1.0, 1.0), 1) == 1
    assert best_of((1.0, 1.0, 0.5), 1) == 2


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"estimates": 0}, {"dwell_s": -1.0}])
def test_wrong_policys_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="margin and times must be"):
        SwitchPolicy(**wrong)  # type: ignore[arg-type]
