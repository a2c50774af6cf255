"""The link after a window of sends: right where it can be, steady where it can't."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.cost.link import Link
from offload.cost.refit import Sent, refit
from offload.errors import InputError

OLD = Link(20e6, 40e6, 0.01, 0.005)
SIZES = (5_000, 60_000, 250_000, 600_000)


def window(
    link: Link, sizes: tuple[int, ...] = SIZES, count: int = 24, noise: float = 0.03
) -> list[Sent]:
    dice = np.random.default_rng(1)
    return [
        Sent(size, link.upload_s(size) * float(dice.normal(1, noise)), age_s=float(index))
        for index, size in zip(range(count), sizes * count, strict=False)
    ]


@given(st.floats(0.5e6, 200e6), st.floats(0.001, 0.05))
def test_a_changed_link_is_found_again(rate_bps: float, start_s: float) -> None:
    true = Link(rate_bps, rate_bps, start_s, start_s)
    found = refit(OLD, window(true), half_life_s=1e6)
    for size in (60_000, 250_000, 600_000):
        assert found.upload_s(size) == pytest.approx(true.upload_s(size), rel=0.1)
    assert (found.down_bps, found.down_start_s) == (OLD.down_bps, OLD.down_start_s)


def test_outliers_hardly_bend_it() -> None:
    true = Link(5e6, 5e6, 0.02, 0.02)
    clean = window(true)
    stalled = [Sent(s.size_bytes, s.seconds_s * 8, s.age_s) for s in clean[::6]]
    found = refit(OLD, [*clean, *stalled], half_life_s=1e6)
    assert found.upload_s(250_000) == pytest.approx(true.upload_s(250_000), rel=0.1)


def test_recent_sends_count_more() -> None:
    slow, fast = Link(2e6, 2e6, 0.01, 0.01), Link(50e6, 50e6, 0.01, 0.01)
    before = [Sent(s.size_bytes, s.seconds_s, s.age_s + 300) for s in window(slow)]
    found = refit(OLD, [*before, *window(fast)], half_life_s=20)
    assert found.upload_s(250_000) == pytest.approx(fast.upload_s(250_000), rel=0.15)


def test_one_size_moves_the_line_to_it_and_keeps_its_shape() -> None:
    true = Link(10e6, 10e6, 0.01, 0.01)
    found = refit(OLD, window(true, (250_000,)), half_life_s=1e6)
    assert found.upload_s(250_000) == pytest.approx(true.upload_s(250_000), rel=0.05)
    assert OLD.upload_s(1_000) * 0.5 < found.upload_s(1_000) < true.upload_s(250_000)
    assert found.upload_s(1_000_000) > found.upload_s(250_000)


def test_a_short_window_changes_nothing() -> None:
    assert refit(OLD, window(Link(1e6, 1e6))[:2]) == OLD


def test_down_is_fitted_apart_and_the_overhead_is_kept() -> None:
    old = Link(20e6, 40e6, 0.01, 0.005, overhead=1.05)
    true = Link(8e6, 8e6, 0.01, 0.01, overhead=1.05)
    found = refit(old, (), window(true), half_life_s=1e6)
    assert found.overhead == 1.05
    assert found.download_s(250_000) == pytest.approx(true.upload_s(250_000), rel=0.1)
    assert found.up_bps == old.up_bps


@pytest.mark.parametrize(
    "sent", [Sent(10, 0.0), Sent(10, float("nan")), Sent(-1, 1.0), Sent(10, 1.0, -5.0)]
)
def test_nonsense_is_refused(sent: Sent) -> None:
    with pytest.raises(InputError):
        refit(OLD, [sent, *window(OLD)])
    with pytest.raises(InputError, match="half-life"):
        refit(OLD, window(OLD), half_life_s=0)
