"""The gRPC health checking protocol (grpc.health.v1), so that probes and balancers can ask.

Its two messages hold one field each, so they are read and written by hand; a generated copy
would clash with the official one in a process that has both.
"""

import threading
from collections.abc import Callable, Iterator

import grpc

SERVICE = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
_POLL_S = 0.2


class Health:
    """Answers for the whole server (an empty name) and for the services it has."""

    def __init__(self, services: tuple[str, ...], is_serving: Callable[[], bool]) -> None:
        self._names = ("", *services)
        self._is_serving = is_serving

    def handler(self) -> grpc.GenericRpcHandler:
        """What to give a gRPC server."""
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _status(self) -> bytes:
        return _SERVING if self._is_serving() else _NOT_SERVING

    def _check(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if _service(request) not in self._names:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return self._status()

    def _watch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """The status now and whenever it changes."""
        if _service(request) not in self._names:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        gone = threading.Event()
        context.add_callback(gone.set)
        last = b""
        while not gone.is_set():
            status = self._status()
            if status != last:
                last = status
                yield status
            gone.wait(_POLL_S)


def _service(request: bytes) -> str | None:
    """The name in a HealthCheckRequest: field 1, a string; None when it isn't one."""
    if not request:
        return ""
    if request[0] != 0x0A or len(request) < 2 or len(request) != 2 + request[1]:
        return None
    return request[2:].decode(errors="replace")
