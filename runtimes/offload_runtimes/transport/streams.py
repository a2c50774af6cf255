"""Streams of a server: admit them, and hand each to a function that serves it on a thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.protocol.memory_budget import MemoryBudget, Reservation
from offload_runtimes.security.credentials import ServerCredentials
from offload_runtimes.transport import PROBE_LIMIT_BYTES, VERSION_KEY
from offload_runtimes.transport.brief_calls import BriefRequests
from offload_runtimes.transport.connection import Connection

_STATUSES = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    BundleError: grpc.StatusCode.NOT_FOUND,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
SPARE_CALLS = 32  # beyond the sessions: health checks, probes, sessions that are refused
_SMALL_BYTES = 16 * 1024  # sent at once, unless the device reads nothing at all
_FREE_BYTES = 4 * _SMALL_BYTES  # of each stream, in addition to the memory budget
# Unread answers allowed for each stream: 64 MiB, or four of the largest answer so far.
_UNREAD_BYTES = 1 << 26
_UNREAD_ANSWERS = 4
_LAST_ANSWERS_S = 5.0  # for a device to read its last answers


class ServerCall(Protocol):
    """A call of gRPC on the server: what `grpc.ServicerContext` offers and is used here."""

    def peer(self) -> str:
        """The other end, for the log."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The metadata that the client sent."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call a function when the call is over; False, and no call, if it is over already."""

    def cancel(self) -> object:
        """Break the call."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status, by raising an exception."""


class ServerStream:
    """The server's end of a stream; created by the thread that calls `receive`.

    Messages are handled by this thread or by gRPC's polling thread. It sends small answers itself
    before it reads the next message, which saves waking a thread. Large messages, and those of
    other threads, are sent by a thread of their own, so that a device that reads slowly delays only
    itself.
    """

    def __init__(
        self,
        requests: Iterator[bytes],
        transmit: Callable[[bytes | None], None],
        call: ServerCall,
        reservation: Reservation,
    ) -> None:
        """`transmit` sends one message and returns when it is gone; None ends the stream.

        Unread answers are held on `reservation`, except for the first 64 kB, so that an error can
        always be sent.
        """
        self.peer = call.peer()
        metadata = dict(call.invocation_metadata())
        self.version = str(metadata.get(VERSION_KEY, "")) or None
        self.on_end: Callable[[Callable[[], None]], bool] = call.add_callback
        self._requests = requests
        self._transmit = transmit
        self._cancel = call.cancel
        self._reservation = reservation
        self._reader = threading.get_ident()
        self._handler = self._reader  # the thread that handles a message and sends the answers
        self._brief: BriefRequests | None = None  # while the polling thread handles a message
        self._outbox: deque[bytes] = deque()
        self._pending_bytes = 0
        self._largest_bytes = 0
        self._busy = False  # a message is being sent
        self._closed = False
        self._over = False  # the reservation was released
        self._sender: threading.Thread | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def handle_briefly(self, handle: Callable[[bytes], bool]) -> None:
        """Set a function that handles messages on gRPC's polling thread; it must not block.

        It may send answers. If it returns False, `receive` returns the message.
        """
        if isinstance(self._requests, BriefRequests):
            self._requests.answer = partial(self._handle_here, self._requests, handle)

    def _handle_here(
        self, requests: BriefRequests, handle: Callable[[bytes], bool], message: bytes
    ) -> bool:
        """Handle a message on the polling thread, and send small answers from it."""
        if self._closed:
            return False
        self._handler, self._brief = threading.get_ident(), requests
        try:
            is_handled = handle(message)
        finally:
            self._handler, self._brief = self._reader, None
        if is_handled and self._closed:
            requests.end()
        return is_handled

    def _send_here(self, requests: BriefRequests) -> None:
        if (message := self._next_small()) is not None:
            size_bytes = len(message)

            def sent() -> None:
                self._sent(size_bytes)
                self._send_here(requests)

            requests.send(message, sent)

    def send(self, message: bytes) -> None:
        """Queue a message; ServerError if the device does not read its answers."""
        with self._lock:
            self._largest_bytes = max(self._largest_bytes, len(message))
            if self._pending_bytes > max(_UNREAD_BYTES, _UNREAD_ANSWERS * self._largest_bytes):
                self._cancel()
                raise ServerError("the device does not read its answers")
            if not self._hold(len(message)):
                raise ServerError(
                    "the memory for unread answers is in use on the server (--max-memory): try"
                    " again, or allow more"
                )
            self._outbox.append(message)
            is_here = threading.get_ident() == self._handler
            if not is_here:
                self._wake_sender()
        if is_here and self._brief is not None:
            self._send_here(self._brief)

    def receive(self) -> bytes | None:
        """Wait for the next message; None if the device ended the stream or is lost."""
        while (message := self._next_small()) is not None:
            self._send(message)
        try:
            return next(self._requests, None)
        except grpc.RpcError as error:
            # gRPC keeps the error, whose traceback would keep all frames above, with tensors.
            error.__traceback__ = None
            return None

    def close(self) -> None:
        """End the stream after the queued messages; may be called twice."""
        with self._lock:
            self._closed = True
            self._wake_sender()

    def finish(self, timeout_s: float) -> None:
        """Wait until the queued messages are sent and the stream has ended; else break it."""
        self.close()
        assert self._sender is not None
        self._sender.join(timeout_s)
        if self._sender.is_alive():
            self._cancel()
        with self._lock:
            self._over = True
            self._reservation.hold(0)
        if isinstance(self._requests, BriefRequests):
            self._requests.answer = None  # they know each other, and a session with its tensors

    def _wake_sender(self) -> None:
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_all, name="sender", daemon=True)
            self._sender.start()
        self._changed.notify()

    def _next_small(self) -> bytes | None:
        with self._lock:
            if self._busy or not self._outbox:
                return None
            if len(self._outbox[0]) > _SMALL_BYTES:
                self._wake_sender()
                return None
            self._busy = True
            return self._outbox.popleft()

    def _send_all(self) -> None:
        while True:
            with self._lock:
                while self._busy or not (self._outbox or self._closed):
                    self._changed.wait()
                if not self._outbox:
                    break
                self._busy = True
                message = self._outbox.popleft()
            self._send(message)
            del message
        self._transmit(None)

    def _send(self, message: bytes) -> None:
        self._transmit(message)
        self._sent(len(message))

    def _sent(self, size_bytes: int) -> None:
        with self._lock:
            self._busy = False
            self._hold(-size_bytes)
            if self._outbox or self._closed:  # otherwise no thread needs to wake
                self._changed.notify()

    def _hold(self, more_bytes: int) -> bool:
        pending_bytes = self._pending_bytes + more_bytes
        fits = self._over or self._reservation.hold(max(0, pending_bytes - _FREE_BYTES))
        if fits:
            self._pending_bytes = pending_bytes
        return fits


class StreamHost:
    """Admits calls, and hands streams over to the functions that serve them.

    Attributes:
        max_sessions: sessions, streams and requests of KServe v2 at the same time.
        memory: limits the unread answers.
        credentials: certificates and tokens.
    """

    def __init__(
        self,
        max_sessions: int,
        memory: MemoryBudget,
        credentials: ServerCredentials,
        refused: Callable[[str, str], None],
    ) -> None:
        """`refused` is called with the reason and the peer of each session that does not begin."""
        self.max_sessions = max_sessions
        self.memory = memory
        self.credentials = credentials
        self._refused = refused
        self._sessions = 0
        self._lock = threading.Lock()

    def serve(
        self,
        requests: Iterator[bytes],
        call: ServerCall,
        transmit: Callable[[bytes | None], None],
        serve: Callable[[ServerStream], None],
        *,
        counts: bool,
    ) -> None:
        """Serve a stream until it ends, on the caller's thread.

        Args:
            requests: the messages that come.
            call: the call of the stream.
            transmit: sends a message and returns when it is gone; None ends the stream.
            serve: serves the stream until it ends.
            counts: whether it is one of `max_sessions`.
        """
        with self.admitted(call, counts=counts):
            stream = ServerStream(requests, transmit, call, self.memory.reserve(call.cancel))
            try:
                serve(stream)
            finally:
                stream.finish(_LAST_ANSWERS_S)

    @contextmanager
    def admitted(self, call: ServerCall, *, counts: bool) -> Iterator[None]:
        """Refuse a call without a token or beyond `max_sessions`; an OffloadError ends the call."""
        if not self.credentials.admits(call.invocation_metadata()):
            self._refused("token", call.peer())
            call.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
        with self._lock:
            is_full = counts and self._sessions >= self.max_sessions
            self._sessions += counts and not is_full
        if is_full:
            self._refused("full", call.peer())
            call.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"all {self.max_sessions} sessions allowed are open",
            )
        try:
            yield
        except OffloadError as error:
            call.abort(_status(error), str(error))
        finally:
            with self._lock:
                self._sessions -= counts


def _status(error: OffloadError) -> grpc.StatusCode:
    return next(
        (code for kind, code in _STATUSES.items() if isinstance(error, kind)),
        grpc.StatusCode.UNAVAILABLE,
    )


def echo(connection: Connection) -> None:
    """Answer each probe with the number of bytes that it requests, until the stream ends.

    The thread that receives also answers, as in a session with short segments. A message that is
    not a probe, or answers that are never read, end the stream.
    """
    request = pb.ProbeRequest()
    try:
        while (data := connection.receive()) is not None:
            request.ParseFromString(data)
            size_bytes = min(request.reply_bytes, PROBE_LIMIT_BYTES - 1024)
            connection.send(pb.ProbeReply(data=bytes(size_bytes)).SerializeToString())
    except (DecodeError, ServerError):
        pass  # not a probe, or the device does not read: the stream ends
    finally:
        connection.close()
