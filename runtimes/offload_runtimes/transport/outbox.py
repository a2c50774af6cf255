"""Messages that wait to be sent, each made when the transport is ready for it."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

LOG = logging.getLogger("offload.device")
# Makes a message when it can be sent; None: there is nothing to send any more.
Make: TypeAlias = "Callable[[], bytes | None]"
# Sends a message, and calls the function when the next one may be sent; False: the stream is over.
Send: TypeAlias = "Callable[[bytes, Callable[[], None]], bool]"
# A thread of the outbox makes and sends longer messages, so that the device's next segment can run
# at the same time. Waking that thread takes about as long as sending a message of this size.
_SHORT_BYTES = 1 << 17


class Outbox:
    """Messages to send, in order.

    A transport iterates over them on a thread of its own, or calls `send_with`. Then the thread
    that puts a short message also makes and sends it. If another message is being sent, the
    transport's thread does that afterwards.

    Attributes:
        count: messages made so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: deque[tuple[Make, bool]] = deque()  # and whether the message is long
        self._send: Send | None = None
        self._cancel: Callable[[], None] = lambda: None
        self._is_sending = False  # one thread at a time makes and sends messages
        self._is_turn = False  # the thread for long messages is to send the next one
        self._is_closed = False
        self._sender: threading.Thread | None = None
        self._changed = threading.Condition(threading.Lock())

    def put(self, make: Make, size_bytes: int = 0) -> None:
        """Add a message, unless the outbox is closed.

        Args:
            make: called once, on any thread.
            size_bytes: about as long as the message will be.
        """
        with self._changed:
            if self._is_closed:
                return
            self._waiting.append((make, size_bytes > _SHORT_BYTES))
            if self._send is None:
                self._changed.notify()
                return
            if self._is_sending:
                return
            self._is_sending = True
        self._go_on()

    def send_with(self, send: Send, cancel: Callable[[], None]) -> None:
        """Send messages with a function, instead of iterating over them; called once.

        `cancel` ends the stream; it is called if a message cannot be made.
        """
        with self._changed:
            self._send, self._cancel = send, cancel
            self._is_sending = True
        self._go_on()

    def close(self) -> None:
        """Ignore messages that are put from now on; may be called twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of the thread for long messages, after `close` and the stream's end."""
        sender = self._sender
        if sender is not None and sender is not threading.current_thread():
            sender.join(timeout_s)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Wait for a message; StopIteration after the last one of a closed outbox."""
        while True:
            with self._changed:
                while not self._waiting:
                    if self._is_closed:
                        raise StopIteration
                    self._changed.wait()
                make, _ = self._waiting.popleft()
            data = make()
            if data is not None:
                self.count += 1
                return data
            del make  # it holds a tensor, and the next message may come much later

    def _go_on(self) -> None:
        """Send the next message; only the thread that has set `_is_sending` may call it."""
        assert self._send is not None
        while True:
            with self._changed:
                if not self._waiting:
                    self._is_sending = False
                    if self._is_closed:
                        self._changed.notify_all()  # the sender can end
                    return
                if self._waiting[0][1] and self._passes_to_sender():
                    return
                make, _ = self._waiting.popleft()
            try:
                data = make()
            except BaseException as error:
                with self._changed:
                    self._is_sending = False
                if not isinstance(error, Exception):
                    raise
                LOG.exception("a message could not be made")
                self._cancel()
                return
            if data is None:
                continue
            self.count += 1
            if self._send(data, self._go_on):
                return
            with self._changed:
                self._waiting.clear()

    def _passes_to_sender(self) -> bool:
        """Let the thread for long messages send; False if this is it, or it cannot be started."""
        if threading.current_thread() is self._sender:
            return False
        if self._sender is None:
            sender = threading.Thread(target=self._send_long, name="sender", daemon=True)
            try:
                sender.start()
            except RuntimeError:
                return False
            self._sender = sender
        self._is_turn = True
        self._changed.notify_all()
        return True

    def _send_long(self) -> None:
        while True:
            with self._changed:
                while not self._is_turn:
                    if self._is_closed and not self._is_sending:
                        return
                    self._changed.wait()
                self._is_turn = False
            self._go_on()
