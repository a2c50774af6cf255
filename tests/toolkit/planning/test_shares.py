"""Shares of a stream's frames against every vertex of the linear program."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from offload.planning.plan import ResourceUse
from offload.planning.shares import (
    DEFAULT_WINDOW,
    fewest_members,
    share_frames,
    shares_within,
    take_turn,
    window_for,
)

from tests.toolkit.planning.oracle import best_rate_hz
from tests.toolkit.planning.stream_simulation import by_shares, frames_per_s, latencies_s


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


def random_plans(seed: int) -> list[ResourceUse]:
    """Cuts of a random chain: the later the cut, the more the device computes."""
    random = np.random.default_rng(seed)
    count = int(random.integers(3, 8))
    layers_s = random.exponential(1.0, count)
    scale = 10 ** random.uniform(-1, 1)
    sizes_s = scale * random.exponential(1.0, count) * 0.7 ** np.arange(count)
    server = random.choice([3.0, 10.0, 20.0])
    cuts = [
        ResourceUse(sum(layers_s[:cut]), sizes_s[cut], sum(layers_s[cut:]) / server, 0.02 * scale)
        for cut in range(count)
    ]
    return [ResourceUse(sum(layers_s), 0.0, 0.0, 0.0), *cuts]


@pytest.mark.parametrize("window", [4, 6, 16])
def test_sharing_is_never_much_slower_than_the_best_single_plan(window: int) -> None:
    for seed in range(60):
        uses = random_plans(seed)
        shares, _ = shares_within(uses, latencies_s(uses), window)
        single_hz = 1 / min(use.period_s for use in uses)
        assert frames_per_s(uses, by_shares(shares), window, 150) >= 0.95 * single_hz, seed


def test_the_window_lets_the_mix_reach_its_rate() -> None:
    """0.9 of the linear program's rate in the worst case of 60, 0.97 in the median."""
    parts = []
    for seed in range(60):
        uses = random_plans(seed)
        shared = share_frames(uses)
        window = window_for(uses, latencies_s(uses))
        shares, _ = shares_within(uses, latencies_s(uses), window)
        parts.append(frames_per_s(uses, by_shares(shares), window, 300) / shared.rate_hz)
    assert min(parts) > 0.9
    assert np.median(parts) > 0.97


def test_a_small_window_leaves_out_plans_with_long_latencies() -> None:
    uses = [ResourceUse(100.0, 0.0, 0.0, 0.0), ResourceUse(0.0, 1.0, 0.1, 0.0)]
    shares, rate_hz = shares_within(uses, latencies_s(uses), 4)
    assert shares == (0.0, 1.0)
    assert rate_hz == pytest.approx(1.0)
    assert min(shares_within(uses, latencies_s(uses), 1000)[0]) > 0


def test_one_plan_needs_the_default_window() -> None:
    assert window_for([ResourceUse(100.0, 1.0, 1.0, 1.0)], [103.0]) == DEFAULT_WINDOW


@pytest.mark.parametrize("server", [0.6, 0.8, 1.0])
def test_a_slower_server_than_estimated_does_not_let_the_device_wait(server: float) -> None:
    local, cloud = ResourceUse(1.0, 0.0, 0.0, 0.0), ResourceUse(0.0, 0.02, 0.1, 0.0)
    estimated = [local, replace(cloud, server_s=server * cloud.server_s)]
    window = window_for(estimated, latencies_s(estimated))
    shares, _ = shares_within(estimated, latencies_s(estimated), window)
    rate_hz = frames_per_s([local, cloud], by_shares(shares), window, 300)
    assert rate_hz > 0.99 * share_frames([local, cloud]).rate_hz


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5).filter(lambda row: sum(row) > 0.1))
def test_every_plan_gets_its_share(weights: list[float]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    credit, counts = (0.0,) * len(shares), [0] * len(shares)
    for frame in range(1, 100):
        plan, credit = take_turn(credit, shares, [0] * len(shares))
        counts[plan] += 1
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - share * frame) < len(shares)
