"""Being asked to stop: SIGTERM or SIGINT, whichever thread the kernel hands it to."""

import select
import signal
import socket
from types import FrameType
from typing import Self

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Waits for SIGTERM or SIGINT; a context manager of the main thread.

    A lock does not do: the kernel may hand a signal to any thread of gRPC's or onnxruntime's, and
    a main thread that waits for a lock would then not hear of it. A socket wakes it all the same.
    """

    def __enter__(self) -> Self:
        self._asked = False
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

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether to stop; waits so long at most for being asked."""
        if not self._asked and select.select([self._bell], [], [], timeout_s)[0]:
            self._bell.recv(4096)  # other signals ring, too: only the handler knows which
        return self._asked

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
