"""Which thread makes and sends each message of an outbox, the order, and the end."""

import queue
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import pytest
from offload_runtimes.transport.outbox import Outbox

from tests.runtimes.waiting import eventually

LONG_BYTES = 1 << 20


def echo(message: bytes | None) -> bytes | None:
    return message


class Link:
    """Sends one message at a time; `finish` reports that it was sent, as a transport does."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, str]] = []  # and the name of the thread that sent it
        self.is_over = False
        self._gone: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_busy = False

    def send(self, message: bytes, gone: Callable[[], None]) -> bool:
        assert not self._is_busy
        if self.is_over:
            return False
        self._is_busy = True
        self.sent.append((message, threading.current_thread().name))
        self._gone.put(gone)
        return True

    def cancel(self) -> None:
        self.is_over = True

    def finish(self, count: int = 1) -> None:
        for _ in range(count):
            gone = self._gone.get(timeout=10)
            self._is_busy = False
            gone()


def test_short_messages_are_sent_by_the_thread_that_puts_them() -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)
    me = threading.current_thread().name
    for number in range(3):
        outbox.put(partial(echo, bytes([number])), 100)
        assert link.sent[number] == (bytes([number]), me)
        link.finish()
    assert outbox.count == 3


def test_long_messages_are_made_and_sent_by_another_thread() -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)
    names = []

    def long() -> bytes:
        names.append(threading.current_thread().name)
        return b"long"

    outbox.put(long, LONG_BYTES)
    link.finish()
    outbox.put(lambda: b"short", 100)
    assert names == ["sender"]
    assert [name for _, name in link.sent] == ["sender", threading.current_thread().name]
    link.finish()
    outbox.close()
    outbox.wait(10)
    assert "sender" not in {thread.name for thread in threading.enumerate()}


def test_messages_wait_while_one_is_being_sent() -> None:
    link, outbox = Link(), Outbox()
    outbox.put(lambda: b"before")
    outbox.send_with(link.send, link.cancel)
    outbox.put(lambda: b"short")
    outbox.put(lambda: None)  # has nothing to send any more
    outbox.put(lambda: b"long", LONG_BYTES)
    outbox.put(lambda: b"last")
    assert [message for message, _ in link.sent] == [b"before"]
    link.finish(4)
    assert [message for message, _ in link.sent] == [b"before", b"short", b"long", b"last"]
    assert outbox.count == 4
    outbox.close()
    outbox.wait(10)


@pytest.mark.parametrize("size_bytes", [100, LONG_BYTES])
def test_a_message_that_cannot_be_made_ends_the_stream(
    size_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)

    def make() -> NoReturn:
        raise MemoryError

    outbox.put(make, size_bytes)
    eventually(lambda: link.is_over)
    outbox.put(lambda: b"next", size_bytes)
    outbox.close()
    outbox.wait(10)
    assert not link.sent
    assert "MemoryError" in caplog.text
    assert "sender" not in {thread.name for thread in threading.enumerate()}


def test_an_interruption_is_raised_and_the_next_message_is_sent() -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)

    def make() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outbox.put(make)
    outbox.put(lambda: b"next")
    assert [message for message, _ in link.sent] == [b"next"]


def test_long_messages_are_sent_here_if_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    outbox.put(lambda: b"long", LONG_BYTES)
    assert [message for message, _ in link.sent] == [b"long"]
    link.finish()
    outbox.close()
    outbox.wait(10)


@pytest.mark.parametrize("size_bytes", [100, LONG_BYTES])
def test_the_sender_ends_although_messages_wait_when_the_stream_ends(size_bytes: int) -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)
    outbox.put(lambda: b"long", LONG_BYTES)
    eventually(lambda: bool(link.sent))
    for _ in range(3):
        outbox.put(lambda: b"waits", size_bytes)
    outbox.close()
    link.cancel()
    link.finish()
    outbox.wait(10)
    assert "sender" not in {thread.name for thread in threading.enumerate()}


def test_only_one_message_is_made_after_the_stream_is_over() -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)
    outbox.put(lambda: b"one")
    made: list[int] = []

    def make(size_bytes: int) -> bytes:
        made.append(size_bytes)
        return b"more"

    for size_bytes in (100, LONG_BYTES, 100):
        outbox.put(partial(make, size_bytes), size_bytes)
    link.is_over = True
    link.finish()
    assert made == [100]  # sending it showed that the stream is over
    outbox.close()
    outbox.put(lambda: b"late")
    assert [message for message, _ in link.sent] == [b"one"]


def test_a_transport_that_iterates_gets_what_was_put_before_the_end() -> None:
    outbox = Outbox()
    made: list[bytes] = []
    reader = threading.Thread(target=lambda: made.extend(outbox))
    reader.start()
    for message in (b"a", None, b"b"):
        outbox.put(partial(echo, message), LONG_BYTES)
    outbox.close()
    outbox.put(lambda: b"late")
    reader.join(10)
    assert made == [b"a", b"b"]
    assert outbox.count == 2


@pytest.mark.parametrize("seed", range(5))
def test_messages_of_several_threads_keep_the_order_of_each(seed: int) -> None:
    link, outbox = Link(), Outbox()
    outbox.send_with(link.send, link.cancel)
    count, threads = 200, 3

    def put(thread: int) -> None:
        draw = random.Random(10 * seed + thread)
        for number in range(count):
            message = b"%d %d" % (thread, number)
            outbox.put(partial(echo, message), draw.choice((10, LONG_BYTES)))

    workers = [threading.Thread(target=put, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    link.finish(threads * count)
    for worker in workers:
        worker.join(10)
    outbox.close()
    outbox.wait(10)
    sent = [tuple(map(int, message.split())) for message, _ in link.sent]
    for thread in range(threads):
        assert [n for t, n in sent if t == thread] == list(range(count))
