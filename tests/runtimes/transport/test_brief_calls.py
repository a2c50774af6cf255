"""Short calls are answered on gRPC's polling thread, all others on threads of the pool."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from offload_runtimes.transport import brief_calls
from offload_runtimes.transport.brief_calls import BriefRequests
from offload_runtimes.transport.grpc_server import DaemonPool


@contextmanager
def serving(
    brief: Callable[[bytes, grpc.ServicerContext], bytes | None],
    begin: Callable[[Iterator[bytes]], None] = lambda _: None,
) -> Iterator[grpc.Channel]:
    """A server: `/test/One` and `/test/Stream` echo their requests."""

    def one(request: bytes, _: grpc.ServicerContext) -> bytes:
        return b"thread " + request

    def stream(
        requests: Iterator[bytes],
        _: grpc.ServicerContext,
        transmit: Callable[[bytes | None], None],
    ) -> None:
        begin(requests)
        for request in requests:
            transmit(b"thread " + request)
        transmit(None)

    one.brief = brief  # type: ignore[attr-defined]
    stream.brief = stream.experimental_non_blocking = True  # type: ignore[attr-defined]
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "One": grpc.unary_unary_rpc_method_handler(one),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    pool = DaemonPool()
    server = grpc.server(pool, [grpc.method_handlers_generic_handler("test", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(0).wait(10)
    pool.join(5)
    assert not pool._threads


def call_one(channel: grpc.Channel, request: bytes) -> bytes:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/One")
    return call(request, timeout=20)


def call_stream(channel: grpc.Channel, requests: Iterator[bytes]) -> list[bytes]:
    return list(stream_of(channel)(requests, timeout=20))


def stream_of(channel: grpc.Channel) -> "grpc.StreamStreamMultiCallable[bytes, bytes]":
    return channel.stream_stream("/test/Stream")


def test_a_brief_request_is_answered_without_another_thread() -> None:
    names = []

    def brief(request: bytes, _: grpc.ServicerContext) -> bytes:
        names.append(threading.current_thread().name)
        return b"here " + request

    with serving(brief) as channel:
        assert [call_one(channel, b"%d" % i) for i in range(50)] == [
            b"here %d" % i for i in range(50)
        ]
    assert len(set(names)) == 1
    assert "grpc" not in set(names)  # the name of the pool's threads


def test_other_requests_are_answered_on_threads() -> None:
    with serving(lambda request, _: b"here" if request == b"brief" else None) as channel:
        assert call_one(channel, b"long") == b"thread long"
        assert call_one(channel, b"brief") == b"here"
        assert call_one(channel, b"long") == b"thread long"


def test_an_error_of_a_brief_answer_is_the_calls_status() -> None:
    def brief(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        raise ZeroDivisionError

    with serving(brief) as channel:
        for request, code in ((b"abort", "NOT_FOUND"), (b"raise", "UNKNOWN")):
            with pytest.raises(grpc.RpcError) as caught:
                call_one(channel, request)
            assert caught.value.code() is grpc.StatusCode[code]


def brief_echo(requests: Iterator[bytes]) -> None:
    """Answer the requests of a stream that begin with "brief" on the polling thread."""
    assert isinstance(requests, BriefRequests)

    def answer(request: bytes) -> bool:
        if request.startswith(b"drop"):
            return True
        if request.startswith(b"raise"):
            raise ZeroDivisionError
        if not request.startswith(b"brief"):
            return False
        requests.send(b"here " + request, fail if request.endswith(b"fail") else lambda: None)
        return True

    def fail() -> None:
        raise ZeroDivisionError

    requests.answer = answer


def test_answers_of_a_stream_keep_their_order() -> None:
    kinds = [b"brief", b"long", b"brief", b"brief", b"drop", b"long", b"long", b"drop", b"brief"]
    requests = [kinds[i % len(kinds)] + b"%d" % i for i in range(500)]
    expected = [
        (b"here " if request.startswith(b"brief") else b"thread ") + request
        for request in requests
        if not request.startswith(b"drop")
    ]
    with serving(lambda *_: None, brief_echo) as channel:
        assert call_stream(channel, iter(requests)) == expected
        assert call_stream(channel, iter([])) == []
        assert call_stream(channel, iter([b"drop"])) == []


def test_an_error_of_a_brief_answer_ends_that_stream_only() -> None:
    with serving(lambda *_: None, brief_echo) as channel:
        for last in (b"raise", b"brief fail"):
            with pytest.raises(grpc.RpcError):
                call_stream(channel, iter([b"brief", last, b"long"]))
        assert call_stream(channel, iter([b"brief"])) == [b"here brief"]


def test_a_client_that_leaves_ends_its_stream() -> None:
    ended = threading.Event()

    def begin(requests: Iterator[bytes]) -> None:
        brief_echo(requests)
        for _ in requests:
            pass
        ended.set()

    with serving(lambda *_: None, begin) as channel:
        asked = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"brief"
            asked.wait(20)

        call = stream_of(channel)(requests(), timeout=20)
        assert next(call) == b"here brief"
        assert not ended.is_set()
        call.cancel()
        assert ended.wait(20)
        asked.set()


def test_a_stream_may_be_ended_from_there_although_the_client_stays() -> None:
    stays, has_waited = threading.Event(), threading.Event()

    def begin(requests: Iterator[bytes]) -> None:
        assert isinstance(requests, BriefRequests)
        end = requests.end

        def answer(_: bytes) -> bool:
            end()
            return True

        requests.answer = answer

    def messages() -> Iterator[bytes]:
        yield b"last"
        if not stays.wait(10):
            has_waited.set()

    with serving(lambda *_: None, begin) as channel:
        assert call_stream(channel, messages()) == []
        assert not has_waited.is_set()
        stays.set()


def test_where_grpc_is_not_as_expected_threads_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brief_calls, "_IS_KNOWN", False)

    def begin(requests: Iterator[bytes]) -> None:
        assert not isinstance(requests, BriefRequests)

    with serving(lambda *_: b"here", begin) as channel:
        assert call_one(channel, b"x") == b"thread x"
        assert call_stream(channel, iter([b"x", b"y"])) == [b"thread x", b"thread y"]


def test_this_version_of_grpc_is_as_expected() -> None:
    assert brief_calls._IS_KNOWN
