"""Short segments run on gRPC's polling thread; a worker repeats those that take too long."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import Call, EngineOptions
from offload_runtimes.server import Server
from offload_runtimes.serving.bundles import LoadedBundle
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport import SESSION

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made
from tests.runtimes.kserve_client import KServeClient, arrays, infer_request
from tests.runtimes.waiting import eventually

BRIEF, LONG = 3, 300_000  # additions


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A bundle whose server part takes as long as its input says."""
    whole = models.counting_loop()
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    parts = [(part, whole)]
    return bundles.write(tmp_path / "b", whole, parts, [("send", "x")], [Send("x", 4)], ["y"])


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that run segments; the server expects all segments to be short."""
    names: list[str] = []
    run = Call.run

    def noted(self: Call, *args: Any) -> Any:
        names.append(threading.current_thread().name)
        return run(self, *args)

    monkeypatch.setattr(Call, "run", noted)
    monkeypatch.setattr(LoadedBundle, "runs_briefly", lambda *_: True)
    return names


@pytest.fixture
def server(made: Made) -> Iterator[Server]:
    with Server([made.bundle], options=ServeOptions(EngineOptions(threads=1))) as running:
        yield running


def number(x: int) -> dict[str, np.ndarray]:
    return {"x": np.array([x], np.float32)}


def is_polling(name: str) -> bool:
    return "_serve" in name


def test_frames_run_on_the_polling_thread_unless_they_are_long(
    made: Made, server: Server, places: list[str]
) -> None:
    with OffloadSession(made.bundle, server.address, deadline_s=60.0) as session:
        for _ in range(20):
            assert session.run(None, number(BRIEF)) == [2 * BRIEF]
        assert any(map(is_polling, places))
        places.clear()
        assert session.run(None, number(LONG)) == [2 * LONG]
        assert is_polling(places[0])  # and was stopped there
        assert places[1:] == ["worker-0"]
        assert session.counts.split == 21


def test_an_answer_is_sent_before_the_server_counts_the_frame(
    made: Made, server: Server, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    came, has_come = threading.Event(), []
    monkeypatch.setattr(Observer, "frame", lambda *_: has_come.append(came.wait(20)))
    with OffloadSession(made.bundle, server.address, deadline_s=60.0) as session:
        assert session.run(None, number(BRIEF)) == [2 * BRIEF]
        came.set()
        eventually(lambda: bool(has_come))
    assert has_come == [True]
    assert is_polling(places[-1])


@pytest.mark.parametrize("in_stream", [False, True])
def test_requests_run_on_the_polling_thread_unless_they_are_long(
    server: Server, places: list[str], in_stream: bool
) -> None:
    with KServeClient(server.address) as client:

        def answers(*inputs: int) -> list[float]:
            requests = [infer_request("b.server", number(x)) for x in inputs]
            if in_stream:
                given = [answer.infer_response for answer in client.stream(requests)]
            else:
                given = [client.call("ModelInfer", request) for request in requests]
            return [float(arrays(one)["y"][0]) for one in given]

        assert answers(*[BRIEF] * 20) == [2 * BRIEF] * 20
        assert any(map(is_polling, places))
        places.clear()
        assert answers(LONG) == [2 * LONG]
        assert is_polling(places[0])
        assert len(places) == 2
        assert not is_polling(places[1])


def test_a_long_message_is_handled_on_the_streams_own_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding a long message on the polling thread would delay all other streams."""
    made = bundles.branches(tmp_path / "branches", batch="n")
    names: list[str] = []
    tasks_of = Server._tasks_of

    def noted(self: Server, session: Any, protocol: Any, data: bytes) -> Any:
        if len(data) > 4096:
            names.append(threading.current_thread().name)
        return tasks_of(self, session, protocol, data)

    monkeypatch.setattr(Server, "_tasks_of", noted)
    x = made.bundle.inputs[0]
    assert x.shape is not None
    width = [size if isinstance(size, int) else 1 for size in x.shape]
    with Server([made.bundle]) as server, OffloadSession(made.bundle, server.address) as session:
        for size_bytes in (20_000, 2_000_000):
            rows = size_bytes // (4 * int(np.prod(width)))
            feeds = {x.name: np.ones([rows, *width[1:]], np.float32)}
            expected = made.expected(feeds)
            for given, right in zip(session.run(None, feeds), expected, strict=True):
                np.testing.assert_allclose(given, right, rtol=1e-5)
    assert is_polling(names[0])
    assert not is_polling(names[-1])


def test_a_session_that_breaks_the_protocol_ends_although_the_device_stays(
    made: Made, server: Server
) -> None:
    stays = threading.Event()

    def messages() -> Iterator[bytes]:
        hello = pb.Hello(bundle=made.bundle.digest, protocol=0)
        yield pb.Message(hello=hello).SerializeToString()
        stays.wait(20)

    with grpc.insecure_channel(server.address) as channel:
        start: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
        call = start(messages())
        eventually(lambda: server.sessions == 0)
        assert pb.Message.FromString(next(call)).WhichOneof("body") == "failure"
        stays.set()
