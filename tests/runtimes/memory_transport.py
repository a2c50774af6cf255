"""A transport within one process: sessions with a server without sockets."""

import queue
import threading
from collections.abc import Callable, Iterator

from offload.errors import OffloadError, ServerError
from offload_runtimes.transport.connection import Connection, Receiver, Stream


class _MemoryEnd:
    """One end of a stream within this process: it sends to the other end's inbox."""

    def __init__(
        self,
        inbox: "queue.SimpleQueue[bytes | None]",
        other: "queue.SimpleQueue[bytes | None]",
        over: threading.Event,
    ) -> None:
        self._inbox = inbox
        self._other = other
        self._over = over

    def send(self, message: bytes) -> None:
        if self._over.is_set():
            raise ServerError("the other end has gone: try again")
        self._other.put(message)

    def handle_briefly(self, _: Callable[[bytes], bool]) -> None:
        """All messages are received."""

    def receive(self) -> bytes | None:
        return self._inbox.get()

    def close(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._inbox.put(None)
            self._other.put(None)


def pair() -> tuple[Connection, Connection]:
    """Two ends of a stream within this process; messages sent before `close` still arrive."""
    left: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    right: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    over = threading.Event()
    return _MemoryEnd(left, right, over), _MemoryEnd(right, left, over)


class MemoryConnector:
    """Connects to a function that serves a stream, on a new thread for each stream."""

    address = "memory"

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        self._serve = serve

    def open(self) -> Connection:
        """A new stream; the other end is served at once."""
        device_end, server_end = pair()
        threading.Thread(target=self._serve, args=(server_end,), name="memory", daemon=True).start()
        return device_end

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        """A new stream."""
        del timeout_s
        return PumpedStream(self.open(), outgoing)


class PumpedStream:
    """A Stream over a Connection: one thread sends from an iterator, another one receives."""

    def __init__(self, connection: Connection, outgoing: Iterator[bytes]) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._receiving: threading.Thread | None = None
        threading.Thread(target=self._send, name="pump", daemon=True).start()

    def deliver(self, receiver: Receiver) -> None:
        """Start to deliver messages."""
        self._receiving = threading.Thread(
            target=self._receive, args=(receiver,), name="receiver", daemon=True
        )
        self._receiving.start()

    def close(self) -> None:
        """End the stream."""
        self._connection.close()

    def wait(self, timeout_s: float) -> None:
        """Wait until the receiver was told of the end."""
        if self._receiving is not None:
            self._receiving.join(timeout_s)

    def _send(self) -> None:
        try:
            for message in self._outgoing:
                self._connection.send(message)
        except ServerError:
            self._connection.close()

    def _receive(self, receiver: Receiver) -> None:
        try:
            while (message := self._connection.receive()) is not None:
                receiver.received(message)
            receiver.ended(None)
        except OffloadError as error:
            receiver.ended(error)
