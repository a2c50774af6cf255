"""Outputs of varying length: rows are matched, what has no partner counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload_runtimes.measure.accuracy import change, matched_change, varying_axis

BOXES = np.array([[0, 0, 10, 10], [50, 50, 90, 100], [20, 0, 30, 5]], np.float32)


@given(st.permutations(range(3)), st.floats(0, 0.01))
def test_order_does_not_matter(order: list[int], moved: float) -> None:
    worst, mean = matched_change(BOXES, BOXES[order] + np.float32(100 * moved), 0)
    assert worst == pytest.approx(moved, abs=1e-6)
    assert mean == pytest.approx(moved, abs=1e-6)


def test_rows_without_a_partner_count_by_their_share() -> None:
    assert matched_change(BOXES, BOXES[:2], 0) == pytest.approx((1 / 3, 1 / 3))
    assert matched_change(BOXES[1:], BOXES, 0) == pytest.approx((1 / 3, 1 / 3))
    assert matched_change(BOXES, BOXES[:0], 0) == (1.0, 1.0)
    assert matched_change(BOXES[:0], BOXES[:0], 0) == (0.0, 0.0)


def test_whole_numbers_are_equal_or_not() -> None:
    places = np.array([[0, 0, 1], [2, 5, 1]])  # as NonZero gives them: a place a column
    assert matched_change(places, places[:, ::-1], 1) == (0.0, 0.0)
    assert matched_change(places, places[:, :2], 1) == pytest.approx((1 / 3, 1 / 3))
    assert matched_change(np.array(["a", "b"], object), np.array(["b"], object), 0)[0] == 0.5


def test_what_is_not_finite_is_an_endless_change() -> None:
    lost = BOXES.copy()
    lost[1, 2] = np.nan
    assert matched_change(BOXES, lost, 0)[0] == np.inf
    assert matched_change(lost, lost, 0) == (0.0, 0.0)


def test_many_rows_are_matched_in_sorted_order() -> None:
    rows = np.arange(3000, dtype=np.float32)[:, None].repeat(2, axis=1)
    worst, _ = matched_change(rows, rows[::-1] + np.float32(0.25), 0)
    assert worst == pytest.approx(0.25 / 2999, rel=1e-3)


def test_the_axis_that_varies_is_found() -> None:
    shapes = ((3, 4), (5, 4), (3, 4))
    assert varying_axis(*(np.zeros(shape) for shape in shapes)) == 0
    assert varying_axis(np.zeros((3, 4)), np.zeros((3, 4))) is None
    assert varying_axis(np.zeros((3, 4)), np.zeros((4, 3))) is None
    assert varying_axis(np.zeros(3), np.zeros((3, 1))) is None
    assert change(BOXES, BOXES[:2, :3], 0)[0] == np.inf
