"""Streams of messages: the interfaces of a transport."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol

from offload.errors import OffloadError


class Connection(Protocol):
    """One bidirectional stream of whole messages, in order."""

    def send(self, message: bytes) -> None:
        """Queue a message; ServerError if the stream is broken."""

    def receive(self) -> bytes | None:
        """Wait for the next message; None if the other end has closed; ServerError if broken."""

    def handle_briefly(self, handle: Callable[[bytes], bool]) -> None:
        """Set a function that the transport may call with each message, on its polling thread.

        `handle` must not block. If it returns False, `receive` returns the message.
        """

    def close(self) -> None:
        """End the stream; a waiting `receive` returns. May be called twice."""


class EndingConnection(Connection, Protocol):
    """A connection that reports its end, whoever ends it."""

    @property
    def peer(self) -> str:
        """The other end, for the log."""

    def on_end(self, call: Callable[[], None]) -> bool:
        """Call a function when the stream is over; False, and no call, if it is over already."""


class InferenceService(Protocol):
    """Calls of another protocol on the server's port: KServe v2.

    All raise OffloadError, which the client gets as gRPC's status.
    """

    @property
    def request_limit_bytes(self) -> int:
        """The longest request that is received."""

    @property
    def calls(self) -> Mapping[str, Callable[[bytes], bytes]]:
        """The methods that are no inference, by name: a request's bytes to an answer's."""

    def infer(self, data: bytes, peer: str, on_end: Callable[[Callable[[], None]], bool]) -> bytes:
        """Answer one request for an inference; `on_end` as `EndingConnection.on_end`."""

    def infer_briefly(self, data: bytes, turn: Hashable, *, in_stream: bool) -> bytes | None:
        """Answer a request if that takes little time; None: use `infer` or `stream`."""

    def stream(self, connection: EndingConnection) -> None:
        """Answer a stream of requests until it ends."""


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

        The messages of an `Outbox` may also be sent by the threads that put them there. A stream
        that cannot be opened within `timeout_s` ends with a ServerError with the reason.
        """
