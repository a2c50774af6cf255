"""Combining in rounds equals combining one by one, and both equal exhaustive search."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.scheduling import forest as forest_module
from offload.scheduling.forest import CompositeForest, Floats, Nodes, forest_order

SECONDS = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 0.1]) | st.floats(0.0, 10.0)
Forest = tuple[Nodes, Floats, Floats]


@st.composite
def forests(draw: st.DrawFn, most: int) -> Forest:
    """Parents, compute and upload; wide as often as deep."""
    count = draw(st.integers(1, most))
    reach = draw(st.sampled_from([1, 3, most]))
    parent = [draw(st.integers(max(-1, k - reach), k - 1)) for k in range(count)]
    compute_s, upload_s = ([draw(SECONDS) for _ in range(count)] for _ in range(2))
    return np.array(parent, dtype=np.intp), np.array(compute_s), np.array(upload_s)


def in_rounds(forest: Forest) -> CompositeForest:
    combined = CompositeForest(*forest)
    with patch.object(forest_module, "_MIN_ROUND", 1):
        combined.combine_in_rounds()
    return combined


def peak_s(forest: Forest, order: list[int]) -> float:
    _, compute_s, upload_s = forest
    sent = np.append(0.0, np.cumsum(upload_s[order]))[:-1]
    return float((np.cumsum(compute_s[order]) - sent)[upload_s[order] > 0].max(initial=0.0))


def lowest_peak_s(forest: Forest) -> float:
    """By dynamic programming over the closed sets of nodes."""
    parent, compute_s, upload_s = forest
    best = {0: 0.0}
    for _ in parent:
        grown: dict[int, float] = {}
        for done, peak in best.items():
            nodes = [v for v in range(len(parent)) if done >> v & 1]
            height = compute_s[nodes].sum() - upload_s[nodes].sum()
            for v, above in enumerate(parent.tolist()):
                if not done >> v & 1 and (above < 0 or done >> above & 1):
                    after = max(peak, height + compute_s[v] if upload_s[v] else 0.0)
                    key = done | 1 << v
                    grown[key] = min(grown.get(key, np.inf), after)
        best = grown
    return best[(1 << len(parent)) - 1]


@settings(max_examples=500, deadline=None)
@given(forests(60))
def test_rounds_settle_every_job_as_one_by_one_would(forest: Forest) -> None:
    combined, one_by_one = in_rounds(forest), CompositeForest(*forest)
    assert not len(combined.unsorted)
    one_by_one.combine_rest()
    assert combined.order().tolist() == one_by_one.order().tolist()
    assert forest_order(*forest).tolist() == one_by_one.order().tolist()


@settings(max_examples=300, deadline=None)
@given(forests(7))
def test_rounds_are_optimal(forest: Forest) -> None:
    order = in_rounds(forest).order().tolist()
    place = {v: k for k, v in enumerate(order)}
    assert sorted(order) == list(range(len(forest[0])))
    assert all(place[a] < place[v] for v, a in enumerate(forest[0].tolist()) if a >= 0)
    assert peak_s(forest, order) == pytest.approx(lowest_peak_s(forest))


def test_what_rounds_leave_goes_one_by_one() -> None:
    """A hundred long chains: as they end, fewer are ready than a round is worth."""
    count, width = 5000, 100
    parent = np.maximum(np.arange(count) - width, -1)
    times = np.random.default_rng(0).lognormal(size=(2, count))
    never, sometimes = CompositeForest(parent, *times), in_rounds((parent, *times))
    assert 0 < len(sometimes.unsorted) < len(never.unsorted)
    never.combine_rest()
    sometimes.combine_rest()
    assert sometimes.order().tolist() == never.order().tolist()
