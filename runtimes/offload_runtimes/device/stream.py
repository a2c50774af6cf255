"""Many frames through one session: device, link and server busy at once, answers in order."""

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
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from copy import deepcopy
from typing import Any, TypeAlias, TypeVar

from offload.errors import InputError, OffloadError

from offload_runtimes.device.inference_runner import PendingInference
from offload_runtimes.engine import Array

Feeds: TypeAlias = Mapping[str, Array]
Tag = TypeVar("Tag")
Frame: TypeAlias = Feeds | tuple[Any, Feeds]
Answer: TypeAlias = list[Array] | tuple[Any, list[Array]]
Prepare: TypeAlias = Callable[[Feeds], PendingInference]
_JOIN_S = 5.0


class _EndOfStream:
    """Stands for the end of a stream in a queue."""


_END = _EndOfStream()
_NO_TAG: Hashable = object()


def split_frame(frame: Frame) -> tuple[Any, Feeds]:
    """The tag of a frame, `_NO_TAG` without one, and its inputs.

    Raises:
        InputError: a tuple that is not a tag and its inputs.
    """
    if not isinstance(frame, tuple):
        return _NO_TAG, frame
    if len(frame) != 2:
        raise InputError(
            f"a frame is a dict of arrays or (tag, dict), not a tuple of {len(frame)} items"
        )
    return frame


class Latest:
    """An iterator over the newest frame of a source; frames nobody came for are dropped.

    Args:
        source: read on a thread of its own, as fast as it gives frames.
        dropped: called for every frame dropped.
        copy: copy each frame while it waits, so that the source may reuse its arrays.
    """

    def __init__(
        self, source: Iterable[Frame], dropped: Callable[[], None], *, copy: bool = True
    ) -> None:
        self._source = source
        self._dropped = dropped
        self._copy = copy
        self._item: Frame | BaseException | _EndOfStream | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="latest", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._changed:
            while self._item is None and not self._is_closed:
                self._changed.wait()
            item = self._item
            if isinstance(item, BaseException):
                raise item
            if item is None or isinstance(item, _EndOfStream):
                raise StopIteration
            self._item = None
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Stop reading; the source is closed once it has given what it is asked for."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """After `close`: wait until nothing is read any more."""
        self._thread.join(timeout_s)

    def _read(self) -> None:
        source = iter(self._source)
        last: BaseException | _EndOfStream = _END
        try:
            for item in source:
                if not self._offer(item):
                    break
        except BaseException as error:  # noqa: BLE001  raised again where the caller sees it
            last = error
        _close(source)
        with self._changed:
            # The last frame is not stale: let it be taken.
            self._changed.wait_for(lambda: self._item is None or self._is_closed)
            self._item = last
            self._changed.notify_all()

    def _offer(self, frame: Frame) -> bool:
        """Show a frame; whether another one is wanted."""
        kept = deepcopy(frame) if self._copy else frame
        with self._changed:
            if self._is_closed:
                return False
            if self._item is not None:
                self._dropped()
            self._item = kept
            self._changed.notify_all()
            return True


class Pipeline:
    """Begins frames on a thread of its own and finishes them in order, where `take` is called.

    At most `window` frames are under way or wait to be taken, so a slow caller holds up the
    source. An error of the source or of a frame is raised in that frame's turn and ends it all.
    """

    def __init__(self, prepare: Prepare, frames: Iterable[Frame], window: int) -> None:
        self._prepare = prepare
        self._frames = frames
        self._room = threading.Semaphore(window)
        self._begun: queue.SimpleQueue[tuple[Any, PendingInference] | BaseException | _EndOfStream]
        self._begun = queue.SimpleQueue()
        self._under_way: set[PendingInference] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._feed, name="stream", daemon=True)
        self._thread.start()

    def take(self) -> Answer | _EndOfStream:
        """Wait for the next answer; `_END` after the last one, and when closed."""
        item = self._begun.get()
        if isinstance(item, _EndOfStream):
            return item
        if isinstance(item, BaseException):
            raise item
        tag, running = item
        try:
            outputs = running.finish()
        except OffloadError:
            if self._closed:
                return _END
            raise
        finally:
            with self._lock:
                self._under_way.discard(running)
        self._room.release()
        return outputs if tag is _NO_TAG else (tag, outputs)

    def stop(self) -> None:
        """Cancel all that was begun and begin nothing more; returns at once, `take` does too."""
        with self._lock:
            self._closed = True
            under_way = list(self._under_way)
        if isinstance(self._frames, Latest | _AsyncFrames):
            self._frames.close()
        for running in under_way:
            running.cancel("the stream was closed")
        self._room.release()
        self._begun.put(_END)

    def join(self) -> None:
        """After `stop`: wait until nothing of it runs any more, while the source allows that."""
        self._thread.join(_JOIN_S)
        if isinstance(self._frames, Latest):
            self._frames.join(_JOIN_S)

    def _feed(self) -> None:
        source = iter(self._frames)
        try:
            while self._room.acquire() and not self._closed:
                try:
                    frame = next(source)
                except StopIteration:
                    self._begun.put(_END)
                    return
                tag, feeds = split_frame(frame)
                running = self._prepare(feeds)
                with self._lock:
                    if self._closed:
                        return
                    self._under_way.add(running)
                running.start()
                self._begun.put((tag, running))
        except BaseException as error:  # noqa: BLE001  raised again where the caller sees it
            self._begun.put(error)
        finally:
            _close(source)


def answers(prepare: Prepare, frames: Iterable[Frame], window: int) -> Iterator[Answer]:
    """Run frames through a session; answers in order, with the tags of frames that have one."""
    pipeline = Pipeline(prepare, frames, window)
    try:
        while not isinstance(answer := pipeline.take(), _EndOfStream):
            yield answer
    finally:
        pipeline.stop()
        pipeline.join()


async def answers_async(
    prepare: Prepare,
    frames: Iterable[Frame] | AsyncIterable[Frame],
    window: int,
    wrap: Callable[[Iterable[Frame]], Iterable[Frame]],
) -> AsyncIterator[Answer]:
    """As `answers`, for an event loop, which never waits for another thread.

    When its task is cancelled, what was begun is cancelled, too, and the source is closed.
    """
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(frames, AsyncIterable):
            bridge = _AsyncFrames(frames)
            stack.push_async_callback(bridge.finish)
            source: Iterable[Frame] = bridge
        else:
            source = frames
        pipeline = Pipeline(prepare, wrap(source), window)
        worker = _Worker()
        try:
            while not isinstance(answer := await worker.call(pipeline.take), _EndOfStream):
                yield answer
        finally:
            pipeline.stop()
            if isinstance(frames, AsyncIterable):
                bridge.close()
            joined = worker.call(pipeline.join)
            worker.end()
            await joined


async def finish_async(running: PendingInference) -> list[Array]:
    """Start and finish an inference without blocking the event loop; stop it when cancelled."""
    worker = _Worker()

    def work() -> list[Array]:
        running.start()
        return running.finish()

    outputs = worker.call(work)
    done = worker.call(lambda: None)
    worker.end()
    try:
        found: list[Array] = await outputs
        return found
    except asyncio.CancelledError:
        running.cancel("the task was cancelled")
        await done
        raise


class _Worker:
    """One thread that calls functions for an event loop.

    Unlike the loop's own pool it has a place for every stream, and does not keep the process from
    ending.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._run, name="stream answers", daemon=True).start()

    def call(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """What the function returns or raises; when this is cancelled, the function goes on."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def end(self) -> None:
        """End the thread after the calls so far."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            result, error = None, None
            try:
                result = function()
            except BaseException as caught:  # noqa: BLE001  raised again where it is awaited
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            del call, function, future, result, error


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class _AsyncFrames:
    """Gives the frames of an asynchronous source to a thread, each when it asks for it."""

    def __init__(self, source: AsyncIterable[Frame]) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._items: queue.SimpleQueue[Frame | BaseException | _EndOfStream] = queue.SimpleQueue()
        self._task = asyncio.create_task(self._carry(source))

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        self._loop.call_soon_threadsafe(self._asked.set)
        item = self._items.get()
        if isinstance(item, _EndOfStream):
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End what a thread reads from it."""
        self._items.put(_END)

    async def finish(self) -> None:
        """Stop reading and close the source."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _carry(self, source: AsyncIterable[Frame]) -> None:
        try:
            await self._wanted()
            async for item in source:
                self._items.put(item)
                await self._wanted()
        except Exception as error:  # noqa: BLE001  raised again where the caller sees it
            self._items.put(error)
        finally:
            self._items.put(_END)
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    async def _wanted(self) -> None:
        await self._asked.wait()
        self._asked.clear()


def _close(source: Iterator[Frame]) -> None:
    if isinstance(source, Generator):
        source.close()
