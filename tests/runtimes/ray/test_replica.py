"""A replica of Ray Serve, whose streams a plain asyncio server brings here in place of Ray."""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from offload.errors import BundleError, ServerError
from offload_runtimes.client import OffloadSession
from offload_runtimes.measure.probe import probe
from offload_runtimes.protocol import messages as wire
from offload_runtimes.ray import replica as replica_module
from offload_runtimes.ray.replica import Replica
from offload_runtimes.security.credentials import ClientSecurity, ServerSecurity
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport import SESSION
from offload_runtimes.transport.async_stream import METHODS, add_to_server

from tests.runtimes import bundles
from tests.runtimes.bundles import Made
from tests.runtimes.tensor_messages import encode_tensor
from tests.runtimes.waiting import eventually


class Context:
    """What Ray passes to a handler: a copy of the call's data, and the status to set."""

    def __init__(self, context: Any) -> None:
        self.peer = context.peer
        self.invocation_metadata = lambda: list(context.invocation_metadata())
        self.status: tuple[Any, str] = (None, "")

    def set_code(self, code: Any) -> None:
        self.status = code, self.status[1]

    def set_details(self, details: str) -> None:
        self.status = self.status[0], details


class Ingress:
    """Calls a replica's methods as Ray's own gRPC server does, and serializes their replies."""

    def __init__(self, replica: Replica) -> None:
        for name in METHODS:
            setattr(self, name, self._handler(getattr(replica, name)))

    def _handler(self, method: Any) -> Any:
        async def handle(requests: Any, context: Any) -> AsyncIterator[bytes]:
            seen = Context(context)
            async for reply in method(requests, grpc_context=seen):
                yield reply.SerializeToString()
            if seen.status[0] is not None:
                await context.abort(*seen.status)

        return handle


@contextmanager
def listening(replica: Replica) -> Iterator[str]:
    """An asyncio server on a thread of its own, with a replica behind it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        add_to_server(Ingress(replica), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0.2), loop).result(10)
        replica.__del__()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(autouse=True)
def stopping(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set: Ray asks the replica to stop."""
    event = threading.Event()
    monkeypatch.setattr(replica_module, "_is_stopping", event.is_set)
    monkeypatch.setattr(replica_module, "_DEREGISTER_S", 0.0)
    return event


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b")


def replica_of(made: Made, options: ServeOptions | None = None) -> Replica:
    path, digest = str(made.bundle.path), made.bundle.digest
    return Replica([path], [digest], options or ServeOptions(), 5.0, log=False)


def check(session: OffloadSession, made: Made, seed: int = 0) -> None:
    feeds = made.feeds(seed)
    np.testing.assert_allclose(session.run(["y"], feeds)[0], made.expected(feeds)[0], rtol=1e-5)


def test_sessions_get_right_answers(made: Made) -> None:
    with listening(replica_of(made)) as address:
        with (
            OffloadSession(made.bundle, address) as first,
            OffloadSession(made.bundle, address) as second,
        ):
            for seed in range(20):
                check(first, made, seed)
                check(second, made, seed)
            assert first.counts.split == second.counts.split == 20
        assert probe(address, sizes_bytes=(1000, 100_000), repeats=2)


def test_a_token_is_required(made: Made) -> None:
    options = ServeOptions(security=ServerSecurity(token="secret"))
    with listening(replica_of(made, options)) as address:
        with pytest.raises(ServerError, match="refused the token"):
            OffloadSession(made.bundle, address)
        with OffloadSession(
            made.bundle, address, security=ClientSecurity(token="secret")
        ) as session:
            check(session, made)


def test_a_full_replica_refuses(made: Made) -> None:
    with listening(replica_of(made, ServeOptions(max_sessions=1))) as address:
        with OffloadSession(made.bundle, address) as session:
            check(session, made)
            with pytest.raises(ServerError, match="is full"):
                OffloadSession(made.bundle, address)
        eventually(lambda: opens(made, address))


def opens(made: Made, address: str) -> bool:
    try:
        OffloadSession(made.bundle, address).close()
    except ServerError:
        return False
    return True


def call(channel: grpc.Channel, outgoing: "queue.SimpleQueue[bytes | None]") -> Any:
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
    return method(iter(outgoing.get, None))


def hello(made: Made) -> bytes:
    return wire.message(hello=pb.Hello(protocol=wire.PROTOCOL, bundle=made.bundle.digest))


def test_a_message_that_is_too_long_ends_the_call(made: Made) -> None:
    with listening(replica_of(made)) as address, grpc.insecure_channel(address) as channel:
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        outgoing.put(bytes(2**25))
        with pytest.raises(grpc.RpcError) as caught:
            next(call(channel, outgoing))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in str(caught.value.details())
        outgoing.put(None)


def test_a_stopped_replica_answers_what_it_has_and_says_goodbye(
    made: Made, stopping: threading.Event
) -> None:
    with listening(replica_of(made)) as address, grpc.insecure_channel(address) as channel:
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        outgoing.put(hello(made))
        replies = call(channel, outgoing)
        assert wire.parse(next(replies))[0].WhichOneof("body") == "welcome"
        stopping.set()
        bodies = [wire.parse(reply)[0].WhichOneof("body") for reply in replies]
        assert bodies[0] == "goodbye"
        outgoing.put(None)
        with pytest.raises(ServerError, match="shutting down"):
            OffloadSession(made.bundle, address)


def test_a_device_goes_on_alone_after_goodbye(made: Made, stopping: threading.Event) -> None:
    with (
        listening(replica_of(made)) as address,
        OffloadSession(made.bundle, address, heartbeat_s=0.05) as session,
    ):
        check(session, made)
        stopping.set()
        for seed in range(30):
            check(session, made, seed)
            time.sleep(0.01)
        assert session.counts.local > 0


def test_a_vanished_device_leaves_nothing(made: Made) -> None:
    replica = replica_of(made)
    with listening(replica) as address:
        channel = grpc.insecure_channel(address)
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        outgoing.put(hello(made))
        replies = call(channel, outgoing)
        next(replies)
        assert replica._server.sessions == 1
        replies.cancel()
        eventually(lambda: replica._server.sessions == 0)
        outgoing.put(None)
        channel.close()


def test_a_device_that_does_not_read_is_cut(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers wait in the server, at most as much as a stream may hold."""
    monkeypatch.setattr("offload_runtimes.transport.streams._UNREAD_BYTES", 1 << 20)
    replica = replica_of(made)
    with listening(replica) as address:
        options = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
        with grpc.insecure_channel(address, options) as channel:
            outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            outgoing.put(hello(made))
            replies = call(channel, outgoing)
            next(replies)
            for number in range(1, 400):
                ping = pb.Ping(number=number, data=bytes(wire.MAX_PING_BYTES), sent=number + 1)
                outgoing.put(wire.message(ping=ping))
            eventually(lambda: replica._server.sessions == 0)
            outgoing.put(None)


def test_a_device_that_sends_faster_than_its_frames_are_taken_is_slowed_down(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, taken = replica_of(made), threading.Semaphore(0)
    served = threading.Event()

    def serve(connection: Any) -> None:
        while taken.acquire() and connection.receive() is not None:
            pass
        served.set()

    monkeypatch.setattr(replica._server, "serve", serve)
    sent = 0

    def outgoing() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield encode_tensor(1, "t0", np.zeros((1, 16_384), np.float32), "raw")

    with listening(replica) as address, grpc.insecure_channel(address) as channel:
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
        replies = method(outgoing())
        before = -1
        while before != sent:
            before = sent
            time.sleep(0.5)
        assert sent < 200
        taken.release(500)
        assert served.wait(20)
        assert sent == 200
        replies.cancel()


def test_each_replica_exports_its_metrics_on_the_next_free_port(made: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ServeOptions(metrics=f"127.0.0.1:{taken.getsockname()[1]}")
        replicas = [replica_of(made, options) for _ in range(2)]
        ports = {replica.about()["metrics"] for replica in replicas} | {options.metrics}
        assert len(ports) == 3
        for replica in replicas:
            replica.__del__()


def test_a_node_without_the_bundle_says_so(made: Made, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no bundle at .*missing: deploy it to every node"):
        Replica([str(tmp_path / "missing")], [None], ServeOptions(), 5.0, log=False)
    other = bundles.there_and_back(tmp_path / "other")
    with pytest.raises(BundleError, match="deploy the same bundle to every node"):
        Replica([str(other.bundle.path)], [made.bundle.digest], ServeOptions(), 5.0, log=False)
