"""Signals reach a server's main thread, whichever thread the kernel gives them to."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from offload_runtimes.daemon import Request, StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_another_thread_is_heard(number: signal.Signals) -> None:
    """The kernel mostly chooses the main thread, so the test names another one."""
    waiting = threading.Event()

    def ring() -> None:
        waiting.wait()
        signal.pthread_kill(threading.get_ident(), number)

    with StopSignal() as asked:
        ringing = threading.Thread(target=ring)
        ringing.start()
        threading.Timer(0.05, waiting.set).start()  # by then the main thread sits in wait
        assert asked.wait(60) is Request.STOP
        assert asked.wait() is Request.STOP  # once asked, always asked
        ringing.join()


def test_other_signals_are_not_meant() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopSignal() as asked:
            signal.raise_signal(signal.SIGUSR1)
            assert asked.wait(5) is Request.NOTHING
            assert asked.wait(0) is Request.NOTHING
            signal.raise_signal(signal.SIGTERM)
            assert asked.wait(0) is Request.STOP
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_it_leaves_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_hangup_asks_to_reload() -> None:
    with StopSignal() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert asked.wait(5) is Request.RELOAD
        assert asked.wait(0) is Request.NOTHING
        signal.raise_signal(signal.SIGTERM)
        assert asked.wait(0) is Request.STOP


_IN_A_TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    from offload_runtimes.daemon import StopSignal
    with StopSignal() as asked:
        os.write(1, b"ready")
        what = asked.wait(20).value
    open(sys.argv[1], "w").write(what)
    os._exit(0)
os.read(terminal, 5)
os.close(terminal)
os.waitpid(pid, 0)
"""


def test_a_terminal_that_closes_stops_the_server(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _IN_A_TERMINAL, str(tmp_path / "what")]
    subprocess.run(command, check=True, timeout=30)
    assert (tmp_path / "what").read_text() == "stop"
