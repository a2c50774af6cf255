"""Clients of KServe v2 get onnxruntime's answers, and are limited like sessions."""

import queue
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import offload
import offload_runtimes.protocol.kserve_pb2 as kserve
import pytest
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.protocol.kserve_messages import version_of
from offload_runtimes.protocol.server_state import SessionLimits
from offload_runtimes.security.credentials import ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.dispatch import FairWorkers
from offload_runtimes.serving.serve_options import ServeOptions
from onnx import helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made
from tests.runtimes.kserve_client import KServeClient, arrays, infer_request
from tests.runtimes.waiting import eventually

ONE = EngineOptions(threads=1)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b", batch="n")


@pytest.fixture
def server(made: Made) -> Iterator[Server]:
    options = ServeOptions(ONE, limits=SessionLimits(max_frames=2, max_bytes=100_000))
    with Server([made.bundle], options=options) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[KServeClient]:
    with KServeClient(server.address) as opened:
        yield opened


def uploads(made: Made, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the device sends for these inputs."""
    sent: dict[str, np.ndarray] = {}
    for segment in made.bundle.plan.on(Side.DEVICE):
        outputs = load(made.bundle.segment_path(segment.part), ONE).run(None, feeds)
        sent.update(zip(segment.outputs, outputs, strict=True))
    return sent


def check(made: Made, client: KServeClient, seed: int = 0) -> None:
    feeds = made.feeds(seed)
    y, t1 = made.expected(feeds)
    whole = client.infer("b", feeds)
    np.testing.assert_allclose(whole["y"], y, rtol=1e-5)
    np.testing.assert_allclose(whole["t1"], t1, rtol=1e-5)
    (answer,) = client.infer("b.server", uploads(made, feeds)).values()
    np.testing.assert_allclose(answer, y, rtol=1e-5)


def refusal(client: KServeClient, request: kserve.ModelInferRequest) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as caught:
        client.call("ModelInfer", request)
    return caught.value.code(), str(caught.value.details())


def held(server: Server) -> str:
    lines = server.metrics_text().splitlines()
    return next(line for line in lines if line.startswith("offload_held_bytes "))


def test_the_part_and_the_whole_give_the_models_outputs(made: Made, client: KServeClient) -> None:
    for seed in range(3):
        check(made, client, seed)


def test_several_segments_run_in_turn(tmp_path: Path) -> None:
    made = bundles.there_and_back(tmp_path / "b")
    with Server([made.bundle]) as server, KServeClient(server.address) as client:
        feeds = made.feeds()
        (y,) = made.expected(feeds)
        np.testing.assert_allclose(client.infer("b", feeds)["y"], y)
        a = np.maximum(feeds["x"], 0)
        part = client.infer("b.server", {"a": a, "c": np.exp(-a)})
        np.testing.assert_allclose(part["b"], -a)
        np.testing.assert_allclose(part["y"], y, rtol=1e-6)


def test_metadata_describes_what_may_be_run(made: Made, client: KServeClient) -> None:
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready
    assert client.call("ServerMetadata").version == offload.__version__
    for name, inputs, outputs in (("b", ["x"], ["y", "t1"]), ("b.server", ["t0", "t1"], ["y"])):
        assert client.call("ModelReady", kserve.ModelReadyRequest(name=name)).ready
        about = client.call("ModelMetadata", kserve.ModelMetadataRequest(name=name))
        assert [value.name for value in about.inputs] == inputs
        assert [value.name for value in about.outputs] == outputs
        assert about.inputs[0].datatype == "FP32"
        assert list(about.inputs[0].shape) == [-1, 64]
        assert about.versions == [version_of(made.bundle)]
        config = client.call("ModelConfig", kserve.ModelConfigRequest(name=name)).config
        assert [value.name for value in config.input] == inputs
        assert list(config.output[0].dims) == [-1, 64]
    index = client.call("RepositoryIndex")
    assert [(m.name, m.state) for m in index.models] == [("b.server", "READY"), ("b", "READY")]


def test_statistics_count_answers_and_errors(made: Made, client: KServeClient) -> None:
    for _ in range(3):
        client.infer("b", made.feeds())
    refusal(client, infer_request("b", {}))
    (stats,) = client.call("ModelStatistics", kserve.ModelStatisticsRequest(name="b")).model_stats
    assert (stats.inference_count, stats.inference_stats.fail.count) == (3, 1)
    success = stats.inference_stats
    assert 0 < success.compute_infer.ns <= success.success.ns
    assert len(client.call("ModelStatistics").model_stats) == 2


def test_bundles_of_one_model_are_its_versions(tmp_path: Path) -> None:
    first = bundles.branches(tmp_path / "one/net")
    second = bundles.branches(tmp_path / "two/net")
    with (
        Server([first.bundle, second.bundle]) as server,
        KServeClient(server.address) as client,
    ):
        feeds = first.feeds()
        for made, version in ((first, ""), (second, version_of(second.bundle))):
            response = client.call("ModelInfer", infer_request("net", feeds, version))
            assert response.model_version == version_of(made.bundle)
            np.testing.assert_allclose(arrays(response)["y"], made.expected(feeds)[0], rtol=1e-5)
        code, said = refusal(client, infer_request("net", feeds, "9"))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "version '9', is not served" in said


def test_repeated_headers_follow_the_bundle_and_are_checked_with_the_contents(
    tmp_path: Path,
) -> None:
    first = bundles.branches(tmp_path / "served/net")
    second = bundles.branches(tmp_path / "next/net")
    with (
        Server([tmp_path / "served/net"], options=ServeOptions(ONE)) as server,
        KServeClient(server.address) as client,
    ):
        for seed in range(3):
            feeds = first.feeds(seed)
            request = infer_request("net", feeds, request_id=str(seed))
            response = client.call("ModelInfer", request)
            assert response.id == str(seed)
            np.testing.assert_allclose(arrays(response)["y"], first.expected(feeds)[0], rtol=1e-5)
        request.raw_input_contents[0] = bytes(8)
        assert "came with 8 bytes" in refusal(client, request)[1]
        request.raw_input_contents.append(bytes(256))
        assert "1 inputs came with 2" in refusal(client, request)[1]
        del request.raw_input_contents[:]
        assert "came with 0 elements" in refusal(client, request)[1]
        (tmp_path / "served/net").rename(tmp_path / "old")
        (tmp_path / "next/net").rename(tmp_path / "served/net")
        server.reload_bundles()
        response = client.call("ModelInfer", infer_request("net", feeds))
        assert response.model_version == version_of(second.bundle)
        np.testing.assert_allclose(arrays(response)["y"], second.expected(feeds)[0], rtol=1e-5)


def test_a_servers_half_is_served_without_the_whole(made: Made, tmp_path: Path) -> None:
    half = bundles.deployed(made, Side.SERVER, tmp_path / "half")
    with Server([half]) as server, KServeClient(server.address) as client:
        names = [model.name for model in client.call("RepositoryIndex").models]
        assert names == ["half.server"]


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "'t0' of 'b.server' is missing"),
        ({"t0": (3, 64)}, "'t1' of 'b.server' is missing"),
        ({"x": (3, 64)}, "has no input 'x'"),
        ({"t0": (3, 65), "t1": (3, 64)}, r"must be FP32\[nx64\]"),
        ({"t0": (1000, 64), "t1": (1000, 64)}, "256 kB, allowed are 100 kB"),
        ({"t0": (3, 64), "t1": (2, 64)}, "cannot be computed"),
    ],
)
def test_a_wrong_request_gets_a_status_and_a_sentence(
    server: Server, client: KServeClient, feeds: dict[str, tuple[int, ...]], said: str
) -> None:
    given = {name: np.zeros(shape, np.float32) for name, shape in feeds.items()}
    request = infer_request("b.server", given, request_id="q")
    code, sentence = refusal(client, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert pytest.raises(ValueError, match=said).matches(ValueError(sentence))
    (answer,) = client.stream([request])
    assert answer.error_message == sentence
    assert answer.infer_response.id == "q"
    assert held(server) == "offload_held_bytes 0.0"
    assert server.sessions == 0


def test_a_request_longer_than_any_model_takes_is_refused_unread(client: KServeClient) -> None:
    request = infer_request("b", {"x": np.zeros((2**19, 64), np.float32)})
    code, _ = refusal(client, request)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_inputs_of_any_size_together_get_the_limit_of_one(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "b", batch="n", count=3)
    limits = SessionLimits(max_bytes=16 << 20)  # above what probes take
    with (
        Server([made.bundle], options=ServeOptions(ONE, limits=limits)) as server,
        KServeClient(server.address) as client,
    ):
        rows = (6 << 20) // 256
        inputs = {f"t{i}": np.zeros((rows, 64), np.float32) for i in range(3)}
        code, _ = refusal(client, infer_request("b.server", inputs))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.infer("b.server", {name: array[: rows // 2] for name, array in inputs.items()})


def test_bytes_that_are_no_request_get_a_status(client: KServeClient, server: Server) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    for method in ("ModelInfer", "ModelMetadata"):
        call = client.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    stream: grpc.StreamStreamMultiCallable[bytes, bytes]
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    (answer,) = stream(iter([b"\xff\xff"]))
    assert (
        "not a ModelInferRequest"
        in kserve.ModelStreamInferResponse.FromString(answer).error_message
    )
    assert server.sessions == 0


def test_unknown_models_are_not_found(client: KServeClient) -> None:
    code, said = refusal(client, infer_request("other", {}))
    assert code is grpc.StatusCode.NOT_FOUND
    assert said == "model 'other' is not served here: there are ['b.server', 'b']"
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        request = getattr(kserve, f"{method}Request")(name="other")
        with pytest.raises(grpc.RpcError) as caught:
            client.call(method, request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_stream_answers_all_before_it_ends(made: Made, client: KServeClient) -> None:
    feeds = [made.feeds(seed) for seed in range(20)]
    requests = [infer_request("b", one, request_id=str(i)) for i, one in enumerate(feeds)]
    requests.insert(7, infer_request("other", {}))
    answers = list(client.stream(requests))
    assert [a.error_message[:13] for a in answers if a.error_message] == ["model 'other'"]
    given = {int(a.infer_response.id): a for a in answers if not a.error_message}
    assert sorted(given) == list(range(20))
    for number, one in enumerate(feeds):
        y = arrays(given[number].infer_response)["y"]
        np.testing.assert_allclose(y, made.expected(one)[0], rtol=1e-5)


def endless(folder: Path) -> Made:
    """A bundle whose server part never ends; its dynamic size prevents a warm-up run."""
    whole = models.endless_loop("n")
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    return bundles.write(folder, whole, [(part, whole)], [("send", "x")], [Send("x", 4)], ["y"])


@pytest.mark.parametrize("in_stream", [False, True])
def test_what_runs_for_a_client_that_has_gone_is_stopped(
    made: Made, tmp_path: Path, in_stream: bool
) -> None:
    loop = endless(tmp_path / "loop")
    request = infer_request("loop", {"x": np.zeros(1, np.float32)})
    with Server([loop.bundle, made.bundle], options=ServeOptions(ONE)) as server:
        with KServeClient(server.address) as client:
            if in_stream:
                outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
                for _ in range(4):
                    outbox.put(request)
                under_way = client.stream(iter(outbox.get, None))
                eventually(lambda: server.sessions == 4)
                under_way.cancel()  # type: ignore[attr-defined]
            else:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes]
                call = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                with pytest.raises(grpc.RpcError) as caught:
                    call(request.SerializeToString(), timeout=0.3)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: server.sessions == 0 and held(server).endswith(" 0.0"))
        with KServeClient(server.address) as client:
            check(made, client)


def test_a_server_that_stops_ends_what_runs(tmp_path: Path) -> None:
    loop = endless(tmp_path / "loop")
    said: list[tuple[Any, str]] = []
    with Server([loop.bundle], options=ServeOptions(ONE)) as server:
        with KServeClient(server.address) as client:
            request = infer_request("loop", {"x": np.zeros(1, np.float32)})
            asks = [
                threading.Thread(target=lambda: said.append(refusal(client, request)))
                for _ in range(2)  # one runs, one waits for its turn
            ]
            for thread in asks:
                thread.start()
            eventually(lambda: server.sessions == 2)
            assert not server.drain(0.1)
            server.end_sessions()
            for thread in asks:
                thread.join(10)
        assert server.drain(0.1)
    assert [code for code, _ in said] == 2 * [grpc.StatusCode.UNAVAILABLE]
    assert all("shutting down" in sentence for _, sentence in said)


def test_a_run_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    loop = endless(tmp_path / "loop")
    options = ServeOptions(ONE, max_run_s=0.2)
    with Server([loop.bundle], options=options) as server, KServeClient(server.address) as client:
        code, said = refusal(client, infer_request("loop", {"x": np.zeros(1, np.float32)}))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "stopped before it finished" in said


def test_requests_need_the_servers_token(made: Made, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-of-some-length\n")
    security = ServerSecurity(token_file=tokens)
    with Server([made.bundle], options=ServeOptions(ONE, security=security)) as server:
        with KServeClient(server.address, "a-secret-of-some-length") as client:
            check(made, client)
        for token in (None, "another"):
            with KServeClient(server.address, token) as client:
                code, _ = refusal(client, infer_request("b", made.feeds()))
                assert code is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.RpcError) as caught:
                    list(client.stream([]))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_requests_count_as_sessions(made: Made) -> None:
    with Server([made.bundle], options=ServeOptions(ONE, max_sessions=1)) as server:
        with OffloadSession(made.bundle, server.address), KServeClient(server.address) as client:
            code, said = refusal(client, infer_request("b", made.feeds()))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "all 1 sessions allowed are open" in said


def test_requests_share_batches_with_sessions(made: Made) -> None:
    options = ServeOptions(ONE, batch_rows=9, batch_wait_s=20)
    with (
        Server([made.bundle], options=options) as server,
        KServeClient(server.address) as client,
        OffloadSession(made.bundle, server.address) as session,
    ):
        feeds = made.feeds(0), made.feeds(1)
        inputs = uploads(made, feeds[0])
        answers: list[dict[str, np.ndarray]] = []
        asks = threading.Thread(target=lambda: answers.append(client.infer("b.server", inputs)))
        asks.start()
        eventually(lambda: server.sessions == 2)  # it waits for the rows of the session
        (own,) = session.run(["y"], feeds[1])
        asks.join()
        np.testing.assert_allclose(answers[0]["y"], made.expected(feeds[0])[0], rtol=1e-4)
        np.testing.assert_allclose(own, made.expected(feeds[1])[0], rtol=1e-4)
        text = server.metrics_text()
        assert 'offload_batch_rows_bucket{le="4.0"} 0.0' in text
        assert 'offload_batch_rows_bucket{le="8.0"} 1.0' in text


def test_memory_is_limited_over_all_requests(made: Made) -> None:
    options = ServeOptions(ONE, max_memory_bytes=200 << 20)
    with Server([made.bundle], options=options) as server, KServeClient(server.address) as client:
        index = {model.name: model for model in client.call("RepositoryIndex").models}
        assert index["b"].state == "UNAVAILABLE"
        assert "--max-memory" in index["b"].reason
        assert not client.call("ModelReady", kserve.ModelReadyRequest(name="b")).ready
        code, said = refusal(client, infer_request("b", made.feeds()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "--max-memory" in said
        client.infer("b.server", uploads(made, made.feeds()))
        other = server._memory.reserve(lambda: None)
        assert other.hold(50 << 20, idle=False)
        code, said = refusal(client, infer_request("b.server", uploads(made, made.feeds())))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "in use on the server (--max-memory)" in said


def test_a_draining_server_answers_and_takes_no_more(made: Made) -> None:
    with Server([made.bundle], options=ServeOptions(ONE)) as server:
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with KServeClient(server.address) as client:
            answers = client.stream(iter(outbox.get, None))
            outbox.put(infer_request("b", made.feeds()))
            assert not next(answers).error_message
            assert server.drain(5)
            assert not client.call("ServerReady").ready
            outbox.put(infer_request("b", made.feeds()))
            assert "shutting down" in next(answers).error_message
            code, said = refusal(client, infer_request("b", made.feeds()))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in said
            outbox.put(None)
            assert list(answers) == []


def test_metrics_count_requests_as_frames(made: Made, server: Server, client: KServeClient) -> None:
    client.infer("b.server", uploads(made, made.feeds()))
    refusal(client, infer_request("b.server", {}))
    text = server.metrics_text()
    bundle = made.bundle.digest[:12]
    assert f'offload_frames_total{{bundle="{bundle}",outcome="answered",plan="0"}} 1.0' in text
    assert f'offload_frames_total{{bundle="{bundle}",outcome="failed",plan="0"}} 1.0' in text
    assert 'offload_errors_total{kind="InputError"} 1.0' in text


def test_many_clients_at_once_get_their_own_answers(made: Made, server: Server) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            with KServeClient(server.address) as client:
                for each in range(10):
                    check(made, client, seed * 100 + each)
        except BaseException as error:  # noqa: BLE001  reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert server.sessions == 0


def test_a_model_without_datatypes_is_listed_as_unavailable(tmp_path: Path) -> None:
    x, y = models.floats("x", 1), helper.make_tensor_sequence_value_info("y", 1, None)
    whole = models.model([helper.make_node("SequenceConstruct", ["x"], ["y"])], [x], [y])
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    made = bundles.write(
        tmp_path / "b", whole, [(part, whole)], [("send", "x")], [Send("x", 4)], ["y"]
    )
    with Server([made.bundle]) as server, KServeClient(server.address) as client:
        for model in client.call("RepositoryIndex").models:
            assert model.state == "UNAVAILABLE"
            assert "'y' is a seq(tensor(float))" in model.reason
        assert (
            list(client.call("RepositoryIndex", kserve.RepositoryIndexRequest(ready=True)).models)
            == []
        )
        code, said = refusal(client, infer_request("b", made.feeds()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "no datatype" in said


def test_many_requests_of_one_client_take_turns_with_another_client(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = endless(tmp_path / "loop")
    order: list[str] = []
    begin = FairWorkers._begin

    def recorded(self: FairWorkers, key: Hashable) -> None:
        order.append(str(key))
        begin(self, key)

    monkeypatch.setattr(FairWorkers, "_begin", recorded)
    with (
        Server([loop.bundle, made.bundle], options=ServeOptions(ONE)) as server,
        KServeClient(server.address) as busy,
        KServeClient(server.address) as many,
        KServeClient(server.address) as single,
    ):
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        outbox.put(infer_request("loop", {"x": np.zeros(1, np.float32)}))
        occupied = busy.stream(iter(outbox.get, None))  # the only worker runs it
        eventually(lambda: len(order) == 1)
        inputs = uploads(made, made.feeds())

        def asks(client: KServeClient) -> threading.Thread:
            thread = threading.Thread(target=lambda: client.infer("b.server", inputs))
            thread.start()
            return thread

        threads = [asks(many) for _ in range(6)]
        eventually(lambda: server._dispatcher.waiting == 6)
        threads.append(asks(single))
        eventually(lambda: server._dispatcher.waiting == 7)
        occupied.cancel()  # type: ignore[attr-defined]
        for thread in threads:
            thread.join()
    first, *others = order[1:]
    assert others[0] != first, "the single request comes second"
    assert set(others[1:]) == {first}
