"""The caller sends the messages of a `DirectCall`; gRPC's polling thread delivers them."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from offload_runtimes.client import OffloadSession
from offload_runtimes.server import Server
from offload_runtimes.transport import direct_call, grpc_client
from offload_runtimes.transport.direct_call import DirectCall, can_call
from offload_runtimes.transport.grpc_server import DaemonPool

from tests.runtimes import bundles


@contextmanager
def serving() -> Iterator[grpc.Channel]:
    """A server that echoes messages; `end` ends the stream, `refuse` ends it with an error."""

    def echo(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield str(dict(context.invocation_metadata())["who"]).encode()
        for request in requests:
            if request == b"end":
                return
            if request == b"refuse":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
            yield request

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo)
    }
    server = grpc.server(DaemonPool(), [grpc.method_handlers_generic_handler("test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    before = set(threading.enumerate())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    started = {t for t in set(threading.enumerate()) - before if "channel_spin" in t.name}
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    server.stop(0).wait(10)


def begun(
    channel: grpc.Channel, received: "Callable[[bytes], object] | None" = None
) -> tuple[DirectCall, "queue.SimpleQueue[bytes]"]:
    """A call, and the messages received on it after the echo of the metadata."""
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    assert can_call(channel, "/test/Echo")
    call = DirectCall(channel, "/test/Echo", (("who", "me"),), received or arrived.put)
    call.receive()
    if received is None:
        assert arrived.get(timeout=10) == b"me"
    return call, arrived


def test_messages_are_echoed_in_order_and_delivered_by_one_thread() -> None:
    with serving() as channel:
        names = set()
        arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def received(message: bytes) -> None:
            names.add(threading.current_thread().name)
            arrived.put(message)

        call, _ = begun(channel, received)
        assert arrived.get(timeout=10) == b"me"
        gone = threading.Semaphore(0)
        messages = [bytes([n % 256]) * (1 + n * 997) for n in range(200)]
        for message in messages:
            assert call.send(message, gone.release)
            assert gone.acquire(timeout=10)
        assert [arrived.get(timeout=10) for _ in messages] == messages
        assert len(names) == 1
        assert threading.current_thread().name not in names
        call.cancel()
        assert call.over.wait(10)
        assert call.code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("word", "code", "details"),
    [
        (b"end", grpc.StatusCode.OK, ""),
        (b"refuse", grpc.StatusCode.RESOURCE_EXHAUSTED, "enough"),
    ],
)
def test_the_status_of_the_server_ends_the_call(
    word: bytes, code: grpc.StatusCode, details: str
) -> None:
    with serving() as channel:
        call, _ = begun(channel)
        gone = threading.Semaphore(0)
        assert call.send(word, gone.release)
        assert call.over.wait(10)
        assert gone.acquire(timeout=10)
        assert (call.code, call.details) == (code, details)
        assert not call.send(b"late", gone.release)
        assert not gone.acquire(timeout=0.05)
        call.cancel()  # once more does nothing
        assert call.code is code


def test_a_server_that_cannot_be_reached_ends_the_call() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        call = DirectCall(channel, "/test/Echo", (), lambda _: None)
        call.receive()
        gone = threading.Semaphore(0)
        if call.send(b"first", gone.release):
            assert gone.acquire(timeout=10)
        assert call.over.wait(10)
        assert call.code is grpc.StatusCode.UNAVAILABLE
        assert call.details


def test_an_error_of_the_receiver_ends_its_call_only() -> None:
    with serving() as channel:

        def broken(_: bytes) -> None:
            raise ValueError("broken")

        other, arrived = begun(channel)
        call, _ = begun(channel, broken)
        assert call.over.wait(10)
        assert call.code is grpc.StatusCode.CANCELLED
        assert other.send(b"still here", lambda: None)
        assert arrived.get(timeout=10) == b"still here"
        other.cancel()
        assert other.over.wait(10)


def test_calls_that_end_while_messages_are_sent_leave_no_thread() -> None:
    with serving() as channel:
        for number in range(20):
            call, _ = begun(channel)
            gone = threading.Semaphore(0)
            ending = threading.Thread(target=call.cancel)
            for sent in range(10):
                if sent == number % 10:
                    ending.start()
                if not call.send(bytes(100_000), gone.release):
                    break
                assert gone.acquire(timeout=10)
            ending.join(10)
            assert call.over.wait(10)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_session_works_with_and_without_direct_calls(
    is_known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A version of gRPC that lacks a name reads the messages from an iterator."""
    begun = []

    class Recorded(DirectCall):
        def receive(self) -> None:
            begun.append(self)
            super().receive()

    monkeypatch.setattr(direct_call, "_IS_KNOWN", is_known)
    monkeypatch.setattr(grpc_client, "DirectCall", Recorded)
    made = bundles.branches(tmp_path / "b")
    with (
        Server([made.bundle]) as server,
        OffloadSession(made.bundle.path, server.address, on_server_loss="raise") as session,
    ):
        for seed in range(5):
            feeds = made.feeds(seed)
            results = zip(session.run(None, feeds), made.expected(feeds), strict=True)
            for found, expected in results:
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert bool(begun) is is_known
