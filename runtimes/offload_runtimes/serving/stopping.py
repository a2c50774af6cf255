"""Signals that a server obeys: stop (SIGTERM, SIGINT) and reload (SIGHUP)."""

import os
import select
import signal
import socket
from enum import Enum
from types import FrameType
from typing import Self

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Asked(Enum):
    """What a server was asked to do."""

    NOTHING = "nothing"
    RELOAD = "reload"
    STOP = "stop"


class StopSignal:
    """Waits for signals; a context manager of the main thread.

    SIGTERM and SIGINT ask to stop. SIGHUP asks to reload, or to stop when it comes because the
    terminal that the server was started in is gone.

    A lock does not do: the kernel may hand a signal to any thread of gRPC's or onnxruntime's, and
    a main thread that waits for a lock would then not hear of it. A socket wakes it all the same.
    """

    def __enter__(self) -> Self:
        self._stop = self._reload = False
        self._had_terminal = _has_terminal()
        self._bell, self._button = socket.socketpair()
        self._button.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._button.fileno())
        self._before = {number: signal.signal(number, self._ask) for number in _NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_fd)
        self._bell.close()
        self._button.close()

    def wait(self, timeout_s: float | None = None) -> Asked:
        """What was asked for since the last call; waits for it, `timeout_s` at most."""
        rung = [self._bell]
        if not (self._stop or self._reload) and select.select(rung, [], [], timeout_s)[0]:
            self._bell.recv(4096)  # other signals ring, too: only the handler knows which
        if self._stop:
            return Asked.STOP
        asked, self._reload = Asked.RELOAD if self._reload else Asked.NOTHING, False
        return asked

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not (self._had_terminal and not _has_terminal()):
            self._reload = True
        else:
            self._stop = True


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
