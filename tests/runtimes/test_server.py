"""The server: limits of a session, metrics, logs, health, draining, and freed memory."""

import gc
import json
import logging
import queue
import threading
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import offload
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from offload.errors import DeadlineError, InputError, ServerError
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.server_state import SessionLimits
from offload_runtimes.server import Server
from offload_runtimes.serving.metrics import JsonLines
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport import SESSION, VERSION_KEY, grpc_server
from offload_runtimes.transport.connection import Connection
from onnx import helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made
from tests.runtimes.memory_transport import MemoryConnector, pair
from tests.runtimes.tensor_messages import encode_tensor
from tests.runtimes.waiting import eventually


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b")


@pytest.fixture
def server(made: Made) -> Iterator[Server]:
    limits = SessionLimits(max_frames=2, max_bytes=10_000)
    with Server(
        [made.bundle], options=ServeOptions(metrics="127.0.0.1:0", limits=limits)
    ) as running:
        yield running


def serve(server: Server) -> Connection:
    here, there = pair()
    threading.Thread(target=server.serve, args=(there,), daemon=True).start()
    return here


def tensor(frame: int, name: str = "t0", shape: tuple[int, ...] = (1, 64)) -> bytes:
    return encode_tensor(frame, name, np.zeros(shape, np.float32), "raw")


def hello(made: Made) -> bytes:
    return wire.message(hello=pb.Hello(protocol=wire.PROTOCOL, bundle=made.bundle.digest))


HOSTILE: dict[str, Callable[[Made], list[bytes]]] = {
    "garbled": lambda made: [hello(made), b"\xff\x00\xff"],
    "truncated": lambda made: [hello(made), tensor(1)[:-20]],
    "no hello": lambda _: [tensor(1)],
    "two hellos": lambda made: [hello(made), hello(made)],
    "duplicated": lambda made: [hello(made), tensor(1), tensor(1)],
    "renumbered": lambda made: [hello(made), tensor(7), tensor(3)],
    "wrong shape": lambda made: [hello(made), tensor(1, shape=(2, 64))],
    "unknown tensor": lambda made: [hello(made), tensor(1, "nonsense")],
    "too many frames": lambda made: [hello(made), tensor(1), tensor(2), tensor(3)],
    "other protocol": lambda made: [
        wire.message(hello=pb.Hello(protocol=9, bundle=made.bundle.digest))
    ],
    "server's message": lambda made: [
        hello(made),
        wire.message(pong=pb.Pong(number=1)),
    ],
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_session_ends_alone(server: Server, made: Made, kind: str) -> None:
    with OffloadSession(made.bundle, server.address) as good:
        connection = serve(server)
        for message in HOSTILE[kind](made):
            connection.send(message)
        replies = list(iter(connection.receive, None))
        assert [wire.parse(reply)[0].WhichOneof("body") for reply in replies][-1] == "failure"
        assert wire.parse(replies[-1])[0].failure.sentence
        feeds = made.feeds()
        np.testing.assert_allclose(good.run(["y"], feeds)[0], made.expected(feeds)[0], rtol=1e-5)
        assert good.counts.split == 1


def test_bytes_in_flight_are_bounded(made: Made) -> None:
    with Server(
        [made.bundle], options=ServeOptions(limits=SessionLimits(max_frames=100, max_bytes=1000))
    ) as server:
        connection = serve(server)
        connection.send(hello(made))
        for frame in range(1, 5):
            connection.send(tensor(frame))
        *_, last = iter(connection.receive, None)
        assert "too many bytes in flight" in wire.parse(last)[0].failure.sentence


def test_a_vanished_device_leaves_nothing(server: Server, made: Made) -> None:
    connection = serve(server)
    connection.send(hello(made))
    connection.send(tensor(1))
    assert connection.receive() is not None
    connection.close()
    with OffloadSession(made.bundle, server.address) as good:
        good.run(None, made.feeds())
    text = server.metrics_text()
    assert 'outcome="dropped",plan="0"} 1' in text


def test_frames_too_large_for_the_bundle_are_refused(server: Server) -> None:
    """gRPC refuses them before they are in memory."""
    channel = grpc.insecure_channel(server.address)
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
    call = method(iter([bytes(2**25)]))
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    channel.close()


def growing(folder: Path, count: int) -> Made:
    """A bundle whose server part answers one number with many."""
    x, y = models.floats("x", 1), models.floats("y", count)
    shape = {"shape": np.array([count], np.int64)}
    whole = models.model([helper.make_node("Expand", ["x", "shape"], ["y"])], [x], [y], shape)
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    return bundles.write(folder, whole, [(part, whole)], [("send", "x")], [Send("x", 4)], ["y"])


def test_a_device_that_reads_nothing_ends_alone(made: Made, tmp_path: Path) -> None:
    big = growing(tmp_path / "big", 1 << 20)
    plain, limits = EngineOptions(threads=1), SessionLimits(max_frames=60)
    with (
        Server([big.bundle, made.bundle], options=ServeOptions(plain, limits=limits)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for message in (hello(big), *(tensor(frame, "x", (1,)) for frame in range(1, 60))):
            outbox.put(message)
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
        call = method(iter(outbox.get, None))
        eventually(lambda: 'offload_errors_total{kind="ServerError"} 1' in server.metrics_text())
        with OffloadSession(made.bundle, server.address) as good:
            good.run(None, made.feeds())
            assert good.counts.split == 1
            eventually(lambda: "offload_sessions 1" in server.metrics_text())
        with pytest.raises(grpc.RpcError):
            list(call)
        outbox.put(None)


def endless(folder: Path, size: int | str) -> Made:
    """A bundle whose server part never ends; its dynamic size prevents a warm-up run."""
    whole = models.endless_loop(size)
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    return bundles.write(folder, whole, [(part, whole)], [("send", "x")], [Send("x", 4)], ["y"])


def test_a_model_that_never_ends_is_stopped(made: Made, tmp_path: Path) -> None:
    loop = endless(tmp_path / "loop", 1)

    plain = EngineOptions(threads=1)
    with Server([loop.bundle, made.bundle], options=ServeOptions(plain, max_run_s=0.3)) as server:
        with (
            OffloadSession(loop.bundle, server.address, on_server_loss="raise") as session,
            pytest.raises(DeadlineError, match="stopped before it finished"),
        ):
            session.run(None, {"x": np.zeros(1, np.float32)})
        with OffloadSession(made.bundle, server.address) as good:
            good.run(None, made.feeds())
            assert good.counts.split == 1


def test_a_cancelled_frame_is_stopped(tmp_path: Path) -> None:
    """When the device cancels a frame, the server's only worker is free at once."""
    loop = endless(tmp_path / "loop", "n")
    with (
        Server([loop.bundle]) as server,
        OffloadSession(loop.bundle, server.address, on_server_loss="raise") as session,
    ):
        for _ in range(3):
            with pytest.raises(DeadlineError):
                session.run(None, {"x": np.zeros(1, np.float32)}, deadline_s=0.1)
        assert session.is_split


def test_what_runs_for_a_vanished_device_is_stopped(made: Made, tmp_path: Path) -> None:
    """The only worker is free long before `max_run_s`, and no memory is in use."""
    loop = endless(tmp_path / "loop", "n")
    with Server(
        [loop.bundle, made.bundle], options=ServeOptions(EngineOptions(threads=1))
    ) as server:
        connection = serve(server)
        connection.send(hello(loop))
        for frame in range(1, 5):  # one runs, the others wait for the worker
            connection.send(tensor(frame, "x", (1,)))
        eventually(lambda: "offload_queue_length 3" in server.metrics_text())
        connection.close()
        with OffloadSession(made.bundle, server.address, on_server_loss="raise") as good:
            good.run(None, made.feeds(), deadline_s=30)
        for said in (
            'outcome="dropped",plan="0"} 4',
            "offload_queue_length 0",
            "offload_held_bytes 0",
        ):
            eventually(lambda said=said: said in server.metrics_text())  # type: ignore[misc]


def test_more_sessions_than_allowed(made: Made) -> None:
    with Server([made.bundle], options=ServeOptions(max_sessions=1)) as server:
        sessions: list[OffloadSession] = []

        def crowd() -> None:
            while len(sessions) < 20:
                sessions.append(OffloadSession(made.bundle, server.address))

        with pytest.raises(ServerError, match="full"):
            crowd()
        assert sessions
        sessions[0].run(None, made.feeds())
        for session in sessions:
            session.close()


def health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service)).status  # type: ignore[no-any-return]


def test_health_as_the_official_client_asks(server: Server) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health(server.address) == serving
    assert health(server.address, "onnx_offload.v1.Runtime") == serving
    with pytest.raises(grpc.RpcError) as caught:
        health(server.address, "another.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == serving
        server.drain()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_metrics_over_http(server: Server, made: Made) -> None:
    with OffloadSession(made.bundle, server.address) as session:
        for _ in range(3):
            session.run(None, made.feeds())
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as answer:
            text = answer.read().decode()
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = text.splitlines()
    digest = made.bundle.digest[:12]
    assert f'offload_frames_total{{bundle="{digest}",outcome="answered",plan="0"}} 3.0' in lines
    assert "offload_sessions 1.0" in lines
    assert "offload_sessions_total 1.0" in lines
    assert 'offload_stage_seconds_bucket{le="+Inf",stage="compute"} 3.0' in lines
    assert any(line.startswith('offload_bytes_total{direction="in"}') for line in lines)
    with pytest.raises(InputError, match="cannot export metrics"):
        Server([made.bundle], options=ServeOptions(metrics=server.metrics_address)).start()


def test_logs_are_json_lines(server: Server, made: Made, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "offload.server"):
        connection = serve(server)
        connection.send(b"\xff")
        assert connection.receive()
        assert connection.receive() is None
        connection.close()
        with OffloadSession(made.bundle, server.address):
            pass
    rows = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert {"session opened", "refused"} <= {row["event"] for row in rows}
    refused = next(row for row in rows if row["event"] == "refused")
    assert refused["kind"] == "ProtocolError"
    assert refused["session"] > 0


def test_a_device_of_another_version_is_logged(
    server: Server, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    first = wire.message(hello=pb.Hello(protocol=9, bundle=made.bundle.digest))
    with (
        caplog.at_level(logging.WARNING, "offload.server"),
        grpc.insecure_channel(server.address) as channel,
    ):
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
        call = method(iter([first]), metadata=((VERSION_KEY, "0.0.9"),))
        (reply,) = list(call)
    sentence = wire.parse(reply)[0].failure.sentence
    assert f"the server is onnx-offload {offload.__version__}" in sentence
    rows = {record.getMessage(): vars(record)["fields"] for record in caplog.records}
    assert rows["version differs"]["version"] == "0.0.9"
    assert rows["version differs"]["server_version"] == offload.__version__


def test_drain_moves_devices_away(server: Server, made: Made) -> None:
    """A draining server answers its frames; the device continues alone, then on another server."""
    with OffloadSession(made.bundle, server.address, heartbeat_s=0.05) as session:
        session.run(None, made.feeds())
        running = session.begin(None, made.feeds(1))
        assert server.drain(10)
        running.finish()
        session.run(None, made.feeds(2))
        counts = session.counts
        assert counts.runs == 3
        assert counts.local + counts.resumed >= 1
        with pytest.raises(ServerError, match="shutting down"):
            OffloadSession(made.bundle, server.address)


def test_a_new_device_session_needs_no_state(made: Made, server: Server) -> None:
    """The memory transport and gRPC serve the same way."""
    with OffloadSession(made.bundle, MemoryConnector(server.serve)) as session:
        feeds = made.feeds()
        np.testing.assert_allclose(session.run(["y"], feeds)[0], made.expected(feeds)[0], rtol=1e-5)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn the garbage collector off, so that only references keep objects alive."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_closed_session_is_freed_at_once(server: Server, made: Made) -> None:
    """Its tensors are freed too, without the garbage collector."""
    connection = serve(server)
    connection.send(hello(made))
    assert connection.receive() is not None
    (served,) = server._sessions
    gone = weakref.ref(served.protocol)
    del served
    connection.close()
    eventually(lambda: gone() is None)


@pytest.mark.usefixtures("no_collector")
def test_a_broken_session_is_freed_at_once(server: Server, made: Made) -> None:
    """gRPC raises an error and keeps a reference to it."""
    with OffloadSession(made.bundle, server.address) as session:
        session.run(None, made.feeds())
        (served,) = server._sessions
        gone = weakref.ref(served.protocol)
        del served
    eventually(lambda: gone() is None)


@pytest.mark.usefixtures("no_collector")
def test_a_device_session_is_freed_with_its_last_user(server: Server, made: Made) -> None:
    """Its models are freed too: the collector does not know how large they are."""
    session = OffloadSession(made.bundle, server.address)
    session.run(None, made.feeds())
    session.close()
    (engine, *_) = session._active.opened.executor._engines.values()
    gone, unloaded = weakref.ref(session), weakref.ref(engine)
    del session, engine, _
    eventually(lambda: gone() is None and unloaded() is None)


def test_reflection_without_its_package_is_one_sentence(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "find_spec", lambda _: None)
    Server([made.bundle])  # as the light runtime, which has no reflection
    with pytest.raises(InputError, match="pip install 'grpcio-reflection"):
        Server([made.bundle], options=ServeOptions(reflection=True))
