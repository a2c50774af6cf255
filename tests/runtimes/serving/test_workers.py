"""Fair workers: turns, nothing lost, nothing after stop."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload_runtimes.serving.dispatch import FairWorkers

from tests.runtimes.waiting import eventually


def _wait(event: threading.Event) -> None:
    event.wait()


@given(keys=st.lists(st.sampled_from("abc"), max_size=30))
def test_sessions_take_turns(keys: list[str]) -> None:
    """Jobs that wait run round by round, in order within a key."""
    workers, hold, began = FairWorkers(1), threading.Event(), threading.Event()
    workers.open()
    done: list[tuple[str, int]] = []
    workers.submit("first", began.set)
    workers.submit("first", lambda: _wait(hold))
    began.wait()
    for number, key in enumerate(keys):
        workers.submit(key, lambda item=(key, number): done.append(item))  # type: ignore[misc]
    finished = threading.Event()
    rounds = max((keys.count(key) for key in "abc"), default=0)
    for _ in range(rounds + 1):
        workers.submit("last", lambda: None)
    workers.submit("last", finished.set)
    hold.set()
    assert finished.wait(10)
    workers.stop()
    assert sorted(number for _, number in done) == list(range(len(keys)))
    left = {key: [n for n, k in enumerate(keys) if k == key] for key in dict.fromkeys(keys)}
    expected = []
    while any(left.values()):
        expected += [(key, numbers.pop(0)) for key, numbers in left.items() if numbers]
    assert done == expected


def test_dropped_jobs_never_run() -> None:
    workers, hold, began = FairWorkers(1), threading.Event(), threading.Event()
    workers.open()
    ran: list[str] = []
    workers.submit("first", began.set)
    workers.submit("first", lambda: _wait(hold))
    began.wait()
    workers.submit("gone", lambda: ran.append("gone"))
    workers.submit("stays", lambda: ran.append("stays"))
    assert workers.waiting == 2
    workers.drop("gone")
    assert workers.waiting == 1
    hold.set()
    finished = threading.Event()
    workers.submit("stays", finished.set)
    assert finished.wait(10)
    workers.stop()
    assert ran == ["stays"]


def test_the_callers_thread_is_one_of_the_workers() -> None:
    """It runs a job only while a worker is free and nothing waits, and counts as a worker."""
    workers, hold, began, ran = FairWorkers(1), threading.Event(), threading.Event(), []
    workers.open()
    here = threading.current_thread()
    assert workers.run_here("key", lambda: ran.append(threading.current_thread()))
    assert ran == [here]

    def job() -> None:
        began.set()
        _wait(hold)

    thread = threading.Thread(target=lambda: workers.run_here("key", job))
    thread.start()
    began.wait()
    assert not workers.run_here("key", lambda: ran.append(here))
    finished = threading.Event()
    workers.submit("key", finished.set)
    assert not finished.wait(0.05)
    assert workers.waiting == 1
    hold.set()
    thread.join()
    assert finished.wait(10)
    workers.stop()
    assert ran == [here]


def test_waiting_threads_take_turns_with_queued_jobs() -> None:
    """A thread that waits runs its job itself, after the jobs before it."""
    workers, hold, began = FairWorkers(1), threading.Event(), threading.Event()
    workers.open()
    ran: list[str] = []

    def enter(key: str) -> None:
        assert workers.enter(key)
        ran.append(key)
        workers.leave(key, 0.0)

    workers.submit("busy", began.set)
    workers.submit("busy", lambda: _wait(hold))
    began.wait()
    threads = []
    for number, key in enumerate(("a", "a", "job", "b", "a")):
        if key == "job":
            workers.submit(key, lambda: ran.append("job"))
        else:
            threads.append(threading.Thread(target=enter, args=(key,)))
            threads[-1].start()
        eventually(lambda many=number + 1: workers.waiting == many)  # type: ignore[misc]
    hold.set()
    for thread in threads:
        thread.join(10)
    assert ran == ["a", "job", "b", "a", "a"]
    enter("at once")
    workers.stop()
    assert not workers.enter("a")


@pytest.mark.parametrize("end", ["drop", "stop"])
def test_a_turn_that_will_not_come_ends_the_wait(end: str) -> None:
    workers, hold, began = FairWorkers(1), threading.Event(), threading.Event()
    workers.open()
    workers.submit("busy", began.set)
    workers.submit("busy", lambda: _wait(hold))
    began.wait()
    entered: list[bool] = []
    thread = threading.Thread(target=lambda: entered.append(workers.enter("a")))
    thread.start()
    eventually(lambda: workers.waiting == 1)
    if end == "drop":
        workers.drop("a")
    else:
        threading.Thread(target=workers.stop).start()
    thread.join(10)
    assert entered == [False]
    hold.set()
    workers.stop()


def test_the_wait_for_the_work_of_others() -> None:
    """Half of the running job, and one of each other key that waits."""
    workers, started, go_on = FairWorkers(1), threading.Event(), threading.Event()
    workers.open()

    def usual() -> None:
        started.set()
        go_on.wait(10)

    assert workers.wait_s("other") == 0.0, "a worker is free"
    workers.submit("one", usual)
    assert started.wait(10)
    workers._usual_s = 2.0
    assert workers.wait_s("other") == 1.0
    assert workers.wait_s("one") == 0.0, "the running job is its own"
    for key in ("one", "two", "two", "other"):
        workers.submit(key, lambda: None)
    assert workers.wait_s("other") == 1.0 + 2 * 2.0
    assert workers.wait_s("one") == 2 * 2.0
    go_on.set()
    workers.stop()


def test_every_worker_runs_a_job_once_and_first() -> None:
    workers, hold, began = FairWorkers(3), threading.Event(), threading.Event()
    workers.open()
    ran: list[str] = []

    def name() -> None:
        ran.append(threading.current_thread().name)

    workers.on_every_worker(name)
    assert sorted(ran) == ["worker-0", "worker-1", "worker-2"]
    # A busy worker runs it when its job ends, before the next job.
    workers.submit("busy", began.set)
    workers.submit("busy", lambda: _wait(hold))
    began.wait()
    waiting = threading.Thread(target=workers.on_every_worker, args=(name,))
    waiting.start()
    hold.set()
    waiting.join(10)
    assert sorted(ran) == sorted(2 * ["worker-0", "worker-1", "worker-2"])
    workers.stop()
    workers.on_every_worker(name)
    assert len(ran) == 6


def test_an_error_or_the_end_of_the_workers_ends_the_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers, hold, began = FairWorkers(1), threading.Event(), threading.Event()
    workers.open()

    def fail() -> None:
        raise ValueError("spoilt")

    workers.on_every_worker(fail)
    assert "a job raised an error" in caplog.text
    workers.submit("busy", began.set)
    workers.submit("busy", lambda: _wait(hold))
    began.wait()
    waiting = threading.Thread(target=workers.on_every_worker, args=(lambda: None,))
    waiting.start()
    ending = threading.Thread(target=workers.stop)
    ending.start()
    hold.set()
    for thread in (ending, waiting):
        thread.join(10)
        assert not thread.is_alive()


def test_a_thread_waits_for_its_turn_no_longer_than_it_may() -> None:
    workers = FairWorkers(1)
    assert workers.enter("a")
    assert not workers.enter("b", 0.001)
    assert workers.waiting == 0
    assert workers._queues == {}
    entered = []
    thread = threading.Thread(target=lambda: entered.append(workers.enter("b", 20.0)))
    thread.start()
    eventually(lambda: workers.waiting == 1)
    workers.leave("a", 0.001)
    thread.join(20)
    assert entered == [True]
    workers.leave("b", 0.001)


def test_a_thread_does_not_wait_if_its_turn_will_come_too_late() -> None:
    workers = FairWorkers(1)
    assert workers.enter("a")
    workers.leave("a", 60.0)  # jobs usually take a minute
    assert workers.enter("a")
    start_s = time.monotonic()
    assert not workers.enter("b", 10.0)
    assert time.monotonic() - start_s < 5.0
