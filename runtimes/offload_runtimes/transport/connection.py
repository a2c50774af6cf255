"""Streams of messages: the interfaces of a transport, and a transport within one process."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from offload.errors import OffloadError, ServerError

Mailbox: TypeAlias = "queue.SimpleQueue[bytes | None]"


class Connection(Protocol):
    """One bidirectional stream of whole messages, in order."""

    def send(self, message: bytes) -> None:
        """Queue a message; ServerError if the stream is broken."""

    def receive(self) -> bytes | None:
        """Wait for the next message; None if the other end has closed; ServerError if broken."""

    def close(self) -> None:
        """End the stream; a waiting `receive` returns. May be called twice."""


class Receiver(Protocol):
    """Receives the messages of a stream, on the transport's threads, one call at a time.

    Calls must return soon: the transport's other work waits for them.
    """

    def received(self, message: bytes) -> None:
        """A message came."""

    def ended(self, error: OffloadError | None) -> None:
        """No more messages will come: the other end has closed, or this error broke the stream."""


class Stream(Protocol):
    """The device's end of a stream: it sends from an iterator and delivers to a Receiver."""

    def deliver(self, receiver: Receiver) -> None:
        """Start to deliver messages; called once."""

    def close(self) -> None:
        """End the stream and return at once; may be called twice, on any thread."""

    def wait(self, timeout_s: float) -> None:
        """After `close`: wait until `ended` has returned and the transport's threads have ended."""


class Connector(Protocol):
    """Opens streams to one server."""

    @property
    def address(self) -> str:
        """The server's address, for error messages."""

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        """Open a stream that sends the messages of `outgoing`, on a thread of the transport.

        An iterator and callbacks save one thread switch for each message. A stream that cannot be
        opened within `timeout_s` ends with a ServerError with the reason.
        """


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

    def receive(self) -> bytes | None:
        return self._inbox.get()

    def close(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._inbox.put(None)
            self._other.put(None)


def pair() -> tuple[Connection, Connection]:
    """Two ends of a stream within this process; messages sent before `close` still arrive."""
    left: Mailbox = queue.SimpleQueue()
    right: Mailbox = queue.SimpleQueue()
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
