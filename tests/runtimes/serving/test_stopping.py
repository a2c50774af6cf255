"""A server's main thread hears of signals that other threads were given."""

import signal
import threading

import pytest
from offload_runtimes.serving.stopping import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_another_thread_is_heard(number: signal.Signals) -> None:
    """Where the kernel is free to choose it takes the main thread mostly: so it is told which."""
    waiting = threading.Event()

    def ring() -> None:
        waiting.wait()
        signal.pthread_kill(threading.get_ident(), number)

    with StopSignal() as asked:
        ringing = threading.Thread(target=ring)
        ringing.start()
        threading.Timer(0.05, waiting.set).start()  # by then the main thread sits in wait
        assert asked.wait(60)
        assert asked.wait()  # once asked, always asked
        ringing.join()


def test_other_signals_are_not_meant() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopSignal() as asked:
            signal.raise_signal(signal.SIGUSR1)
            assert not asked.wait(5)
            assert not asked.wait(0)
            signal.raise_signal(signal.SIGTERM)
            assert asked.wait(0)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_it_leaves_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
