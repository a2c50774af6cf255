"""The gRPC client: connect with a time limit, send and receive whole messages."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import offload
from offload.errors import InputError, OffloadError, ServerError
from offload.units import format_bytes

from offload_runtimes.address import Address, proxy_of
from offload_runtimes.security.credentials import ClientSecurity, read_pem
from offload_runtimes.transport import FRAME_BYTES, SESSION, VERSION_KEY
from offload_runtimes.transport.connection import Receiver
from offload_runtimes.transport.direct_call import DirectCall, can_call
from offload_runtimes.transport.outbox import Outbox

_CONNECT_SHARE = 0.6  # of the time to open a stream, for connecting
_DIAGNOSIS_SHARE = 0.3  # of that time, for finding out why connecting failed
_STARTING = threading.Lock()  # one call at a time, to know the threads that it starts


class GrpcStream:
    """A stream with a channel of its own, which is closed with it.

    An `Outbox` sends its messages through a `DirectCall` if `can_call` allows it. A thread of gRPC
    reads other iterators; the caller must end the iterator, else it blocks the exit of the process.

    All messages are delivered on gRPC's polling thread. Without a `DirectCall`, gRPC's deserializer
    delivers them there, and a second thread only requests the next message. Reading them from
    gRPC's iterator would delay each message until that thread has woken.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        method: str,
        outgoing: Iterator[bytes],
        token: str | None,
        explain: Callable[[grpc.StatusCode, str, bool], ServerError],
    ) -> None:
        """`explain` makes our error from gRPC's status and whether the server has answered."""
        self._channel: grpc.Channel | None = channel
        self._explain = explain
        self._closed = threading.Event()
        self._receiver: Receiver | None = None  # from `deliver` to the end
        self._has_answered = False
        self._outbox: Outbox | None = None  # if it sends through a `DirectCall`
        self._watcher = threading.Thread(target=self._watch, name="receiver", daemon=True)
        metadata: tuple[tuple[str, str], ...] = ((VERSION_KEY, offload.__version__),)
        if token:
            metadata += (("authorization", f"Bearer {token}"),)
        self._call: Any
        with _STARTING:
            before = set(threading.enumerate())
            if isinstance(outgoing, Outbox) and can_call(channel, method):
                self._call = DirectCall(channel, method, metadata, self._take)
                self._outbox = outgoing
            else:
                start: grpc.StreamStreamMultiCallable[bytes, object]
                start = channel.stream_stream(method, response_deserializer=self._take)
                self._call = start(outgoing, metadata=metadata)
            # Other threads may start meanwhile. Those of this package have names of their own, and
            # a thread without an ident does not run yet, while gRPC's do by now.
            self._threads = {
                thread
                for thread in set(threading.enumerate()) - before
                if thread.ident is not None and thread.name.startswith("Thread-")
            }

    def deliver(self, receiver: Receiver) -> None:
        """Start to deliver messages."""
        self._receiver = receiver
        if self._outbox is not None:
            self._call.receive()
            self._outbox.send_with(self._call.send, self._call.cancel)
        self._watcher.start()

    def close(self) -> None:
        """End the stream; its own thread then closes the channel."""
        self._closed.set()
        call = self._call
        if call is not None:
            call.cancel()

    def wait(self, timeout_s: float) -> None:
        """Wait until the channel is closed, `ended` has returned, and gRPC's threads have ended.

        If the interpreter exits while a thread is inside gRPC, the thread keeps a lock for ever
        that gRPC's destructors wait for.
        """
        until_s = time.monotonic() + timeout_s
        for thread in (self._watcher, *self._threads):
            if thread is not threading.current_thread():
                thread.join(max(until_s - time.monotonic(), 0.0))

    def _take(self, message: bytes) -> object:
        """Deliver a message."""
        self._has_answered = True
        if self._receiver is not None:
            self._receiver.received(message)
        return True

    def _watch(self) -> None:
        """Wait for the end of the call, close the channel and report the end."""
        assert self._call is not None  # until this thread is done with it
        code, details = _status_of(self._call)
        error: OffloadError | None = None
        if code is not grpc.StatusCode.OK and not self._closed.is_set():
            error = self._explain(code, details, self._has_answered)
        channel, self._channel, self._call = self._channel, None, None
        assert channel is not None
        channel.close()
        receiver, self._receiver = self._receiver, None  # they know each other
        assert receiver is not None  # since `deliver`
        receiver.ended(error)


def _status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Wait for the end of a call and return its status.

    If the call is not a `DirectCall`, this also requests its messages.
    """
    if isinstance(call, DirectCall):
        call.over.wait()
        return call.code, call.details
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        error.__traceback__ = None  # the error is the call itself, which would keep these frames
        return call.code(), call.details() or ""
    return grpc.StatusCode.OK, ""


class GrpcConnector:
    """Opens streams to one server, each with a channel of its own."""

    def __init__(
        self,
        address: Address,
        message_limit_bytes: int,
        security: ClientSecurity | None = None,
        method: str = SESSION,
    ) -> None:
        """Check the address and read the certificates.

        `method` is the gRPC method of the streams: SESSION or PROBE.

        Raises:
            InputError: a port is missing, or a token would be sent in the clear.
        """
        if not address.path and not address.port:
            raise InputError(f"address {address} has no port: write it like {address.host}:50051")
        self._address = address
        self.address = str(address)
        self._method = method
        self._security = security or ClientSecurity()
        self._security.check(self._address)
        _credentials(self._security)  # report missing certificates now, not at the first connection
        self._message_limit_bytes = message_limit_bytes

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> GrpcStream:
        """Open a stream on a channel of its own.

        If it cannot be opened within the time, its receiver gets an error with the reason.
        """
        proxy = proxy_of(self._address)

        def explain(code: grpc.StatusCode, details: str, has_answered: bool) -> ServerError:
            if (refused := balancer_error(details, self.address)) is not None:
                return refused
            if code is grpc.StatusCode.CANCELLED and not has_answered:
                # haproxy 2.6 passes the refusal on, and cancels the stream in the same packet.
                return ServerError(
                    f"server {self.address} ended the session before its first answer, and a"
                    " balancer or proxy between hides why: see the server's log (--log)"
                )
            if has_answered or code is not grpc.StatusCode.UNAVAILABLE:
                return _server_error(code, details, self.address)
            from offload_runtimes.transport.diagnosis import unreachable  # ssl takes time to import

            return unreachable(self._address, self._security, proxy, _DIAGNOSIS_SHARE * timeout_s)

        limit_bytes = self._message_limit_bytes
        channel = open_channel(self._address, self._security, limit_bytes, proxy, timeout_s)
        try:
            return GrpcStream(channel, self._method, outgoing, self._security.token, explain)
        except BaseException:
            channel.close()
            raise


def open_channel(
    address: Address,
    security: ClientSecurity,
    message_limit_bytes: int,
    proxy: str | None,
    timeout_s: float,
) -> grpc.Channel:
    """Open a new channel, which connects with its first call.

    Certificates are read anew for each channel: they are renewed while a device runs.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", message_limit_bytes),
        ("grpc.max_receive_message_length", message_limit_bytes),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        # A channel of one's own must not inherit the back-off of an earlier, failed one.
        ("grpc.use_local_subchannel_pool", 1),
        # This long a single attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", max(1, int(1000 * _CONNECT_SHARE * timeout_s))),
        ("grpc.http_proxy", proxy) if proxy else ("grpc.enable_http_proxy", 0),
    ]
    credentials = _credentials(security)
    if credentials is None:
        return grpc.insecure_channel(address.target, options)
    return grpc.secure_channel(address.target, credentials, options)


def _credentials(security: ClientSecurity) -> grpc.ChannelCredentials | None:
    if security.ca is None:
        return None
    return grpc.ssl_channel_credentials(
        read_pem(security.ca),
        read_pem(security.key) if security.key else None,
        read_pem(security.certificate) if security.certificate else None,
    )


def balancer_error(details: str, address: str) -> ServerError | None:
    """The error for an answer in plain HTTP, which only a balancer or proxy gives; None: it is not.

    `details` are those of gRPC's status.
    """
    found = re.search(r"http2 header with status: (\d{3})", details)
    if found is None:
        return None
    status = int(found[1])
    if status in (502, 503, 504):
        return ServerError(
            f"server {address} cannot be reached: a balancer or proxy answers there, and reaches no"
            f" server behind it (HTTP {status}): check that one is running"
        )
    advice = "check its configuration"
    if status in (400, 401, 403):
        advice = "does it ask for a certificate of this device?"
    error = ServerError(
        f"server {address} cannot be reached: a balancer or proxy there refuses the session (HTTP"
        f" {status}): {advice}"
    )
    error.retry = False
    return error


def _server_error(code: grpc.StatusCode, details: str, address: str) -> ServerError:
    if code is grpc.StatusCode.OK:
        return ServerError(f"server {address} ended the session: is it shutting down?")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerError(f"{address} is not an onnx-offload server: check the address")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        refused = ServerError(f"server {address} refused the token: give the right one")
        refused.retry = False
        return refused
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        sizes = re.search(r"larger than max \((\d+) vs\. (\d+)\)", details)
        if sizes is None:
            return ServerError(
                f"server {address} is full, all its sessions are in use: try again later"
            )
        sent, allowed = (format_bytes(int(size)) for size in sizes.groups())
        too_large = ServerError(
            f"a message of {sent} is larger than the {allowed} allowed by server {address}: use a"
            " smaller batch"
        )
        too_large.retry = False
        return too_large
    return ServerError(f"server {address} went away ({code.name.lower()}): is it still running?")
