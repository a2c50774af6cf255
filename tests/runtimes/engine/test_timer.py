"""The timer thread runs calls in order of their times, except for cancelled ones."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload_runtimes.engine.timer import TimerThread


@settings(max_examples=25, deadline=None)
@given(entries=st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12))
def test_calls_run_in_order_of_their_times(entries: list[tuple[int, bool]]) -> None:
    alarm, called, done = TimerThread(), [], threading.Event()
    start_s = time.monotonic() + 0.01
    cancels = []
    with alarm._changed:  # nothing is called before all is said, however slow the machine
        for number, (steps, _) in enumerate(entries):
            due_s = start_s + steps * 1e-3
            cancels.append(alarm.at(due_s, lambda item=(steps, number): called.append(item)))  # type: ignore[misc]
        for cancel, (_, keep) in zip(cancels, entries, strict=True):
            if not keep:
                cancel()
    alarm.at(start_s + 0.02, done.set)
    assert done.wait(10)
    kept = [(steps, number) for number, (steps, keep) in enumerate(entries) if keep]
    assert called == sorted(kept)


def test_cancelled_calls_do_not_pile_up() -> None:
    alarm = TimerThread()
    due_s = time.monotonic() + 3600
    last = alarm.at(due_s, lambda: None)
    for _ in range(10_000):
        alarm.at(due_s, lambda: None)()
    assert len(alarm._entries) < 1000
    last()


def test_the_thread_does_not_wake_for_each_cancelled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    alarm, waits = TimerThread(), []
    wait = alarm._changed.wait

    def counted(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return wait(timeout)

    monkeypatch.setattr(alarm._changed, "wait", counted)
    until_s, count = time.monotonic() + 0.3, 0
    while time.monotonic() < until_s:
        cancel = alarm.at(time.monotonic() + 0.02, lambda: None)
        time.sleep(1e-3)
        cancel()
        count += 1
    time.sleep(0.05)  # all are due by now
    assert count > 50
    assert len(waits) < count / 3
