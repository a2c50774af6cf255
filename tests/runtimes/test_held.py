"""What all sessions of a server hold together: one too many is told so, and nothing stays held."""

import itertools
import queue
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from offload.planning.plan import Send, Side
from offload_runtimes.engine import EngineOptions
from offload_runtimes.protocol import messages as wire
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport import SESSION
from onnx import helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made
from tests.runtimes.tensor_messages import encode_tensor
from tests.runtimes.waiting import eventually

COUNT = 24_000  # floats: 96 kB
ALLOWED = 4_000_000  # of which 1 MB for what crosses: ten tensors
PLAIN = EngineOptions(threads=1)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """The server adds what the device sends, and answers with 40 times as much."""
    a, b, y = (models.floats(name, size) for name, size in (("a", COUNT), ("b", 1), ("y", "m")))
    nodes = [
        helper.make_node("ReduceMax", ["a"], ["r"], keepdims=1),
        helper.make_node("Add", ["r", "b"], ["s"]),
        helper.make_node("Expand", ["s", "n"], ["y"]),
    ]
    whole = models.model(nodes, [a, b], [y], {"n": np.array([COUNT], np.int64)})
    part = bundles.segment("server-0", Side.SERVER, ["a", "b"], ["y"])
    steps, uploads = [("send", "a"), ("send", "b")], [Send("a", 4 * COUNT), Send("b", 4)]
    return bundles.write(tmp_path / "b", whole, [(part, whole)], steps, uploads, ["y"])


@pytest.fixture
def server(made: Made) -> Iterator[Server]:
    with Server([made.bundle], options=ServeOptions(PLAIN, max_memory_bytes=ALLOWED)) as running:
        yield running


class Raw:
    """A device that sends what it likes and reads when it likes."""

    def __init__(self, server: Server, made: Made) -> None:
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.channel = grpc.insecure_channel(server.address)
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(SESSION)
        self.answers = method(iter(self.outbox.get, None))
        hello = pb.Hello(protocol=wire.PROTOCOL, bundle=made.bundle.digest)
        self.outbox.put(wire.message(hello=hello))
        assert self.body()[0].HasField("welcome")

    def send(self, frame: int, name: str) -> None:
        array = np.ones(COUNT if name == "a" else 1, np.float32)
        self.outbox.put(encode_tensor(frame, name, array, "raw"))

    def body(self) -> tuple[pb.Message, memoryview]:
        return wire.parse(next(self.answers))

    def whole(self, frame: int) -> str:
        """Send a whole frame; what it was answered with."""
        self.send(frame, "a")
        self.send(frame, "b")
        return str(self.body()[0].WhichOneof("body"))

    def leave(self) -> None:
        self.outbox.put(None)
        self.channel.close()


def held_bytes(server: Server) -> int:
    lines = server.metrics_text().splitlines()
    return next(
        int(float(line.split()[1])) for line in lines if line.startswith("offload_held_bytes ")
    )


def test_the_frame_that_is_too_much_fails_alone(server: Server, made: Made) -> None:
    server._memory._patience_s = 3600.0
    hoarder, other = Raw(server, made), Raw(server, made)
    for frame in range(1, 9):
        hoarder.send(frame, "a")
    eventually(lambda: held_bytes(server) == 8 * 4 * COUNT)
    other.send(1, "a")
    other.send(2, "a")
    other.send(3, "a")
    failure = other.body()[0].failure
    assert (failure.frame, failure.kind) == (3, pb.Failure.SERVER)
    assert "memory for devices' tensors is in use on the server (--max-memory)" in failure.sentence
    other.send(1, "b")
    other.send(2, "b")
    assert [other.body()[0].tensor.frame for _ in range(2)] == [1, 2]
    hoarder.send(1, "b")
    assert hoarder.body()[0].tensor.frame == 1
    hoarder.leave()
    eventually(lambda: held_bytes(server) == 0)
    assert other.whole(4) == "tensor"
    other.leave()


def test_who_holds_without_using_gives_way(server: Server, made: Made) -> None:
    server._memory._patience_s = 0.0
    hoarder, other = Raw(server, made), Raw(server, made)
    for frame in range(1, 9):
        hoarder.send(frame, "a")
    eventually(lambda: held_bytes(server) == 8 * 4 * COUNT)
    for frame in range(1, 4):
        other.send(frame, "a")
    assert other.body()[0].failure.frame == 3
    assert "idle while other sessions wait for memory" in hoarder.body()[0].failure.sentence
    with pytest.raises(StopIteration):
        hoarder.body()
    eventually(lambda: held_bytes(server) == 2 * 4 * COUNT)
    eventually(lambda: "offload_sessions 1" in server.metrics_text())
    assert other.whole(4) == "tensor"
    other.leave()
    hoarder.leave()


def test_answers_that_nobody_reads_are_part_of_it(server: Server, made: Made) -> None:
    """gRPC takes some for itself; from then on the server holds them, until others need room."""
    server._memory._patience_s = 0.0
    deaf, other = Raw(server, made), Raw(server, made)
    for frame in range(1, 200):
        deaf.send(frame, "a")
        deaf.send(frame, "b")
    eventually(lambda: filled(server) or "offload_sessions 1" in server.metrics_text())
    frames = itertools.count(1)
    eventually(lambda: other.whole(next(frames)) == "tensor" and not filled(server))
    eventually(lambda: "offload_sessions 1" in server.metrics_text())
    with suppress(grpc.RpcError):
        assert len(list(deaf.answers)) < 199
    assert other.whole(next(frames)) == "tensor"
    other.leave()
    deaf.leave()
    eventually(lambda: held_bytes(server) == 0)


def filled(server: Server) -> bool:
    return held_bytes(server) > 500_000
