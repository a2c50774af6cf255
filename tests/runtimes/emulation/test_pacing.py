"""Emulated links and slow devices, on a clock that moves only while code sleeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import Link
from offload.errors import InputError
from offload_runtimes.emulation.link import Pipe
from offload_runtimes.emulation.pacing import Pacer


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@given(
    messages=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**6)), max_size=10),
    start_s=st.floats(0, 1),
)
def test_messages_pass_one_after_another(messages: list[tuple[float, int]], start_s: float) -> None:
    clock, link = Clock(), Link(8e6, 8e6, start_s)
    pipe = Pipe(link.upload_s, clock, clock.sleep)
    expected_s = 0.0
    for pause_s, size_bytes in messages:
        clock.sleep(pause_s)
        expected_s += pause_s + start_s + size_bytes / 1e6
        pipe.transit(size_bytes)
        assert clock.now_s == pytest.approx(expected_s)


def test_a_late_start_does_not_delay_what_follows() -> None:
    """The link is free while the sender sleeps for too long."""
    clock = Clock()
    pipe = Pipe(lambda size_bytes: size_bytes / 1e3, clock, lambda s: clock.sleep(s + 0.5))
    pipe.transit(1000)
    assert clock.now_s == 1.5
    pipe.transit(2000)
    assert clock.now_s == 4.0


def test_pacing_follows_the_warm_median_not_the_last_run() -> None:
    clock = Clock()
    pacer = Pacer(5.0, clock, clock.sleep)
    pacer.pace("a", 0.0)
    assert clock.now_s == 0
    for duration_s in (0.1, 0.1, 9.0):
        pacer.add("a", duration_s)
    clock.sleep(0.3)  # what the work itself takes, this time, counts
    pacer.pace("a", 0.0)
    assert clock.now_s == pytest.approx(0.5)
    pacer.pace("a", -9.0)
    assert clock.now_s == pytest.approx(0.5)
    pacer.pace("a")
    assert clock.now_s == pytest.approx(0.5 + 0.4)
    assert pacer.median_s("b") is None


def test_a_settled_pace_is_the_shortest_and_stays() -> None:
    pacer = Pacer(5.0)
    pacer.add("a", 0.05)  # too long ago to count
    for duration_s in (0.2, 0.1, *[9.0] * (Pacer.WINDOW - 2)):
        pacer.add("a", duration_s)
    assert pacer.median_s("a") == 9.0
    pacer.settle(factor=2.0)
    for _ in range(Pacer.WINDOW):
        pacer.add("a", 9.0)
    pacer.add("b", 9.0)
    assert pacer.median_s("a") == 0.2
    assert pacer.median_s("b") is None


def test_a_device_can_not_be_sped_up() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Pacer(0.5)
