"""Send and receive the messages of a gRPC client's stream without waking other threads.

gRPC's Python client reads the messages to send from an iterator on a thread of its own, and another
thread must request each message that comes. Waking these threads costs more than sending or parsing
a short message, and gRPC's public interface offers no other way. So this module uses internal
functions of `grpc._channel` and `grpc._cython`, which are the same in grpcio 1.70 and 1.85. If one
is missing, `can_call` is false.
"""

import logging
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import grpc

LOG = logging.getLogger("offload.device")
try:
    cygrpc: Any = import_module("grpc._cython.cygrpc")
    codes: Any = import_module("grpc._common").CYGRPC_STATUS_CODE_TO_STATUS_CODE
except (ImportError, AttributeError):
    cygrpc = codes = None
_USED = (
    "OperationType",
    "PropagationConstants",
    "ReceiveInitialMetadataOperation",
    "ReceiveMessageOperation",
    "ReceiveStatusOnClientOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
)
_IS_KNOWN = cygrpc is not None and all(hasattr(cygrpc, name) for name in _USED)
_NO_FLAGS = 0


def can_call(channel: grpc.Channel, method: str) -> bool:
    """Whether this version of gRPC has the internal functions that `DirectCall` uses."""
    start: Any = channel.stream_stream(method)
    return _IS_KNOWN and all(hasattr(start, name) for name in ("_managed_call", "_method"))


class DirectCall:
    """A bidirectional stream: any thread sends messages, gRPC's polling thread delivers them.

    Attributes:
        over: set when the call has ended; no message is delivered afterwards.
        code: the status of the call once it has ended.
        details: the sentence of that status.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        method: str,
        metadata: tuple[tuple[str, str], ...],
        received: Callable[[bytes], object],
    ) -> None:
        """`received` is called with each message on gRPC's polling thread; it must not block.

        No message is delivered before `receive` is called.
        """
        self.over = threading.Event()
        self.code = grpc.StatusCode.UNKNOWN
        self.details = ""
        self._received = received
        self._lock = threading.Lock()
        self._due = 0  # batches of operations that have not completed
        start: Any = channel.stream_stream(method)
        batches = (
            (
                cygrpc.SendInitialMetadataOperation(metadata, _NO_FLAGS),
                cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS),
            ),
            (cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),),
        )
        flags = cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS
        name = start._method
        with self._lock:
            self._due = len(batches)
            self._call = start._managed_call(
                flags, name, None, None, metadata, None, batches, self._began, None, None
            )

    def receive(self) -> None:
        """Request the next message; each delivered message requests the one after it."""
        self._start(cygrpc.ReceiveMessageOperation(_NO_FLAGS), self._deliver)

    def send(self, message: bytes, gone: Callable[[], None]) -> bool:
        """Send a message; False if the call has ended. No other message may be under way.

        `gone` is called on the polling thread when the message was sent or the call has ended.
        """

        def sent(_: object) -> bool:
            self._guarded(gone)
            return self._is_last()

        return self._start(cygrpc.SendMessageOperation(message, _NO_FLAGS), sent)

    def cancel(self) -> None:
        """End the call; may be called twice, on any thread."""
        self._call.cancel(cygrpc.StatusCode.cancelled, "cancelled by the device")

    def _deliver(self, event: Any) -> bool:
        message = event.batch_operations[0].message()
        if message is not None:  # else no more messages come
            self._guarded(self._received, message)
            self.receive()
        return self._is_last()

    def _began(self, event: Any) -> bool:
        """Handle the completion of a first batch; the one with the status ends the call."""
        for operation in event.batch_operations:
            if operation.type() == cygrpc.OperationType.receive_status_on_client:
                self.code = codes.get(operation.code(), grpc.StatusCode.UNKNOWN)
                details = operation.details() or ""
                self.details = details if isinstance(details, str) else details.decode()
                self.over.set()
        return self._is_last()

    def _start(self, operation: Any, handle: Callable[[Any], bool]) -> bool:
        """Start an operation; False if the call is over. `handle` runs on the polling thread."""
        with self._lock:
            if self.over.is_set() or not self._call.operate((operation,), handle):
                return False
            self._due += 1
            return True

    def _is_last(self) -> bool:
        """Count a completed batch; True for the last one, as gRPC's polling thread expects."""
        with self._lock:
            self._due -= 1
            return self._due == 0

    def _guarded(self, call: Callable[..., object], *arguments: bytes) -> None:
        """Call a function and log its exception, which would end the polling thread."""
        try:
            call(*arguments)
        except Exception:
            LOG.exception("a message of a stream raised an error")
            self.cancel()
