"""The gRPC client of KServe v2: one channel to a server, calls that end in callbacks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from offload.errors import (
    BundleError,
    DeadlineError,
    InputError,
    OffloadError,
    ServerError,
)

from offload_runtimes.address import KSERVE_SCHEME, Address, parse_address, proxy_of
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES
from offload_runtimes.security.credentials import ClientSecurity
from offload_runtimes.transport import KSERVE
from offload_runtimes.transport.grpc_client import balancer_error, open_channel

_DIAGNOSIS_SHARE = 0.3  # of the time to connect, for finding out why it failed
Done: TypeAlias = Callable[[bytes | OffloadError], None]


class LostServerError(ServerError):
    """The server does not answer any more, or not yet."""


@dataclass(frozen=True)
class KServeConnector:
    """Opens channels to one server of KServe v2.

    Attributes:
        location: the server.
        model: the model's name there; empty: the bundle's own.
        security: certificates and token.
    """

    location: Address
    model: str
    security: ClientSecurity

    @property
    def address(self) -> str:
        """The server's address, for error messages."""
        return f"{KSERVE_SCHEME}{self.location}"

    def open(self, timeout_s: float) -> "KServeChannel":
        """Open a new channel, which connects with its first call."""
        return KServeChannel(self, timeout_s)


def kserve_connector(text: str, security: ClientSecurity | None = None) -> KServeConnector:
    """Read `kserve://HOST:PORT`, or `kserve://HOST:PORT/MODEL` for a model with a name of its own.

    Raises:
        InputError: the address is wrong, or a token would be sent in the clear.
    """
    host, _, model = text.removeprefix(KSERVE_SCHEME).partition("/")
    location = parse_address(host)
    if not location.port:
        raise InputError(
            f"address {text} has no port: write it like {KSERVE_SCHEME}{location.host}:8001"
        )
    security = security or ClientSecurity()
    security.check(location)
    return KServeConnector(location, model, security)


class KServeChannel:
    """Calls of KServe v2 on one channel."""

    def __init__(self, connector: KServeConnector, timeout_s: float) -> None:
        """`timeout_s` limits an attempt to connect."""
        location, security = connector.location, connector.security
        self._connector = connector
        self._timeout_s = timeout_s
        self._proxy = proxy_of(location)
        self._channel = open_channel(
            location, security, MESSAGE_LIMIT_BYTES, self._proxy, timeout_s
        )
        token = security.token
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._methods: dict[str, Any] = {}
        self._has_answered = False

    def ask(self, method: str, request: bytes) -> bytes:
        """Call a method and wait, at most for the time to connect.

        Raises:
            LostServerError: the server cannot be reached, or does not answer in time.
            OffloadError: it refuses, with its reason.
        """
        try:
            answer = self._method(method)(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            error.__traceback__ = None  # it is the call itself, which would keep these frames
            code = error.code() if isinstance(error, grpc.Call) else None
            is_http = balancer_error(_details(error), self._connector.address) is not None
            if code is grpc.StatusCode.UNAVAILABLE and not self._has_answered and not is_http:
                raise self._unreachable() from None
            raise self._error(error) from None
        self._has_answered = True
        assert isinstance(answer, bytes)
        return answer

    def call(self, method: str, request: bytes, done: Done) -> Callable[[], object]:
        """Call a method; gRPC's thread calls `done` with the answer or the error.

        Returns a function that cancels the call; `done` is not called then.
        """
        future = self._method(method).future(request, metadata=self._metadata)

        def over(ended: Any) -> None:
            code = ended.code()
            if code is grpc.StatusCode.OK:
                done(ended.result())
            elif code is not grpc.StatusCode.CANCELLED:
                done(self._error(ended))

        future.add_done_callback(over)
        cancel: Callable[[], object] = future.cancel
        return cancel

    def close(self) -> None:
        """Cancel all calls and close the channel; may be called twice."""
        self._channel.close()

    def _method(self, name: str) -> Any:
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = self._channel.unary_unary(f"/{KSERVE}/{name}")
        return method

    def _unreachable(self) -> LostServerError:
        from offload_runtimes.transport.diagnosis import unreachable  # ssl takes time to import

        connector = self._connector
        limit_s = _DIAGNOSIS_SHARE * self._timeout_s
        error = unreachable(connector.location, connector.security, self._proxy, limit_s)
        lost = LostServerError(str(error))
        lost.option = error.option
        return lost

    def _error(self, call: Any) -> OffloadError:
        """Our error for gRPC's status of a call."""
        refused = balancer_error(call.details() or "", self._connector.address)
        if refused is not None:
            return LostServerError(str(refused)) if refused.retry else refused
        code, said = call.code(), f"server {self._connector.address}: {_details(call)}"
        match code:
            case grpc.StatusCode.INVALID_ARGUMENT:
                return InputError(said)
            case grpc.StatusCode.NOT_FOUND:
                return BundleError(said)
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.UNIMPLEMENTED:
                return LostServerError(f"{said} ({code.name.lower()})")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineError(said)
            case grpc.StatusCode.UNAUTHENTICATED:
                refused = ServerError(
                    f"server {self._connector.address} refused the token: give the right one"
                )
                refused.retry = False
                return refused
        return ServerError(f"{said} ({code.name.lower()})")


def _details(call: Any) -> str:
    """What the server said, in one line."""
    return " ".join(str(call.details() or "no reason given").split())[:500]
