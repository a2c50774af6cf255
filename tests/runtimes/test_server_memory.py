"""A server under `--max-memory`: its process, its sessions, and the memory they share."""

import itertools
import json
import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from offload.errors import InputError
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions
from offload_runtimes.protocol import messages as wire
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport import SESSION
from onnx import TensorProto, helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made
from tests.runtimes.tensor_messages import encode_tensor
from tests.runtimes.waiting import eventually

MB = 10**6


def greedy(folder: Path) -> Made:
    """A bundle whose server part asks for as many floats as its input says, twice."""
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    nodes = [
        helper.make_node("Expand", ["x", "n"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["f"]),
        helper.make_node("ReduceMax", ["f"], ["y"], keepdims=1),
    ]
    whole = models.model(nodes, [models.floats("x", 1), n], [models.floats("y", 1)])
    part = bundles.segment("server-0", Side.SERVER, ["x", "n"], ["y"])
    steps, uploads = [("send", "x"), ("send", "n")], [Send("x", 4), Send("n", 8)]
    return bundles.write(folder, whole, [(part, whole)], steps, uploads, ["y"])


def ask(session: OffloadSession, count: int) -> float:
    feeds: dict[str, np.ndarray] = {"x": np.ones(1, np.float32), "n": np.array([count], np.int64)}
    return float(session.run(None, feeds)[0][0])


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, int]]:
    """Address and process of a server."""
    words = (sys.executable, "-m", "offload_runtimes", "serve", *options, "--listen=127.0.0.1:0")
    with subprocess.Popen([*words, "--threads=1"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["listening"], process.pid
        finally:
            process.terminate()


def peak_bytes(pid: int) -> int:
    """The most that a process ever had in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status.get("VmHWM", status["VmRSS"]).split()[0]) * 1024


def sessions(made: Made, address: str, count: int) -> list[OffloadSession]:
    """Sessions that wait long: on a loaded machine a slow run is not a lost server."""
    return [
        OffloadSession(made.bundle, address, on_server_loss="raise", patience_s=100)
        for _ in range(count)
    ]


def test_a_process_keeps_its_limit(tmp_path: Path) -> None:
    """A frame that needs gigabytes or terabytes fails alone; all sessions continue."""
    made = greedy(tmp_path / "greedy")
    with serving(str(made.bundle.path), "--max-memory=300 MB") as (address, pid):
        one, other = sessions(made, address, 2)
        with one, other:
            assert ask(one, 10) == 2
            idle = peak_bytes(pid)
            for count in (750 * MB, 10**12, 10**18, 50 * MB):
                with pytest.raises(InputError, match="needs more memory than the server allows"):
                    ask(one, count)
                assert ask(other, 1000) == 2
                assert ask(one, 1000) == 2
            for count in (5 * MB, 10 * MB, 25 * MB):  # pieces of all sizes, and nearly all at last
                assert ask(one, count) == 2
            assert one.counts.split == 8
        assert peak_bytes(pid) - idle < 300 * MB


def test_terabytes_without_a_limit(tmp_path: Path) -> None:
    made = greedy(tmp_path / "greedy")
    with serving(str(made.bundle.path)) as (address, _):
        one, other = sessions(made, address, 2)
        with one, other:
            for count in (10**15, 10**18):  # beyond what any process can address
                with pytest.raises(InputError, match="more memory than this machine has") as caught:
                    ask(one, count)
                assert "\n" not in str(caught.value)
            assert ask(one, 10) == ask(other, 10) == 2


def test_weights_that_do_not_fit_are_refused_at_the_start(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "b", width=1200)
    with pytest.raises(
        InputError, match=r"b cannot be served: its weights take 5\.\d+ MB"
    ) as caught:
        Server([made.bundle], options=ServeOptions(max_memory_bytes=2 * MB))
    assert "--max-memory 2.00 MB leaves 1.50 MB for models" in str(caught.value)
    with pytest.raises(InputError, match="too little"):
        Server([made.bundle], options=ServeOptions(max_memory_bytes=1000))
    plain = EngineOptions(threads=1)
    with Server([made.bundle], options=ServeOptions(plain, max_memory_bytes=200 * MB)) as server:
        (session,), feeds = sessions(made, server.address, 1), made.feeds()
        with session:
            (y,) = session.run(["y"], feeds)
        np.testing.assert_allclose(y, made.expected(feeds)[0], rtol=1e-3)


COUNT = 24_000  # floats: 96 kB
ALLOWED = 4_000_000  # 1 MB of it for uploads and answers: ten tensors


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
    options = ServeOptions(EngineOptions(threads=1), max_memory_bytes=ALLOWED)
    with Server([made.bundle], options=options) as running:
        yield running


class Raw:
    """A device that sends single messages and reads answers only when it is called."""

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
        """Send a whole frame; returns the kind of the answer."""
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


def test_a_frame_beyond_the_memory_fails_alone(server: Server, made: Made) -> None:
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


def test_an_idle_session_that_holds_memory_is_evicted(server: Server, made: Made) -> None:
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


def test_unread_answers_count(server: Server, made: Made) -> None:
    """gRPC buffers some; the server holds the others until other sessions need the memory."""
    server._memory._patience_s = 1.0  # longer than the reader leaves an answer unread
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
