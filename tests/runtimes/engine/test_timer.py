"""The timer thread runs calls in order of their times, except for cancelled ones."""

import threading
import time

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
