"""The link monitor: its estimate of the link, and what unanswered pings show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Link
from offload.scheduling.timeline import Lane
from offload_runtimes.device.link_monitor import LinkMonitor


def link(rate_bps: float) -> Link:
    return Link(rate_bps, rate_bps, 0.001, 0.001)


def test_bytes_before_the_oldest_unanswered_ping() -> None:
    monitor = LinkMonitor(Link(1e6, 1e6))
    assert monitor.waiting(10.0) == (0, 0.0)
    monitor.sent(1000)
    monitor.pinged(1, 10.0)
    monitor.sent(500)
    monitor.pinged(2, 10.5)
    assert monitor.waiting(11.0) == (1000, 1.0)
    monitor.ponged(1)
    assert monitor.waiting(11.0) == (500, 0.5)
    monitor.ponged(2)
    assert monitor.waiting(11.0) == (0, 0.0)
    monitor.pinged(3, 12.0)
    assert monitor.waiting(12.5) == (0, 0.5), "nothing is before it"


def test_reset_forgets_all_messages() -> None:
    monitor = LinkMonitor(link(1e6))
    for _ in range(3):
        monitor.passed(Lane.UPLINK, 1000, 0.1, 5.0)
    assert monitor.link(6.0)
    monitor.reset()
    assert monitor.link(6.0) is None
    monitor.passed(Lane.UPLINK, 1000, 0.0, 6.0)
    assert monitor.uploads == 0, "what took no time tells nothing"


def test_two_late_messages_make_earlier_ones_obsolete() -> None:
    monitor, fast, slow = LinkMonitor(link(5e6)), link(2e7), link(1e6)
    for number in range(40):
        monitor.passed(Lane.UPLINK, 100_000, fast.upload_s(100_000), 0.05 * number)
    found = monitor.link(2.0)
    assert found
    assert found.up_bps == pytest.approx(2e7, rel=0.05)
    for now_s in (2.8, 3.6):
        monitor.passed(Lane.UPLINK, 100_000, slow.upload_s(100_000), now_s)
        found = monitor.link(now_s)
        assert found
        assert (found.up_bps < 1.1e6) == (now_s == 3.6), "one alone may be a hiccup"


@given(
    st.floats(5e5, 1e8),
    st.lists(st.floats(0.95, 1.05), min_size=12, max_size=40),
    st.lists(st.sampled_from((0.001, 8.0)), max_size=3),
)
def test_the_estimate_converges_under_noise_and_outliers(
    rate_bps: float, noise: list[float], off: list[float]
) -> None:
    monitor, true = LinkMonitor(link(5e6)), link(rate_bps)
    for number, factor in enumerate((*off, *noise)):
        for size in (20_000, 150_000):
            now_s = 0.05 * number
            monitor.passed(Lane.UPLINK, size, true.upload_s(size) * factor, now_s)
            monitor.passed(Lane.DOWNLINK, 4_000, true.download_s(4_000) * factor, now_s)
    found = monitor.link(0.05 * len(noise))
    assert found
    for size in (20_000, 60_000, 150_000):
        assert found.upload_s(size) == pytest.approx(true.upload_s(size), rel=0.15)
    assert found.download_s(4_000) == pytest.approx(true.download_s(4_000), rel=0.15)


def test_a_copy_and_its_original_see_different_messages() -> None:
    monitor = LinkMonitor(link(1e6))
    monitor.heard(10.0)
    monitor.pinged(1, 10.0)
    other = monitor.copy()
    monitor.reset()
    assert not monitor.is_lost(20.0, 0, 1.0)
    assert other.is_lost(20.0, 0, 1.0), "it still waits for the answer"
    other.passed(Lane.UPLINK, 100, 0.1)
    assert (monitor.uploads, other.uploads) == (0, 1)
