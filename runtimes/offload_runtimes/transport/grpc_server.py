"""The server's side of gRPC: listen, answer health checks and probes, hand over sessions."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from offload.errors import InputError, ServerError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.address import Address
from offload_runtimes.protocol.memory_budget import MemoryBudget, Reservation
from offload_runtimes.security.server_credentials import Certificates, ServerCredentials
from offload_runtimes.transport import FRAME_BYTES, PROBE_LIMIT_BYTES, SERVICE, VERSION_KEY
from offload_runtimes.transport.connection import Connection
from offload_runtimes.transport.health import Health

T = TypeVar("T")
_SPARE = 32  # streams beyond the sessions: health checks, probes, sessions that are refused
_SMALL_BYTES = 16 * 1024  # passes at once, unless the device reads nothing at all
_FREE_BYTES = 4 * _SMALL_BYTES  # of each stream, whatever the others hold
_ANSWERS = 4  # as large as the largest one so far, that a stream may leave unread
_PATIENCE_S = 5.0  # for a device to read its last answers


class ServerStream:
    """The server's end of one session's stream; made by the thread that will receive.

    That thread sends small messages itself, before it waits for the next one: a thread less to
    wake. What other threads send, or what is large, goes out on a thread of its own, so that a
    device that reads slowly holds up nobody but itself.
    """

    def __init__(
        self,
        requests: Iterator[bytes],
        transmit: Callable[[bytes | None], None],
        context: grpc.ServicerContext,
        limit_bytes: int,
        account: Reservation,
    ) -> None:
        """`transmit` sends one message and returns when it is gone; None ends the stream.

        What the device has not read is held on `account`, but for the first few kilobytes: an
        error can always be told.
        """
        self.peer = context.peer()
        metadata = dict(context.invocation_metadata())
        self.version = str(metadata.get(VERSION_KEY, "")) or None
        self._requests = requests
        self._transmit = transmit
        self._cancel = context.cancel
        self._limit_bytes = limit_bytes
        self._account = account
        self._reader = threading.get_ident()
        self._outbox: deque[bytes] = deque()
        self._pending_bytes = 0
        self._largest_bytes = 0
        self._busy = False  # a message is being sent
        self._closed = False
        self._over = False  # nothing is held for it any more
        self._sender: threading.Thread | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def send(self, message: bytes) -> None:
        """Queue a message; ServerError when the device does not read its answers."""
        with self._lock:
            self._largest_bytes = max(self._largest_bytes, len(message))
            if self._pending_bytes > max(self._limit_bytes, _ANSWERS * self._largest_bytes):
                self._cancel()
                raise ServerError("the device does not read its answers")
            if not self._hold(len(message)):
                raise ServerError(
                    "the server holds as many unread answers as it may (--max-memory): try again,"
                    " or allow more"
                )
            self._outbox.append(message)
            if threading.get_ident() != self._reader:
                self._wake_sender()

    def receive(self) -> bytes | None:
        """Wait for the next message; None when the device ended the stream or vanished."""
        self._send_small()
        try:
            return next(self._requests, None)
        except grpc.RpcError as error:
            # gRPC keeps the error, whose traceback would keep all frames above, with tensors.
            error.__traceback__ = None
            return None

    def close(self) -> None:
        """End the stream after what is queued; may be called twice."""
        with self._lock:
            self._closed = True
            self._wake_sender()

    def finish(self, timeout_s: float) -> None:
        """Wait until what was queued is sent and the stream has ended; else break it."""
        self.close()
        assert self._sender is not None
        self._sender.join(timeout_s)
        if self._sender.is_alive():
            self._cancel()
        with self._lock:
            self._over = True
            self._account.hold(0)

    def _wake_sender(self) -> None:
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_all, name="sender", daemon=True)
            self._sender.start()
        self._changed.notify()

    def _send_small(self) -> None:
        while (message := self._next_small()) is not None:
            self._send(message)

    def _next_small(self) -> bytes | None:
        with self._lock:
            if self._busy or not self._outbox:
                return None
            if len(self._outbox[0]) > _SMALL_BYTES:
                self._wake_sender()
                return None
            return self._taken()

    def _send_all(self) -> None:
        while (message := self._next()) is not None:
            self._send(message)
        self._transmit(None)

    def _next(self) -> bytes | None:
        with self._lock:
            while self._busy or not (self._outbox or self._closed):
                self._changed.wait()
            return self._taken() if self._outbox else None

    def _taken(self) -> bytes:
        self._busy = True
        return self._outbox.popleft()

    def _send(self, message: bytes) -> None:
        self._transmit(message)
        with self._lock:
            self._busy = False
            self._hold(-len(message))
            if self._outbox or self._closed:  # else there is nothing to wake for
                self._changed.notify()

    def _hold(self, more_bytes: int) -> bool:
        pending_bytes = self._pending_bytes + more_bytes
        allowed = self._over or self._account.hold(max(0, pending_bytes - _FREE_BYTES))
        if allowed:
            self._pending_bytes = pending_bytes
        return allowed


class DaemonPool(ThreadPoolExecutor):
    """Runs each call on a daemon thread of its own; gRPC bounds their number.

    The usual pool's threads are waited for when the process ends, so a server that nobody stopped
    would keep it from ending.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._started: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Start a call."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  whoever asks for the result sees it
                future.set_exception(error)
            self._started.discard(threading.current_thread())

        thread = threading.Thread(target=work, name="grpc", daemon=True)
        self._started.add(thread)
        thread.start()
        return future

    def join(self, timeout_s: float) -> None:
        """Wait for the calls under way."""
        until_s = time.monotonic() + timeout_s
        for thread in tuple(self._started):
            if thread is not threading.current_thread():
                thread.join(max(until_s - time.monotonic(), 0.0))


def _sending_itself(behavior: T) -> T:
    """Let gRPC give a handler a function that sends, instead of taking an iterator from it.

    Then any thread may send. gRPC calls this experimental; it has been there since version 1.24.
    """
    behavior.experimental_non_blocking = True  # type: ignore[attr-defined]
    return behavior


class GrpcHost:
    """Listens on an address and serves sessions and probes.

    Attributes:
        address: where it listens; after `start` with the port really taken.
    """

    def __init__(
        self,
        listen: Address,
        serve: Callable[[Connection], None],
        echo: Callable[[Connection], None],
        *,
        receive_limit_bytes: int,
        send_limit_bytes: int,
        max_sessions: int,
        backlog_bytes: int,
        memory: MemoryBudget,
        is_serving: Callable[[], bool],
        credentials: ServerCredentials,
        refused: Callable[[str, str], None],
    ) -> None:
        """`refused` is told the reason and the peer of each session that does not begin."""
        self._listen = listen
        self._security = credentials
        self._credentials = _credentials(credentials)
        self._refused = refused
        self._max_sessions = max_sessions
        self._sessions = 0
        self._lock = threading.Lock()
        self._methods = {"Session": serve, "Probe": echo}
        self._backlog_bytes = backlog_bytes
        self._memory = memory
        self._pool = DaemonPool()
        self._server = grpc.server(
            self._pool,
            handlers=[self._handler(), Health((SERVICE,), is_serving).handler()],
            options=[
                ("grpc.max_receive_message_length", max(receive_limit_bytes, PROBE_LIMIT_BYTES)),
                ("grpc.max_send_message_length", max(send_limit_bytes, PROBE_LIMIT_BYTES)),
                ("grpc.http2.max_frame_size", FRAME_BYTES),
                ("grpc.so_reuseport", 0),  # else a second server takes the same port in silence
                *_reading(memory),
            ],
            maximum_concurrent_rpcs=max_sessions + _SPARE,
        )
        self.address = str(self._listen)

    def start(self) -> None:
        """Bind and serve; InputError when the port is in use."""
        try:
            port = self._bind(self._listen.target)
        except RuntimeError as error:
            what = (
                "the socket is in use or cannot be made there, choose another path"
                if self._listen.path
                else "the port is in use or the address is not this machine's, choose another"
            )
            raise InputError(f"cannot listen on {self._listen}: {what}") from error
        if not self._listen.path:
            self.address = str(replace(self._listen, port=port))
        self._server.start()

    def stop(self, grace_s: float | None) -> None:
        """Refuse new streams, let the others end within the grace, then break them."""
        self._server.stop(grace_s).wait()
        self._pool.join(_PATIENCE_S)

    def _bind(self, address: str) -> int:
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    def _handler(self) -> grpc.GenericRpcHandler:
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.stream_stream_rpc_method_handler(
                _sending_itself(partial(self._stream, name))
            )
            for name in self._methods
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _stream(
        self,
        method: str,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        transmit: Callable[[bytes | None], None],
    ) -> None:
        if not self._security.admits(context.invocation_metadata()):
            self._refused("token", context.peer())
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
        with self._place(method == "Session") as has_place:
            if not has_place:
                self._refused("full", context.peer())
                context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._max_sessions} sessions are open, as many as allowed",
                )
            account = self._memory.account(context.cancel)
            stream = ServerStream(requests, transmit, context, self._backlog_bytes, account)
            try:
                self._methods[method](stream)
            finally:
                stream.finish(_PATIENCE_S)

    @contextmanager
    def _place(self, is_session: bool) -> Iterator[bool]:
        """Take one of the places for sessions, if there is one and the stream needs it."""
        with self._lock:
            has_place = not is_session or self._sessions < self._max_sessions
            taken = int(is_session and has_place)
            self._sessions += taken
        try:
            yield has_place
        finally:
            with self._lock:
                self._sessions -= taken


def _reading(memory: MemoryBudget) -> list[tuple[str, int]]:
    """How far ahead gRPC reads: where memory is limited, one message a stream.

    Else it reads as much as the link's bandwidth and delay suggest: 32 devices that sent 1 MB each
    time without reading made a server 0.35 to 1.2 GB larger, with this 0.12 GB.
    """
    return [] if math.isinf(memory.limit_bytes) else [("grpc.http2.bdp_probe", 0)]


def _credentials(credentials: ServerCredentials) -> grpc.ServerCredentials | None:
    """gRPC's credentials, which ask at each handshake whether the certificates have changed."""
    first = used = credentials.certificates()
    if first is None:
        return None

    def configuration(found: Certificates) -> grpc.ServerCertificateConfiguration:
        pair = (found.key, found.certificate)
        return grpc.ssl_server_certificate_configuration([pair], found.client_ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        now = credentials.certificates()
        if now is None or now is used:
            return None
        used = now
        return configuration(now)

    # The stubs forget that None means no change.
    return grpc.dynamic_ssl_server_credentials(
        configuration(first),
        changed,  # type: ignore[arg-type]
        first.client_ca is not None,
    )


def echo(connection: Connection) -> None:
    """Answer every request with as many bytes as it asks for, until the stream ends.

    As in a session whose segments are short, the thread that receives answers, too.
    """
    try:
        while (data := connection.receive()) is not None:
            _answer(connection, data)
    finally:
        connection.close()


def _answer(connection: Connection, data: bytes) -> None:
    """Send the answer; what is no request, or is never read, ends the stream."""
    request = pb.ProbeRequest()
    try:
        request.ParseFromString(data)
        size_bytes = min(request.reply_bytes, PROBE_LIMIT_BYTES - 1024)
        connection.send(pb.ProbeReply(data=bytes(size_bytes)).SerializeToString())
    except (DecodeError, ServerError):
        connection.close()
