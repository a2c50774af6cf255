"""Bending a table of layers to measured beginnings, and what is said about odd timings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload_runtimes.planning.calibrate import calibrated, checkpoints, remarks, time_in_turns

from tests.toolkit.graphs import graph_of

CHAIN = graph_of([(i, i + 1) for i in range(5)], 6)
FORK = graph_of([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)], 5)


@given(
    st.lists(st.floats(0, 10), min_size=6, max_size=6),
    st.floats(0.1, 100),
    st.dictionaries(st.sampled_from([1, 3]), st.floats(0, 100)),
)
def test_layers_sum_to_what_was_measured(
    shares: list[float], whole_s: float, measured_s: dict[int, float]
) -> None:
    found = calibrated(CHAIN, shares, whole_s, measured_s)
    assert min(found) >= 0
    assert sum(found) == pytest.approx(whole_s)
    if measured_s.get(1, 0) <= min(whole_s, measured_s.get(3, whole_s)) and 1 in measured_s:
        assert sum(found[:2]) == pytest.approx(measured_s[1])


def test_layers_between_two_checkpoints_keep_their_shares() -> None:
    assert calibrated(CHAIN, [1, 3, 1, 1, 2, 2], 20.0, {1: 8.0}) == [2, 6, 2, 2, 4, 4]


def test_checkpoints_divide_the_time_at_gates() -> None:
    assert checkpoints(CHAIN, [1.0] * 6, 2) == [1, 3]
    assert checkpoints(FORK, [1.0] * 5, 1) == [0]
    assert checkpoints(CHAIN, [1e-6] * 6) == [], "nothing is to be had below the clock's noise"


def test_pieces_take_turns() -> None:
    seen: list[str] = []
    work = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    seconds = time_in_turns(work, 4, 60.0)
    assert "".join(seen) == "aaabbb" + "ab" * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert len(time_in_turns(work, 50, 0.0)["a"]) == 3


def test_throttling_and_scatter_are_said_and_steady_runs_are_not() -> None:
    assert remarks([1.0, 1.01] * 6) == []
    (throttled,) = remarks([1.0] * 5 + [1.1] * 5 + [1.3] * 5)
    assert "1.30x slower while it was measured" in throttled
    (scattered,) = remarks([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    assert "scatter" in scattered
    assert remarks([1.0]) == []
