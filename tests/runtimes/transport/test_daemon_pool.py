"""Threads of the gRPC server: reused, ended with the server, and they keep nothing alive."""

import gc
import threading
import weakref

import pytest
from offload_runtimes.transport import grpc_server
from offload_runtimes.transport.grpc_server import DaemonPool

from tests.runtimes.waiting import eventually


def test_calls_run_at_once_however_many_there_are() -> None:
    pool, barrier = DaemonPool(), threading.Barrier(20)
    futures = [pool.submit(barrier.wait, 20) for _ in range(20)]  # all must run together
    assert sorted(future.result(20) for future in futures) == list(range(20))
    pool.join(5)
    assert not pool._threads


def test_an_idle_thread_takes_the_next_call() -> None:
    pool = DaemonPool()
    names = {pool.submit(threading.get_ident).result(20)}
    for _ in range(50):
        eventually(lambda: pool._idle == 1)
        names.add(pool.submit(threading.get_ident).result(20))
    assert len(names) == 1
    pool.join(5)


def test_an_error_is_the_futures_and_the_thread_goes_on() -> None:
    pool = DaemonPool()
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(20)
    assert pool.submit(lambda: 7).result(20) == 7
    pool.join(5)


def test_an_idle_thread_keeps_no_call_alive_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Big:
        pass

    monkeypatch.setattr(grpc_server, "_IDLE_S", 60.0)
    pool, big = DaemonPool(), Big()
    gone = weakref.ref(big)
    future = pool.submit(lambda _: None, big)
    future.result(20)
    del big, future
    eventually(lambda: gc.collect() >= 0 and gone() is None)
    # The call was forgotten while its thread waits for the next one.
    eventually(lambda: pool._idle == 1)
    monkeypatch.setattr(grpc_server, "_IDLE_S", 0.3)
    pool.submit(lambda: None).result(20)
    eventually(lambda: not pool._threads)
    assert pool.submit(lambda: 7).result(20) == 7
    pool.join(5)


def test_a_call_after_the_end_still_runs_and_leaves_no_thread() -> None:
    pool = DaemonPool()
    pool.join(5)
    assert pool.submit(lambda: 7).result(20) == 7
    eventually(lambda: not pool._threads)


def test_calls_wait_if_the_system_allows_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, go_on = DaemonPool(), threading.Event()
    first = pool.submit(go_on.wait, 20)
    start = threading.Thread.start

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    late = [pool.submit(threading.get_ident) for _ in range(3)]
    assert not any(future.done() for future in late)
    go_on.set()
    assert first.result(20)
    assert len({future.result(20) for future in late}) == 1
    eventually(lambda: pool._idle == 1)
    monkeypatch.setattr(threading.Thread, "start", start)
    barrier = threading.Barrier(2)
    both = [pool.submit(barrier.wait, 20) for _ in range(2)]  # one more thread can be started
    assert sorted(future.result(20) for future in both) == [0, 1]
    pool.join(5)
    assert not pool._threads


def test_a_call_that_found_no_thread_runs_on_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = DaemonPool()

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        late = pool.submit(lambda: 7)
    assert pool.submit(lambda: 8).result(20) == 8
    assert late.result(20) == 7
    eventually(lambda: pool._idle == 1)
    pool.join(5)
