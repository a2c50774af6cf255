"""How messages travel: the protocol both ends are written against, and one within a process."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from offload.errors import ServerError

Mailbox: TypeAlias = "queue.SimpleQueue[bytes | None]"


class Connection(Protocol):
    """One bidirectional stream of whole messages, in order."""

    def send(self, message: bytes) -> None:
        """Hand a message over; ServerError when the stream is broken."""

    def receive(self) -> bytes | None:
        """Wait for the next message; None when the other end is done; ServerError when broken."""

    def close(self) -> None:
        """End the stream; a waiting `receive` returns. May be called twice."""


class Incoming(Protocol):
    """What the device holds of a stream: it receives here, and gave an iterator to send from."""

    def receive(self) -> bytes | None:
        """Wait for the next message; None when the other end is done; ServerError when broken."""

    def close(self) -> None:
        """End the stream; a waiting `receive` returns. May be called twice."""


class Connector(Protocol):
    """Opens streams to one server."""

    @property
    def address(self) -> str:
        """Where the server is, for messages."""

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Incoming:
        """A new stream that sends what `outgoing` gives, on a thread of the transport's.

        Pulling the messages saves a thread's wake-up per message over being handed them.

        Raises:
            ServerError: the server can't be reached in time.
        """


class _End:
    """One end of an in-memory pair: what it sends lands in the other end's inbox."""

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

    def receive(self) -> bytes | None:
        return self._inbox.get()

    def close(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._inbox.put(None)
            self._other.put(None)


def pair() -> tuple[Connection, Connection]:
    """Two ends of a stream within this process; what was sent before the end still arrives."""
    left: Mailbox = queue.SimpleQueue()
    right: Mailbox = queue.SimpleQueue()
    over = threading.Event()
    return _End(left, right, over), _End(right, left, over)


class MemoryConnector:
    """Connects to a function that serves one end of a pair, each on a thread of its own."""

    address = "memory"

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        self._serve = serve

    def open(self) -> Connection:
        """A new pair's near end; the other end is served at once."""
        here, there = pair()
        threading.Thread(target=self._serve, args=(there,), name="memory", daemon=True).start()
        return here

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Incoming:
        """A new stream."""
        del timeout_s
        return pumped(self.open(), outgoing)


def pumped(connection: Connection, outgoing: Iterator[bytes]) -> Connection:
    """The connection, sending what an iterator gives on a thread of its own."""

    def pump() -> None:
        try:
            for message in outgoing:
                connection.send(message)
        except ServerError:
            connection.close()

    threading.Thread(target=pump, name="pump", daemon=True).start()
    return connection
