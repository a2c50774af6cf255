"""How messages travel: the protocol both ends are written against, and one within a process."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from offload.errors import OffloadError, ServerError

Mailbox: TypeAlias = "queue.SimpleQueue[bytes | None]"


class Connection(Protocol):
    """One bidirectional stream of whole messages, in order."""

    def send(self, message: bytes) -> None:
        """Hand a message over; ServerError when the stream is broken."""

    def receive(self) -> bytes | None:
        """Wait for the next message; None when the other end is done; ServerError when broken."""

    def close(self) -> None:
        """End the stream; a waiting `receive` returns. May be called twice."""


class Receiver(Protocol):
    """Takes what comes on a stream, called on threads of the transport's, one call at a time.

    It must not keep them for long: what else the transport has to do waits meanwhile.
    """

    def received(self, message: bytes) -> None:
        """A message came."""

    def ended(self, error: OffloadError | None) -> None:
        """No more will come: the other end is done, or this error broke the stream."""


class Stream(Protocol):
    """What the device holds of a stream: it gave an iterator to send from, and is called back."""

    def deliver(self, receiver: Receiver) -> None:
        """Begin to hand over what comes; called once."""

    def close(self) -> None:
        """End the stream and return at once; may be called twice, on any thread."""

    def wait(self, timeout_s: float) -> None:
        """After `close`: wait until `ended` has returned and the transport's threads are over."""


class Connector(Protocol):
    """Opens streams to one server."""

    @property
    def address(self) -> str:
        """Where the server is, for messages."""

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        """A new stream that sends what `outgoing` gives, on a thread of the transport's.

        Pulling messages and calling back saves a thread's wake-up per message each way. A stream
        that cannot be opened within `timeout_s` seconds ends with a ServerError that says why.
        """


class _MemoryEnd:
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
    return _MemoryEnd(left, right, over), _MemoryEnd(right, left, over)


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

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        """A new stream."""
        del timeout_s
        return PumpedStream(self.open(), outgoing)


class PumpedStream:
    """A stream over a connection: one thread sends what an iterator gives, another receives."""

    def __init__(self, connection: Connection, outgoing: Iterator[bytes]) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._receiving: threading.Thread | None = None
        threading.Thread(target=self._send, name="pump", daemon=True).start()

    def deliver(self, receiver: Receiver) -> None:
        """Begin to hand over what comes."""
        self._receiving = threading.Thread(
            target=self._receive, args=(receiver,), name="receiver", daemon=True
        )
        self._receiving.start()

    def close(self) -> None:
        """End the stream."""
        self._connection.close()

    def wait(self, timeout_s: float) -> None:
        """Wait until the receiver knows that it has ended."""
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
