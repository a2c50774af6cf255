"""The minimum for any runtime on gRPC: bytes in both directions, bare onnxruntime between."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import grpc
import numpy as np
from offload_runtimes.engine import EngineOptions, load

WINDOW = 4  # frames of a session under way at a time
_CODE = """
import os, sys, threading, grpc, concurrent.futures as f
turn = threading.Lock()
def reply(message):
    return bytes(1000)
if len(sys.argv) > 1:
    import numpy as np
    from offload_runtimes.engine import EngineOptions, load
    providers = tuple(os.environ.get("BENCH_PROVIDERS", "").split())
    model = load(sys.argv[1], EngineOptions(providers, threads=1))
    (value,) = model.inputs
    def reply(message):
        array = np.frombuffer(message, np.float32).reshape(value.shape)
        with turn:
            (made,) = model.run(None, {value.name: array})
        return made.tobytes()
handler = grpc.stream_stream_rpc_method_handler(lambda it, _: map(reply, it))
server = grpc.server(f.ThreadPoolExecutor(20), options=[("grpc.max_receive_message_length", 2**24)])
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("e", {"E": handler})])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start(); sys.stdin.read()
"""


class Plain:
    """A gRPC server in a process of its own: runs a model of one input, or answers 1000 bytes."""

    def __init__(self, model: Path | None = None) -> None:
        command = [sys.executable, "-c", _CODE, *([] if model is None else [str(model)])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.address = f"127.0.0.1:{self._process.stdout.readline().strip()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")


class PlainStream:
    """One stream to such a server, on a channel of its own; messages go up as they are pulled."""

    def __init__(self, address: str, messages: Iterator[bytes]) -> None:
        options = [("grpc.max_send_message_length", 2**24), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options)
        grpc.channel_ready_future(self._channel).result(10)
        method: grpc.StreamStreamMultiCallable[bytes, bytes]
        method = self._channel.stream_stream("/e/E")
        self.answers = method(messages)

    def close(self) -> None:
        self.answers.cancel()
        self._channel.close()


class Echo:
    """Send raw bytes and receive 1000, one message at a time."""

    def __init__(self) -> None:
        self._server = Plain()
        self._outbox: list[bytes] = []
        self._ready = threading.Semaphore(0)
        self._stream = PlainStream(self._server.address, self._requests())

    def ping(self, message: bytes) -> None:
        self._outbox.append(message)
        self._ready.release()
        next(self._stream.answers)

    def close(self) -> None:
        self._ready.release()
        self._stream.close()
        self._server.__exit__()

    def _requests(self) -> Iterator[bytes]:
        while True:
            self._ready.acquire()
            if not self._outbox:
                return
            yield self._outbox.pop(0)


def tails_per_s(
    head: Path, tail: Path, feeds: Mapping[str, np.ndarray], count: int, seconds: float
) -> float:
    """Server parts a second for N streams, with the device parts run here."""
    compute = load(head, EngineOptions(threads=1))
    done, stopped = [0] * count, threading.Event()

    def messages(free: threading.Semaphore) -> Iterator[bytes]:
        while free.acquire() and not stopped.is_set():
            yield compute.run(None, feeds)[0].tobytes()

    def work(index: int) -> None:
        free = threading.Semaphore(WINDOW)
        stream = PlainStream(server.address, messages(free))
        for _ in stream.answers:
            done[index] += 1
            free.release()
        stream.close()

    with Plain(tail) as server:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        rate = counted(lambda: sum(done), seconds)
        stopped.set()
        for thread in threads:
            thread.join()
    return rate


def counted(count: Callable[[], int], seconds: float) -> float:
    """The rate of a counter once it grows steadily."""
    time.sleep(0.5)
    before = count()
    time.sleep(seconds)
    return (count() - before) / seconds
