"""Run a stream of frames: device, link and server work at once, answers come in order."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Future
from copy import deepcopy
from typing import Any, TypeAlias, TypeVar

from offload.errors import InputError, OffloadError

from offload_runtimes.device.batch_sharing import SharedBatch
from offload_runtimes.device.inference_runner import PendingInference
from offload_runtimes.engine import Array

Feeds: TypeAlias = Mapping[str, Array]
Tag = TypeVar("Tag")
Frame: TypeAlias = Feeds | tuple[Any, Feeds]
Answer: TypeAlias = list[Array] | tuple[Any, list[Array]]
Prepare: TypeAlias = Callable[[Feeds], PendingInference]
Window: TypeAlias = Callable[[], int]
_JOIN_S = 5.0
_NO_TAG = object()


class Latest:
    """An iterator over the newest frame of a source; frames that are not taken are dropped.

    Args:
        source: read on a thread of its own, as fast as it yields frames.
        dropped: called for every dropped frame.
        copy: copy each frame while it waits, so that the source may reuse its arrays.
    """

    def __init__(
        self, source: Iterable[Frame], dropped: Callable[[], None], *, copy: bool = True
    ) -> None:
        self._source = source
        self._dropped = dropped
        self._copy = copy
        self._newest: Frame | None = None
        self._error: BaseException | None = None
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="latest", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._changed:
            while self._newest is None and not self._is_over:
                self._changed.wait()
            frame, self._newest = self._newest, None
        if frame is None:
            raise self._error or StopIteration
        return frame

    def close(self) -> None:
        """Stop reading; the source is closed after it has yielded its current frame."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """After `close`: wait until the source is not read any more."""
        self._thread.join(timeout_s)

    def _read(self) -> None:
        source = iter(self._source)
        try:
            for item in source:
                frame = deepcopy(item) if self._copy else item
                with self._changed:
                    if self._is_over:
                        break
                    if self._newest is not None:
                        self._dropped()
                    self._newest = frame
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  raised again by __next__
            self._error = error
        _close(source)
        self.close()


class _Starter:
    """A thread that does the device's part of frames of one plan, one after the other."""

    def __init__(self) -> None:
        self._frames: queue.SimpleQueue[tuple[PendingInference, Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="stream plan", daemon=True)
        self._thread.start()

    def start(self, inference: PendingInference) -> "Future[None]":
        """Start an inference after those before it; the future raises what `start` raises."""
        started: Future[None] = Future()
        self._frames.put((inference, started))
        return started

    def end(self) -> None:
        """End the thread after the frames so far."""
        self._frames.put(None)

    def join(self, timeout_s: float) -> None:
        """After `end`: wait until the thread has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._frames.get()) is not None:
            inference, started = item
            try:
                inference.start()
            except BaseException as error:  # noqa: BLE001  raised again by `take`
                started.set_exception(error)
            else:
                started.set_result(None)
            del item, inference, started  # the next frame may come much later


class _Room:
    """Limits how many frames are under way; the limit may change meanwhile."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._used = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def acquire(self) -> bool:
        """Wait until fewer frames than the limit are under way, and add one; False if closed."""
        with self._changed:
            while self._used >= self._limit() and not self._is_closed:
                self._changed.wait()
            self._used += 1
            return not self._is_closed

    def release(self) -> None:
        """Count a frame as finished."""
        with self._changed:
            self._used -= 1
            self._changed.notify()

    def close(self) -> None:
        """Stop admitting frames."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class Pipeline:
    """Starts frames on threads of its own; `take` finishes them in order.

    At most `window()` frames are under way or wait to be taken, so a slow caller holds up the
    source. An error of the source or of a frame is raised in that frame's turn and ends the
    stream. Where several plans share the frames, each has a thread: a frame that the device
    computes alone does not hold up one that is only uploaded.
    """

    def __init__(self, prepare: Prepare, frames: Iterable[Frame], window: Window) -> None:
        self._prepare = prepare
        self._frames = frames
        self._room = _Room(window)
        self._started: queue.SimpleQueue[
            tuple[Any, PendingInference, Future[None] | None] | BaseException | None
        ] = queue.SimpleQueue()  # None: the end
        self._starters: dict[int, _Starter] = {}  # by plan
        self._under_way: set[PendingInference] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._feed, name="stream", daemon=True)
        self._thread.start()

    def take(self) -> Answer | None:
        """Wait for the next answer; None after the last one, and after `stop`."""
        item = self._started.get()
        if item is None:
            return None
        if isinstance(item, BaseException):
            raise item
        tag, inference, started = item
        try:
            if started is not None:
                started.result()
            outputs = inference.finish()
        except OffloadError:
            if self._closed:
                return None
            raise
        finally:
            with self._lock:
                self._under_way.discard(inference)
        self._room.release()
        return outputs if tag is _NO_TAG else (tag, outputs)

    def stop(self) -> None:
        """Cancel the frames under way and start no more; returns at once, as `take` does then."""
        with self._lock:
            self._closed = True
            under_way = list(self._under_way)
        if isinstance(self._frames, Latest | _AsyncFrames):
            self._frames.close()
        for inference in under_way:
            inference.cancel("the stream was closed")
        self._room.close()
        self._started.put(None)

    def join(self) -> None:
        """After `stop`: wait until its threads have ended, or the source blocks one for 5 s."""
        self._thread.join(_JOIN_S)
        for starter in list(self._starters.values()):
            starter.join(_JOIN_S)
        if isinstance(self._frames, Latest):
            self._frames.join(_JOIN_S)

    def _feed(self) -> None:
        source = iter(self._frames)
        try:
            while self._room.acquire():
                try:
                    frame = next(source)
                except StopIteration:
                    self._started.put(None)
                    return
                if isinstance(frame, tuple) and len(frame) != 2:
                    raise InputError(
                        "a frame must be a dict of arrays or (tag, dict), not a tuple of"
                        f" {len(frame)} items"
                    )
                tag, feeds = frame if isinstance(frame, tuple) else (_NO_TAG, frame)
                inference = self._prepare(feeds)
                with self._lock:
                    if self._closed:
                        return
                    self._under_way.add(inference)
                started = None
                if inference.place is None:
                    inference.start()
                else:
                    starter = self._starters.get(inference.frame.plan) or _Starter()
                    self._starters[inference.frame.plan] = starter
                    started = starter.start(inference)
                self._started.put((tag, inference, started))
        except BaseException as error:  # noqa: BLE001  raised again by `take`
            self._started.put(error)
        finally:
            _close(source)
            for starter in self._starters.values():
                starter.end()


def stream_answers(prepare: Prepare, frames: Iterable[Frame], window: Window) -> Iterator[Answer]:
    """Run frames through a session; answers come in order, with the tags of tagged frames."""
    pipeline = Pipeline(prepare, frames, window)
    try:
        while (answer := pipeline.take()) is not None:
            yield answer
    finally:
        pipeline.stop()
        pipeline.join()


async def stream_answers_async(
    prepare: Prepare,
    frames: Iterable[Frame] | AsyncIterable[Frame],
    window: Window,
    wrap: Callable[[Iterable[Frame]], Iterable[Frame]],
) -> AsyncIterator[Answer]:
    """As `stream_answers`, for an event loop, which is never blocked.

    If its task is cancelled, the frames under way are cancelled, too, and the source is closed.
    """
    bridge: _AsyncFrames | None = None
    if isinstance(frames, AsyncIterable):
        source: Iterable[Frame] = (bridge := _AsyncFrames(frames))
    else:
        source = frames
    try:
        pipeline = Pipeline(prepare, wrap(source), window)
        worker = _Worker()
        try:
            while (answer := await worker.call(pipeline.take)) is not None:
                yield answer
        finally:
            pipeline.stop()
            if bridge:
                bridge.close()
            joined = worker.call(pipeline.join)
            worker.end()
            await joined
    finally:
        if bridge:
            await bridge.finish()


async def finish_async(inference: PendingInference | SharedBatch) -> list[Array]:
    """Start and finish an inference without blocking the event loop; stop it if cancelled."""
    worker = _Worker()

    def work() -> list[Array]:
        inference.start()
        return inference.finish()

    outputs = worker.call(work)
    done = worker.call(lambda: None)
    worker.end()
    try:
        arrays: list[Array] = await outputs
        return arrays
    except asyncio.CancelledError:
        inference.cancel("the task was cancelled")
        await done
        raise


class _Worker:
    """A thread that calls functions for an event loop.

    Unlike the loop's own pool, it is never busy with other streams, and it does not keep the
    process from exiting.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name="stream answers", daemon=True).start()

    def call(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Call a function; it runs to its end even if the returned future is cancelled."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def end(self) -> None:
        """End the thread after the calls so far."""
        self._calls.put(None)

    def _run(self) -> None:
        def settle(
            future: asyncio.Future[Any], result: object, error: BaseException | None
        ) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        while (call := self._calls.get()) is not None:
            function, future = call
            result, error = None, None
            try:
                result = function()
            except BaseException as caught:  # noqa: BLE001  raised again where it is awaited
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(settle, future, result, error)
            del call, function, future, result, error


class _AsyncFrames:
    """An iterator for a thread over an asynchronous source, which is read on the event loop."""

    def __init__(self, source: AsyncIterable[Frame]) -> None:
        self._loop = asyncio.get_running_loop()
        self._requested = asyncio.Event()
        self._items: queue.SimpleQueue[Frame | BaseException | None] = queue.SimpleQueue()
        self._task = asyncio.create_task(self._read(source))

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        self._loop.call_soon_threadsafe(self._requested.set)
        item = self._items.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the iteration of the thread."""
        self._items.put(None)

    async def finish(self) -> None:
        """Stop reading and close the source."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, source: AsyncIterable[Frame]) -> None:
        try:
            await self._next_request()
            async for item in source:
                self._items.put(item)
                await self._next_request()
        except Exception as error:  # noqa: BLE001  raised again by __next__
            self._items.put(error)
        finally:
            self._items.put(None)
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    async def _next_request(self) -> None:
        await self._requested.wait()
        self._requested.clear()


def _close(source: Iterator[Frame]) -> None:
    if isinstance(source, Generator):
        source.close()
