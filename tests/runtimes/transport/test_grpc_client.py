"""A stream waits for gRPC's threads when it ends, and for no others; answers of a balancer."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from offload.errors import OffloadError, ServerError
from offload_runtimes.client import OffloadSession
from offload_runtimes.transport.grpc_client import GrpcStream

from tests.runtimes import bundles


class Silent:
    def received(self, message: bytes) -> None:
        raise AssertionError(message)

    def ended(self, error: OffloadError | None) -> None:
        pass


def test_wait_ignores_threads_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = threading.Event()
    begun = threading.Thread(target=done.wait, name="loading", daemon=True)
    begun.start()
    not_yet = threading.Thread(target=done.wait, name="Thread-99 (wait)", daemon=True)
    real = threading.enumerate
    seen = iter([[thread for thread in real() if thread is not begun]])
    monkeypatch.setattr(threading, "enumerate", lambda: next(seen, [*real(), not_yet]))
    channel = grpc.insecure_channel("127.0.0.1:1")
    stream = GrpcStream(channel, "/a/b", iter(()), None, lambda *_: ServerError("gone"))
    monkeypatch.undo()
    stream.deliver(Silent())
    stream.close()
    start_s = time.monotonic()
    stream.wait(10)
    assert time.monotonic() - start_s < 5
    done.set()
    begun.join()


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


@contextmanager
def balancer(status: int) -> Iterator[str]:
    """Answers every call with a status of HTTP, as a balancer without a server does."""

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(frame(4, 0, 0))  # settings
            received = b""
            while b"/Session" not in received and b"/ServerLive" not in received:
                received += connection.recv(65536)
            headers = b"\x48\x03" + str(status).encode()  # ":status", not indexed by its value
            connection.sendall(frame(4, 1, 0) + frame(1, 5, 1, headers))
            while connection.recv(65536):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_an_empty_message_is_none(tmp_path: Path) -> None:
    """gRPC gives one before some errors; ours are never empty."""
    made = bundles.branches(tmp_path / "b")

    def serve(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b""
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(serve)
    service = grpc.method_handlers_generic_handler("onnx_offload.v1.Runtime", {"Session": handler})
    server = grpc.server(ThreadPoolExecutor(2), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ServerError, match="is full"):
            OffloadSession(made.bundle, f"127.0.0.1:{port}")
    finally:
        server.stop(None)


STATUSES: dict[int, tuple[str, bool]] = {
    503: ("reaches no server behind it (HTTP 503): check that one is running", True),
    502: ("reaches no server behind it (HTTP 502): check that one is running", True),
    400: ("refuses the session (HTTP 400): does it ask for a certificate of this device?", False),
    413: ("refuses the session (HTTP 413): check its configuration", False),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("address", ["{}", "kserve://{}"])
def test_the_answer_of_a_balancer_is_understood(tmp_path: Path, status: int, address: str) -> None:
    made = bundles.branches(tmp_path / "b")
    said, may_pass = STATUSES[status]
    with balancer(status) as at, pytest.raises(ServerError) as caught:
        OffloadSession(made.bundle, address.format(at))
    assert f"server {address.format(at)} cannot be reached: a balancer or proxy" in str(
        caught.value
    )
    assert said in str(caught.value)
    assert caught.value.retry == may_pass
