"""Answer short calls of a gRPC server on gRPC's polling thread.

gRPC's Python server receives all events on one polling thread. It wakes another thread for each
call, for each message of a call, and for each message that was sent. That costs more than a short
inference, and its public interface offers no other way. So this module uses internal functions of
`grpc._server`, which are the same in grpcio 1.70 and 1.85. If one is missing, `begin` takes over no
call, and gRPC runs all calls on other threads.
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
# Returns the answer to a request, or None if computing it may take long.
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
# Errors are logged, not raised: an exception would end the polling thread, and so the server.
_RAISED = "a stream raised an error"
_IS_KNOWN = inside is not None and all(hasattr(inside, name) for name in _USED)


def begin(start: Start, run: Callable[..., Any], args: tuple[Any, ...]) -> "Future[Any] | None":
    """Begin a call that gRPC has passed to its pool as `run` and `args`.

    Only calls whose handler has an attribute `brief` are taken over. For a unary call, it is a
    `BriefAnswer`. For a stream, it is True, and the handler gets `BriefRequests`.

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
    """Read the request of a unary call, and answer it here or on another thread."""

    def received(message_event: Any) -> Any:
        request = message_event.batch_operations[0].message()
        if request is None:
            status = cygrpc.StatusCode.unimplemented
            with state.condition:
                inside._abort(state, event.call, status, b"the call has no request")
            over.set_result(None)
        else:
            # gRPC turns an exception of `brief` into the status of the call.
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
    """An iterator over the requests of a stream that are not answered on the polling thread.

    Attributes:
        answer: called with each request on the polling thread; returns whether it has handled the
            request, and may call `send`. None: the iterator yields all requests.
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
        """End the iteration, even if the client sends more requests."""
        self._waiting.put(None)

    def send(self, message: bytes, sent: Callable[[], None]) -> None:
        """Send a message from the polling thread, while no other message is being sent.

        The next request is read after the message was sent.

        Args:
            message: the message.
            sent: called when the message was sent or the call is over; it may send another one.
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
        """Handle a request, or the end of the requests, on the polling thread."""
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
