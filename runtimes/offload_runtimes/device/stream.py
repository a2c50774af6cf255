"""Many frames through one session: device, link and server busy at once, answers in order."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from offload_runtimes.device.execution import Running
from offload_runtimes.engine import Array

Feeds: TypeAlias = Mapping[str, Array]
Begin: TypeAlias = Callable[[Feeds], Running]
_JOIN_S = 5.0


class _End:
    """Stands for the end of a stream in a queue."""


_END = _End()


def answers(begin: Begin, frames: Iterable[Feeds], window: int) -> Iterator[list[Array]]:
    """Begin frames on a thread of its own, finish them in order on the caller's.

    At most `window` frames are under way or wait to be taken, so a slow caller holds up the
    source. An error of the source or of a frame is raised in that frame's turn and ends it all.
    """
    room = threading.Semaphore(window)
    begun: queue.SimpleQueue[Running | BaseException | _End] = queue.SimpleQueue()
    stopped = threading.Event()

    def feed() -> None:
        source = iter(frames)
        try:
            while room.acquire() and not stopped.is_set():
                begun.put(begin(next(source)))
        except StopIteration:
            begun.put(_END)
        except BaseException as error:  # noqa: BLE001  raised again where the caller sees it
            begun.put(error)

    thread = threading.Thread(target=feed, name="stream", daemon=True)
    thread.start()
    try:
        while not isinstance(item := begun.get(), _End):
            if isinstance(item, BaseException):
                raise item
            outputs = item.finish()
            room.release()
            yield outputs
    finally:
        stopped.set()
        room.release()
        thread.join(_JOIN_S)
        _give_up(begun)


def _give_up(begun: "queue.SimpleQueue[Running | BaseException | _End]") -> None:
    """Let the server forget what nobody waits for any more."""
    with contextlib.suppress(queue.Empty):
        while True:
            item = begun.get_nowait()
            if isinstance(item, Running):
                item.end()


class Latest:
    """An iterator over the newest item of a source; items nobody came for are dropped.

    Args:
        source: read on a thread of its own, as fast as it gives items.
        dropped: called for every item dropped.
    """

    def __init__(self, source: Iterable[Feeds], dropped: Callable[[], None]) -> None:
        self._source = source
        self._dropped = dropped
        self._item: Feeds | BaseException | _End | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="latest", daemon=True).start()

    def __iter__(self) -> Iterator[Feeds]:
        return self

    def __next__(self) -> Feeds:
        with self._changed:
            while self._item is None:
                self._changed.wait()
            item = self._item
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, _End):
                raise StopIteration
            self._item = None
            return item

    def _read(self) -> None:
        try:
            for item in self._source:
                self._offer(item)
            last: BaseException | _End = _END
        except BaseException as error:  # noqa: BLE001  raised again where the caller sees it
            last = error
        with self._changed:
            while self._item is not None:  # the last frame is not stale: let it be taken
                self._changed.wait(0.01)
            self._item = last
            self._changed.notify()

    def _offer(self, item: Feeds) -> None:
        with self._changed:
            if self._item is not None:
                self._dropped()
            self._item = item
            self._changed.notify()


async def answers_async(
    begin: Begin,
    frames: Iterable[Feeds] | AsyncIterable[Feeds],
    window: int,
    wrap: Callable[[Iterable[Feeds]], Iterable[Feeds]],
) -> AsyncIterator[list[Array]]:
    """As `answers`, for an event loop: it waits on other threads, never on the loop's."""
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(frames, AsyncIterable):
            bridge = _Bridge()
            task = asyncio.create_task(bridge.carry(frames))
            stack.callback(task.cancel)
            stack.callback(bridge.close)
            source: Iterable[Feeds] = bridge
        else:
            source = frames
        found = answers(begin, wrap(source), window)
        try:
            while not isinstance(item := await asyncio.to_thread(next, found, _END), _End):
                yield item
        finally:
            if isinstance(frames, AsyncIterable):
                bridge.close()
            await asyncio.to_thread(found.close)  # type: ignore[attr-defined]


class _Bridge:
    """Carries the items of an asynchronous source to threads, one at a time."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Feeds | BaseException | _End] = queue.SimpleQueue()
        self._taken = threading.Semaphore(1)

    def __iter__(self) -> Iterator[Feeds]:
        while not isinstance(item := self._items.get(), _End):
            if isinstance(item, BaseException):
                raise item
            self._taken.release()
            yield item

    async def carry(self, source: AsyncIterable[Feeds]) -> None:
        """Read the source to its end."""
        try:
            async for item in source:
                await asyncio.to_thread(self._taken.acquire)
                self._items.put(item)
            self.close()
        except Exception as error:  # noqa: BLE001  raised again where the caller sees it
            self._items.put(error)

    def close(self) -> None:
        """End what threads read from it."""
        self._items.put(_END)
        self._taken.release()
