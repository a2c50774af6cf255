"""Streams of an asyncio gRPC server, such as Ray Serve's, handed to functions that block.

Each stream gets a thread of its own. Both ways the sender waits for the receiver: a message is
read from the network when an earlier one was taken by the thread, and the thread waits until its
message is gone.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import NoReturn

import grpc

from offload_runtimes.transport import SERVICE
from offload_runtimes.transport.streams import ServerStream, StreamHost

LOG = logging.getLogger("offload.server")
METHODS = ("Session", "Probe")
_AHEAD = 2  # messages that are read before the thread takes them


def add_to_server(servicer: object, server: grpc.aio.Server | grpc.Server) -> None:
    """Register a servicer's `Session` and `Probe`, whose messages are bytes."""
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.stream_stream_rpc_method_handler(getattr(servicer, name)) for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class _AbortedError(Exception):
    """The call has ended with a status."""


class AsyncStream:
    """A stream between an asyncio server and a function that blocks."""

    def __init__(
        self,
        requests: AsyncIterator[bytes],
        peer: str,
        metadata: Iterable[tuple[str, str | bytes]],
        set_status: Callable[[grpc.StatusCode, str], None],
        limit_bytes: int,
    ) -> None:
        """A stream that begins when `replies` is iterated.

        Args:
            requests: the messages that come.
            peer: the other end, for the log.
            metadata: the metadata that the client sent.
            set_status: sets the status that the call ends with.
            limit_bytes: the longest message that may come.
        """
        self._requests = requests
        self._peer = peer
        self._metadata = tuple(metadata)
        self._set_status = set_status
        self._limit_bytes = limit_bytes
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox: asyncio.Queue[tuple[bytes, Future[None]] | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._is_full = False  # the reader waits for the thread to take a message
        self._unsent: Future[None] | None = None
        self._is_over = False
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None

    async def replies(
        self, host: StreamHost, serve: Callable[[ServerStream], None], *, counts: bool
    ) -> AsyncGenerator[bytes, None]:
        """Serve the stream on a thread of its own, and yield what it sends.

        Args:
            host: admits the call.
            serve: serves the stream until it ends.
            counts: whether it is one of the host's `max_sessions`.
        """
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()

        def run() -> None:
            try:
                host.serve(self._received(), self, self._transmit, serve, counts=counts)
            except _AbortedError:
                pass  # the status is set below
            except Exception:
                LOG.exception("a stream raised an error")
                self._status = grpc.StatusCode.INTERNAL, "the session failed: see the server's log"
            finally:
                self._post(None)

        reading = asyncio.create_task(self._read())
        threading.Thread(target=run, name="session", daemon=True).start()
        try:
            while (item := await self._outbox.get()) is not None:
                message, sent = item
                yield message
                del message, item
                sent.set_result(None)
            if self._status is not None:
                self._set_status(*self._status)
        finally:
            reading.cancel()
            self._inbox.put(None)
            with self._lock:
                self._is_over = True
                unsent, callbacks = self._unsent, self._callbacks
            if unsent is not None and not unsent.done():
                unsent.set_result(None)
            for callback in callbacks:
                callback()

    def peer(self) -> str:
        """The other end, for the log."""
        return self._peer

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The metadata that the client sent."""
        return self._metadata

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call a function when the call is over; False, and no call, if it is over already."""
        with self._lock:
            if not self._is_over:
                self._callbacks.append(callback)
            return not self._is_over

    def cancel(self) -> None:
        """Break the call, on any thread."""
        if self._task is not None:
            self._call_soon(self._task.cancel)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status, by raising an exception."""
        self._status = code, details
        raise _AbortedError

    async def _read(self) -> None:
        """Queue incoming messages for the thread, a few at a time."""
        try:
            async for message in self._requests:
                if len(message) > self._limit_bytes:
                    # The text of gRPC's own error, which the device recognises.
                    self._status = (
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        f"message larger than max ({len(message)} vs. {self._limit_bytes})",
                    )
                    break
                self._inbox.put(message)
                del message
                self._is_full = True  # before the check: the thread may take one in between
                while self._inbox.qsize() >= _AHEAD:
                    await self._room.wait()
                    self._room.clear()
                self._is_full = False
        except Exception as error:  # noqa: BLE001  whatever broke the stream, it is over
            LOG.info("a stream broke", extra={"fields": {"error": str(error)}})
        finally:
            self._inbox.put(None)

    def _received(self) -> Iterator[bytes]:
        """The messages that came, for the thread."""
        while (message := self._inbox.get()) is not None:
            if self._is_full:  # most messages are taken before the next one comes
                self._call_soon(self._room.set)
            yield message
            del message

    def _transmit(self, message: bytes | None) -> None:
        """Send a message from any thread, one at a time, and return when it is gone.

        None ends the call.
        """
        if message is None:
            self._post(None)
            return
        sent: Future[None] = Future()
        with self._lock:
            if self._is_over:
                return
            self._unsent = sent
        if self._post((message, sent)):
            sent.result()

    def _post(self, item: tuple[bytes, Future[None]] | None) -> bool:
        return self._call_soon(lambda: self._outbox.put_nowait(item))

    def _call_soon(self, call: Callable[[], object]) -> bool:
        """Call a function on the event loop; False if that is closed."""
        assert self._loop is not None  # since the stream began
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False
        return True
