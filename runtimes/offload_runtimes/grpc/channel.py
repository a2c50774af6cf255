"""The device's side of gRPC: connect with a time limit, send and receive whole messages."""

import re
import threading
from collections.abc import Iterator

import grpc
import offload
from offload.errors import OffloadError, ServerError
from offload.units import format_bytes

from offload_runtimes.grpc import FRAME_BYTES, SESSION, VERSION_KEY
from offload_runtimes.security.credentials import ClientSecurity, read_pem
from offload_runtimes.wire.transport import Receiver

_State = grpc.ChannelConnectivity


class _Inbox:
    """Takes messages where gRPC decodes them, on the thread that learns of their arrival.

    Taken from gRPC's iterator, a message would wake a second thread first, which here only asks
    for the next one, while this one is being worked on.

    Attributes:
        receiver: who gets them; None: nobody, not yet or not any more.
    """

    def __init__(self) -> None:
        self.receiver: Receiver | None = None

    def take(self, message: bytes) -> object:
        """Hand a message over."""
        if self.receiver is not None:
            self.receiver.received(message)
        return True


class GrpcStream:
    """One stream of one channel, which ends with it.

    gRPC pulls the outgoing messages on a thread of its own; whoever gives the iterator ends it
    (left alive, it would block the exit of the process).
    """

    def __init__(
        self,
        channel: grpc.Channel,
        method: str,
        address: str,
        outgoing: Iterator[bytes],
        token: str | None = None,
    ) -> None:
        self._channel = channel
        self._address = address
        self._closed = threading.Event()
        self._inbox = _Inbox()
        self._asking = threading.Thread(target=self._ask, name="receiver", daemon=True)
        start: grpc.StreamStreamMultiCallable[bytes, object]
        start = channel.stream_stream(method, response_deserializer=self._inbox.take)
        metadata: tuple[tuple[str, str], ...] = ((VERSION_KEY, offload.__version__),)
        if token:
            metadata += (("authorization", f"Bearer {token}"),)
        self._call = start(outgoing, metadata=metadata)

    def deliver(self, receiver: Receiver) -> None:
        """Begin to hand over what comes."""
        self._inbox.receiver = receiver
        self._asking.start()

    def close(self) -> None:
        """End the stream; the channel follows on the stream's own thread."""
        self._closed.set()
        self._call.cancel()

    def wait(self, timeout_s: float) -> None:
        """Wait until the channel is closed and the receiver knows."""
        self._asking.join(timeout_s)

    def _ask(self) -> None:
        error: OffloadError | None = None
        try:
            for _ in self._call:
                pass
        except grpc.RpcError as caught:
            error = None if self._closed.is_set() else _server_error(caught, self._address)
            caught.__traceback__ = None  # it is the call itself, which would keep these frames
        self._channel.close()
        receiver, self._inbox.receiver = self._inbox.receiver, None  # they know each other
        assert receiver is not None  # since `deliver`
        receiver.ended(error)


class GrpcConnector:
    """Opens sessions on one server, each on a channel of its own."""

    def __init__(
        self,
        address: str,
        message_limit_bytes: int,
        security: ClientSecurity | None = None,
    ) -> None:
        self.address = address
        self._security = security or ClientSecurity()
        self._security.check(address)
        self._secure = _credentials(self._security) is not None
        self._options = _options(message_limit_bytes)

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> GrpcStream:
        """A new session's stream; ServerError when the server can't be reached in time."""
        return self.open(SESSION, outgoing, timeout_s)

    def open(self, method: str, outgoing: Iterator[bytes], timeout_s: float) -> GrpcStream:
        """A stream of some method, on a channel of its own."""
        channel = self._channel()
        try:
            _wait_ready(channel, self.address, timeout_s, secure=self._secure)
        except BaseException:
            channel.close()
            raise
        return GrpcStream(channel, method, self.address, outgoing, self._security.token)

    def _channel(self) -> grpc.Channel:
        # Read anew for each connection: certificates are renewed while a device runs.
        credentials = _credentials(self._security)
        if credentials is None:
            return grpc.insecure_channel(self.address, self._options)
        return grpc.secure_channel(self.address, credentials, self._options)


def _credentials(security: ClientSecurity) -> grpc.ChannelCredentials | None:
    if security.ca is None:
        return None
    return grpc.ssl_channel_credentials(
        read_pem(security.ca),
        read_pem(security.key) if security.key else None,
        read_pem(security.certificate) if security.certificate else None,
    )


def _options(message_limit_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", message_limit_bytes),
        ("grpc.max_receive_message_length", message_limit_bytes),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        # A channel of one's own must not inherit the back-off of an earlier, failed one.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _wait_ready(channel: grpc.Channel, address: str, timeout_s: float, *, secure: bool) -> None:
    """Return when connected; fail at once when refused, not only when the time is over."""
    settled = threading.Event()
    states: list[grpc.ChannelConnectivity] = []

    def watch(state: grpc.ChannelConnectivity) -> None:
        if state in (_State.READY, _State.TRANSIENT_FAILURE, _State.SHUTDOWN):
            states.append(state)
            settled.set()

    channel.subscribe(watch, try_to_connect=True)
    try:
        settled.wait(timeout_s)
    finally:
        channel.unsubscribe(watch)
    if not states:
        raise ServerError(f"server {address} did not answer within {timeout_s:g} s: is it running?")
    if states[0] is not _State.READY:
        advice = (
            "is it running with TLS, and do both sides' certificates come from authorities the"
            " other trusts and last until today?"
            if secure
            else "start it with `offload serve`, or give --ca if it speaks TLS"
        )
        raise ServerError(f"server {address} cannot be reached: {advice}")


def _server_error(error: object, address: str) -> ServerError:
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    if code is grpc.StatusCode.OK:
        return ServerError(f"server {address} ended the session: is it shutting down?")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerError(f"{address} is not an onnx-offload server: check the address")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        refused = ServerError(f"server {address} refused the token: give the right one")
        refused.retry = False
        return refused
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        details = (error.details() if isinstance(error, grpc.Call) else "") or ""
        sizes = re.search(r"larger than max \((\d+) vs\. (\d+)\)", details)
        if sizes is None:
            return ServerError(
                f"server {address} is full, it has as many sessions as it may: try again later"
            )
        sent, allowed = (format_bytes(int(size)) for size in sizes.groups())
        too_large = ServerError(
            f"a message of {sent} is larger than the {allowed} that go to or from server"
            f" {address}: give it a smaller batch"
        )
        too_large.retry = False
        return too_large
    return ServerError(f"server {address} went away ({code.name.lower()}): is it still running?")
