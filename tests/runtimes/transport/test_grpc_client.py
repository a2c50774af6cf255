"""A stream waits for gRPC's threads when it ends, and for no others."""

import threading
import time

import grpc
import pytest
from offload.errors import OffloadError, ServerError
from offload_runtimes.transport.grpc_client import GrpcStream


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
