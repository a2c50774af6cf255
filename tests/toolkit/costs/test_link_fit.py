"""A link fitted to a probe, and to a window of sends: right where it can be, else steady."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Link
from offload.costs.link_fit import ProbedLink, Sample, TimedMessage, fit_line, fit_link, refit
from offload.errors import InputError

PROBED = [1_000, 10_000, 100_000, 1_000_000]


@given(st.floats(0, 0.5), st.floats(1e5, 1e9))
def test_an_exact_line_is_found(start_s: float, rate_bps: float) -> None:
    line = fit_line(PROBED, [start_s + size * 8 / rate_bps for size in PROBED])
    assert line.rate_bps == pytest.approx(rate_bps, rel=1e-3)
    assert line.start_s == pytest.approx(start_s, rel=1e-3, abs=1e-5)
    assert line.r2 > 0.999


def test_one_stalled_message_does_not_bend_the_line() -> None:
    sizes = PROBED * 5
    seconds = [0.01 + size * 8 / 1e6 for size in sizes]
    seconds[0] = 30.0
    assert fit_line(sizes, seconds).rate_bps == pytest.approx(1e6)


def test_start_is_never_negative() -> None:
    line = fit_line(PROBED, [max(0.0, size * 8 / 1e6 - 0.01) for size in PROBED])
    assert line.start_s == 0.0


@pytest.mark.parametrize(
    ("sizes", "seconds", "why"),
    [
        ([1, 2], [1.0, 2.0], "at least 3"),
        (PROBED, [4.0, 3.0, 2.0, 1.0], "not slower"),
        (PROBED, [1.0, 1.0, 1.0, 1.0], "not slower|unsteady"),
        (PROBED, [0.1, 9.0, 0.2, 5.0], "unsteady"),
    ],
)
def test_lines_that_fit_badly_are_refused(sizes: list[int], seconds: list[float], why: str) -> None:
    with pytest.raises(InputError, match=why):
        fit_line(sizes, seconds)


def test_directions_are_fitted_apart() -> None:
    link = fit_link([Sample(s, 0.01 + s * 8 / 1e6, 0.02 + s * 8 / 4e6) for s in PROBED])
    assert link.up_bps == pytest.approx(1e6)
    assert link.down_bps == pytest.approx(4e6)
    assert link.down_start_s == pytest.approx(0.02)
    assert link.up_r2 == pytest.approx(1.0)


OLD = Link(20e6, 40e6, 0.01, 0.005)
SIZES = (5_000, 60_000, 250_000, 600_000)


def window(
    link: Link, sizes: tuple[int, ...] = SIZES, count: int = 24, noise: float = 0.03
) -> list[TimedMessage]:
    dice = np.random.default_rng(1)
    return [
        TimedMessage(size, link.upload_s(size) * float(dice.normal(1, noise)), age_s=float(index))
        for index, size in zip(range(count), sizes * count, strict=False)
    ]


@given(st.floats(0.5e6, 200e6), st.floats(0.001, 0.05))
def test_a_changed_link_is_found_again(rate_bps: float, start_s: float) -> None:
    true = Link(rate_bps, rate_bps, start_s, start_s)
    link = refit(OLD, window(true), half_life_s=1e6)
    for size in (60_000, 250_000, 600_000):
        assert link.upload_s(size) == pytest.approx(true.upload_s(size), rel=0.1)
    assert (link.down_bps, link.down_start_s) == (OLD.down_bps, OLD.down_start_s)


def test_outliers_hardly_bend_it() -> None:
    true = Link(5e6, 5e6, 0.02, 0.02)
    clean = window(true)
    stalled = [TimedMessage(s.size_bytes, s.seconds_s * 8, s.age_s) for s in clean[::6]]
    link = refit(OLD, [*clean, *stalled], half_life_s=1e6)
    assert link.upload_s(250_000) == pytest.approx(true.upload_s(250_000), rel=0.1)


def test_sends_that_seem_to_take_no_time_hardly_bend_it() -> None:
    """A receiver that reads two messages at once sees the second arrive in an instant."""
    true = Link(5e6, 5e6, 0.02, 0.02)
    link = refit(
        OLD,
        [*window(true), TimedMessage(250_000, 1e-5, 0.5), TimedMessage(5_000, 2e-5, 3.0)],
        (),
        1e6,
    )
    for size in (60_000, 250_000, 600_000):
        assert link.upload_s(size) == pytest.approx(true.upload_s(size), rel=0.1)


@given(st.floats(0.05, 20), st.integers(1, 5), st.sampled_from(SIZES))
def test_a_window_follows_a_change_once_most_of_its_weight_is_new(
    times: float, stalled: int, size: int
) -> None:
    """One send every 0.1 s, most of them from before; of the new ones a few stall."""
    before, after = OLD, Link(OLD.up_bps / times, OLD.down_bps / times, 0.01 * times, 0.005)
    sends = [TimedMessage(size, before.upload_s(size), age_s=3.0 + 0.1 * i) for i in range(30)]
    sends += [TimedMessage(size, after.upload_s(size), age_s=0.1 * i) for i in range(30)]
    sends += [TimedMessage(size, 5 * after.upload_s(size), age_s=0.5 * i) for i in range(stalled)]
    link = refit(OLD, sends, half_life_s=1.0)
    assert link.upload_s(size) == pytest.approx(after.upload_s(size), rel=0.25)


def test_only_differences_of_age_count() -> None:
    sends = window(Link(5e6, 5e6, 0.02, 0.02))
    later = [TimedMessage(s.size_bytes, s.seconds_s, s.age_s + 1e6) for s in sends]
    assert refit(OLD, later, half_life_s=3.0) == refit(OLD, sends, half_life_s=3.0)


def test_recent_sends_count_more() -> None:
    slow, fast = Link(2e6, 2e6, 0.01, 0.01), Link(50e6, 50e6, 0.01, 0.01)
    before = [TimedMessage(s.size_bytes, s.seconds_s, s.age_s + 300) for s in window(slow)]
    link = refit(OLD, [*before, *window(fast)], half_life_s=20)
    assert link.upload_s(250_000) == pytest.approx(fast.upload_s(250_000), rel=0.15)


def test_one_size_moves_the_line_to_it_and_keeps_its_shape() -> None:
    true = Link(10e6, 10e6, 0.01, 0.01)
    link = refit(OLD, window(true, (250_000,)), half_life_s=1e6)
    assert link.upload_s(250_000) == pytest.approx(true.upload_s(250_000), rel=0.05)
    assert OLD.upload_s(1_000) * 0.5 < link.upload_s(1_000) < true.upload_s(250_000)
    assert link.upload_s(1_000_000) > link.upload_s(250_000)


@given(st.floats(0.1, 30))
def test_what_makes_up_most_of_the_time_is_what_changed(times: float) -> None:
    """Large sends tell of the rate and leave the start-up, small ones the other way round."""
    large, small = OLD.upload_s(600_000), OLD.upload_s(500)
    rate = refit(OLD, [TimedMessage(600_000, large * times)] * 5, half_life_s=1e6)
    assert rate.upload_s(600_000) == pytest.approx(large * times, rel=1e-3)
    assert rate.up_start_s == pytest.approx(OLD.up_start_s, rel=0.5)
    start = refit(OLD, [TimedMessage(500, small * times)] * 5, half_life_s=1e6)
    assert start.upload_s(500) == pytest.approx(small * times, rel=1e-3)
    assert start.up_bps == pytest.approx(OLD.up_bps, rel=0.5)


def test_a_short_window_changes_nothing() -> None:
    assert refit(OLD, window(Link(1e6, 1e6))[:2]) == OLD


def test_down_is_fitted_apart_and_the_overhead_is_kept() -> None:
    old = Link(20e6, 40e6, 0.01, 0.005, overhead=1.05)
    true = Link(8e6, 8e6, 0.01, 0.01, overhead=1.05)
    link = refit(old, (), window(true), half_life_s=1e6)
    assert link.overhead == 1.05
    assert link.download_s(250_000) == pytest.approx(true.upload_s(250_000), rel=0.1)
    assert link.up_bps == old.up_bps


@pytest.mark.parametrize(
    "sent",
    [
        TimedMessage(10, 0.0),
        TimedMessage(10, float("nan")),
        TimedMessage(-1, 1.0),
        TimedMessage(10, 1.0, -5.0),
    ],
)
def test_nonsense_is_refused(sent: TimedMessage) -> None:
    with pytest.raises(InputError):
        refit(OLD, [sent, *window(OLD)])
    with pytest.raises(InputError, match="half-life"):
        refit(OLD, window(OLD), half_life_s=0)


def test_sends_without_any_scatter_are_not_taken_for_outliers() -> None:
    true = Link(100e6, 100e6, 0.001, 0.001)
    sends = [TimedMessage(size, true.upload_s(size)) for size in (20_000, 150_000)] * 12
    link = refit(Link(5e6, 5e6, 0.001, 0.001), sends)
    for size in (20_000, 60_000, 150_000):
        assert link.upload_s(size) == pytest.approx(true.upload_s(size), rel=0.01)


def test_plans_are_made_around_the_probed_link() -> None:
    """Two of ten large messages take twice as long: a slow rate of half, and links below it."""
    link = Link(2e7, 4e7, 0.001, 0.001)
    samples = [
        Sample(
            size, link.upload_s(size) * (2 if size > 1e6 and n < 2 else 1), link.download_s(size)
        )
        for size in (1_000, 100_000, 2_000_000)
        for n in range(10)
    ]
    probed = ProbedLink.of(samples)
    assert probed.link.up_bps == pytest.approx(2e7, rel=0.01)
    assert probed.slow_bps == pytest.approx(1e7, rel=0.05)
    assert probed.fast_bps == pytest.approx(2e7, rel=0.05)
    assert probed.round_trip_s == pytest.approx(0.002, rel=0.5)
    rates = [each.up_bps for each in probed.range()]
    assert rates == sorted(rates)
    assert probed.link in probed.range()
    assert rates[0] == pytest.approx(probed.slow_bps / 2)
    assert rates[-1] == pytest.approx(probed.fast_bps * 2)
    assert all(each.down_bps == pytest.approx(2 * each.up_bps, rel=0.01) for each in probed.range())
