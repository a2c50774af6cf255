"""Calls of a gRPC server that are answered on gRPC's own thread, if that is brief.

gRPC's Python server has one thread that learns of all that arrives. It wakes another thread for
each call, for each message of a call, and for each answer that is gone. That costs more than a
short inference, and its interface offers no other way. So this module uses functions inside
`grpc._server`, which are the same in grpcio 1.70 to 1.85. Where they are missing, `begin` takes no
call, and all calls run on threads as gRPC does it.
"""

import logging
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib import import_module
from typing import Any, TypeAlias

import grpc

try:
    inside: Any = import_module("grpc._server")
    cygrpc: Any = import_module("grpc._cython.cygrpc")
except ImportError:
    inside = None

LOG = logging.getLogger("offload.server")
# Answers a request on gRPC's thread; None: that may take long.
BriefAnswer: TypeAlias = "Callable[[bytes, grpc.ServicerContext], bytes | None]"
Start: TypeAlias = "Callable[..., Future[Any]]"
_USED = (
    "_RECEIVE_MESSAGE_TOKEN",
    "_abort",
    "_call_behavior",
    "_get_initial_metadata_operation",
    "_is_rpc_state_active",
    "_possibly_finish_call",
    "_status",
    "_stream_response_in_pool",
    "_unary_response_in_pool",
)
# Errors are logged here: raised further, they would end gRPC's thread, and with it the server.
_RAISED = "a stream raised an error"
_IS_KNOWN = inside is not None and all(hasattr(inside, name) for name in _USED)


def begin(start: Start, run: Callable[..., Any], args: tuple[Any, ...]) -> "Future[Any] | None":
    """Begin a call that gRPC has passed to its pool as `run` and `args`.

    It is read here if its handler has an attribute `brief`: for a request with one answer a
    `BriefAnswer`, for a stream True, and its requests are then `BriefRequests`.

    Args:
        start: runs a function with arguments on a thread.
        run: the function that gRPC has passed to its pool.
        args: its arguments.

    Returns:
        What gRPC expects from its pool; None: the pool is to run the call.
    """
    if not _IS_KNOWN or len(args) < 5:
        return None
    in_pool, event, state, behavior, _, *rest = args
    brief = getattr(behavior, "brief", None)
    if not brief:
        return None
    if in_pool is inside._stream_response_in_pool:
        requests = BriefRequests(event, state)
        return start(run, in_pool, event, state, behavior, lambda: requests, *rest)
    if in_pool is not inside._unary_response_in_pool:
        return None
    over: Future[Any] = Future()

    def run_on_thread(request: bytes) -> None:
        ran = start(run, in_pool, event, state, behavior, lambda: request, *rest)
        ran.add_done_callback(lambda _: over.set_result(None))

    _begin_unary(event, state, brief, run_on_thread, over)
    return over


def _begin_unary(
    event: Any,
    state: Any,
    brief: BriefAnswer,
    run_on_thread: Callable[[bytes], None],
    over: "Future[Any]",
) -> None:
    """Read the request of a call and answer it on gRPC's thread, or on another one."""

    def received(message_event: Any) -> Any:
        request = message_event.batch_operations[0].message()
        if request is None:
            status = cygrpc.StatusCode.unimplemented
            with state.condition:
                inside._abort(state, event.call, status, b"the call has no request")
            over.set_result(None)
        else:
            # An error of `brief` becomes the call's status there.
            answer, has_succeeded = inside._call_behavior(event, state, brief, request, None)
            if has_succeeded and answer is None:
                run_on_thread(request)
            else:
                if has_succeeded:
                    inside._status(event, state, answer)
                over.set_result(None)
            del request, answer
        with state.condition:
            return inside._possibly_finish_call(state, inside._RECEIVE_MESSAGE_TOKEN)

    event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
    state.due.add(inside._RECEIVE_MESSAGE_TOKEN)


class BriefRequests:
    """The requests of a stream; some are answered on gRPC's thread, the rest are iterated.

    Attributes:
        answer: called on gRPC's thread with each request, returns whether it has handled it, and
            may call `send` for that. None: all requests are iterated.
    """

    def __init__(self, event: Any, state: Any) -> None:
        self.answer: Callable[[bytes], bool] | None = None
        self._call = event.call
        self._state = state
        self._is_sending = False
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._is_over:
            with self._state.condition:
                self._read()
            request = self._waiting.get()
            if request is not None:
                return request
            self._is_over = True
        raise StopIteration

    def end(self) -> None:
        """End the iteration, whatever else may come."""
        self._waiting.put(None)

    def send(self, message: bytes, sent: Callable[[], None]) -> None:
        """Send a message, on gRPC's thread; nothing else may be sent meanwhile.

        The next request is read when all that is sent is gone.

        Args:
            message: the message.
            sent: called when the message is gone, or the call is over; it may send another one.
        """

        def gone(_: object) -> Any:
            self._is_sending = False
            try:
                sent()
            except Exception:
                LOG.exception(_RAISED)
                self._call.cancel()
            with self._state.condition:
                if not self._is_sending:
                    self._read()
                return inside._possibly_finish_call(self._state, token)

        token = object()  # another one for each message: `sent` may send the next one
        operations: tuple[Any, ...] = (cygrpc.SendMessageOperation(message, 0),)
        with self._state.condition:
            if self._state.initial_metadata_allowed:
                self._state.initial_metadata_allowed = False
                operations += (inside._get_initial_metadata_operation(self._state, None),)
            self._is_sending = True
            self._state.due.add(token)
            self._call.start_server_batch(operations, gone)

    def _read(self) -> None:
        """Request the next message, with the lock of the state held."""
        if inside._is_rpc_state_active(self._state):
            self._state.due.add(inside._RECEIVE_MESSAGE_TOKEN)
            self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)
        else:
            self._waiting.put(None)

    def _received(self, event: Any) -> Any:
        """Handle a request on gRPC's thread, or the end of the requests."""
        request, answer = event.batch_operations[0].message(), self.answer
        try:
            is_handled = request is not None and answer is not None and answer(request)
        except Exception:
            LOG.exception(_RAISED)
            self._call.cancel()
            request, is_handled = None, False
        with self._state.condition:
            over = inside._possibly_finish_call(self._state, inside._RECEIVE_MESSAGE_TOKEN)
            if not is_handled:
                self._waiting.put(request)
            elif not self._is_sending:
                self._read()
            return over
