"""Shares of a stream's frames against every vertex of the linear program."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from offload.planning.plan import ResourceUse
from offload.planning.shares import fewest_members, share_frames

from tests.toolkit.planning.oracle import best_rate_hz


@given(st.lists(st.tuples(*(st.integers(0, 9),) * 4), min_size=1, max_size=9))
def test_shares_of_given_plans_are_the_best_vertex_and_prices_prove_it(
    rows: list[tuple[int, int, int, int]],
) -> None:
    uses = [ResourceUse(*row) for row in rows]
    shared = share_frames(uses)
    assert shared.rate_hz == pytest.approx(best_rate_hz(rows))
    assert sum(shared.shares) == pytest.approx(1)
    assert min(shared.shares) >= 0
    if shared.rate_hz < float("inf"):
        busy = shared.rate_hz * (np.array(shared.shares) @ np.array(rows))
        assert busy.max() <= 1 + 1e-9
        assert (np.array(rows) @ shared.prices).min() >= 1 - 1e-9, "no plan pays"
        assert sum(shared.prices) == pytest.approx(shared.rate_hz)
        assert sum(share > 0 for share in shared.shares) <= 4


uses = st.tuples(*(st.integers(0, 9),) * 3, st.integers(1, 9)).map(lambda row: ResourceUse(*row))


@given(
    st.integers(1, 5).flatmap(
        lambda plans: st.lists(st.lists(uses, min_size=plans, max_size=plans), max_size=3)
    ),
    st.sampled_from((0.0, 0.05, 0.3)),
)
def test_members_are_left_out_only_if_the_others_are_nearly_as_fast(
    rows: list[list[ResourceUse]], worth: float
) -> None:
    assume(rows)
    best_hz = [share_frames(row).rate_hz for row in rows]
    kept = fewest_members(rows, best_hz, 1, worth)
    assert kept[0] == 0

    def lost(numbers: Sequence[int]) -> float:
        rates = [share_frames([row[number] for number in numbers]).rate_hz for row in rows]
        return max(1 - rate / best for rate, best in zip(rates, best_hz, strict=True))

    assert lost(kept) <= worth + 1e-5
    for number in kept[1:]:
        assert lost([n for n in kept if n != number]) > worth
    assert fewest_members(rows, best_hz, 1, worth, lambda numbers: len(numbers) < 2) == [0]
