"""A device whose server's part runs as a model of a KServe server: answers, losses, refusals."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
import pytest
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.security.certs import make_certificates
from offload_runtimes.security.credentials import ClientSecurity, ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions

from tests.runtimes import bundles
from tests.runtimes.bundles import Made
from tests.runtimes.kserve_client import arrays
from tests.runtimes.waiting import eventually

ONE = EngineOptions(threads=1)
Answer = Callable[[kserve.ModelInferRequest], kserve.ModelInferResponse]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b")


def check(made: Made, session: OffloadSession, seed: int = 0) -> None:
    feeds = made.feeds(seed)
    for given, expected in zip(session.run(None, feeds), made.expected(feeds), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-5)


class Foreign:
    """A KServe server of another maker, written here: it has one model, and may misbehave."""

    def __init__(self, made: Made, port: int = 0) -> None:
        self.made = made
        self.engine = load(made.bundle.segment_path("server-0"), ONE)
        self.metadata = kserve.ModelMetadataResponse(name="b.server", versions=["1"])
        for values, field in ((self.engine.inputs, "inputs"), (self.engine.outputs, "outputs")):
            for value in values:
                shape = [size if isinstance(size, int) else -1 for size in value.shape or ()]
                getattr(self.metadata, field).add(name=value.name, datatype="FP32", shape=shape)
        self.answer: Answer = self.infer
        self.is_silent = threading.Event()
        self.requests = 0
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        calls: dict[str, tuple[Any, Callable[[Any, grpc.ServicerContext], Any]]] = {
            "ServerLive": (kserve.ServerLiveRequest, self._live),
            "ModelMetadata": (kserve.ModelMetadataRequest, self._about),
            "ModelInfer": (kserve.ModelInferRequest, self._infer),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                call, kind.FromString, lambda message: message.SerializeToString()
            )
            for name, (kind, call) in calls.items()
        }
        service = "inference.GRPCInferenceService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"kserve://127.0.0.1:{self.port}"
        self._server.start()

    def infer(self, request: kserve.ModelInferRequest) -> kserve.ModelInferResponse:
        feeds = {
            tensor.name: np.frombuffer(raw, np.float32).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = kserve.ModelInferResponse(model_name="b.server", model_version="1")
        for output in request.outputs:
            (array,) = self.engine.run([output.name], feeds)
            response.outputs.add(name=output.name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    def stop(self) -> None:
        stopped = self._server.stop(None)  # those who wait get no answer any more
        self.is_silent.clear()
        stopped.wait()
        self._pool.shutdown(wait=False)

    def _wait(self) -> None:
        while self.is_silent.is_set():
            time.sleep(0.01)

    def _live(self, _: Any, __: Any) -> kserve.ServerLiveResponse:
        self._wait()
        return kserve.ServerLiveResponse(live=True)

    def _about(self, request: Any, context: grpc.ServicerContext) -> kserve.ModelMetadataResponse:
        if request.name != self.metadata.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {request.name}")
        return self.metadata

    def _infer(self, request: Any, context: grpc.ServicerContext) -> kserve.ModelInferResponse:
        self.requests += 1
        self._wait()
        try:
            return self.answer(request)
        except OffloadError as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
            raise


@contextmanager
def foreign(made: Made, port: int = 0) -> Iterator[Foreign]:
    server = Foreign(made, port)
    try:
        yield server
    finally:
        server.stop()


def test_our_own_server_can_be_used_by_kserve(made: Made) -> None:
    with (
        Server([made.bundle], options=ServeOptions(ONE)) as server,
        OffloadSession(made.bundle, f"kserve://{server.address}") as session,
    ):
        for seed in range(5):
            check(made, session, seed)
        assert session.counts.split == 5
        assert session.is_split


def test_another_makers_server_computes_the_servers_part(made: Made) -> None:
    with foreign(made) as server, OffloadSession(made.bundle, server.address) as session:
        for seed in range(5):
            check(made, session, seed)
        assert session.counts.split == server.requests == 5
        outputs, timeline = session.run_timed(None, made.feeds())
        assert len(outputs) == 2
        assert {span.name for span in timeline.spans} >= {"device-0", "b.server"}


def test_typed_contents_in_an_answer_are_read(made: Made) -> None:
    def typed(request: kserve.ModelInferRequest) -> kserve.ModelInferResponse:
        response = server.infer(request)
        for output, array in zip(response.outputs, arrays(response).values(), strict=True):
            output.contents.fp32_contents.extend(array.ravel().tolist())
        del response.raw_output_contents[:]
        return response

    with foreign(made) as server, OffloadSession(made.bundle, server.address) as session:
        server.answer = typed
        check(made, session)
        assert session.counts.split == 1


def test_a_model_of_another_name_is_given_in_the_address(made: Made) -> None:
    with foreign(made) as server:
        server.metadata.name = "resnet_tail"
        with pytest.raises(
            BundleError, match=r"unknown model: b\.server; export the server's part"
        ):
            OffloadSession(made.bundle, server.address)
        with OffloadSession(made.bundle, f"{server.address}/resnet_tail") as session:
            check(made, session)


def test_frames_overlap_in_a_stream(made: Made) -> None:
    feeds = [made.feeds(seed) for seed in range(20)]
    with foreign(made) as server, OffloadSession(made.bundle, server.address) as session:
        for one, answer in zip(feeds, session.stream(feeds, window=6), strict=True):
            np.testing.assert_allclose(answer[0], made.expected(one)[0], rtol=1e-5)
        assert session.counts.split == 20


def change(**fields: Any) -> Callable[[Foreign], None]:
    """The server answers with something else in its first output."""

    def apply(server: Foreign) -> None:
        def answer(request: kserve.ModelInferRequest) -> kserve.ModelInferResponse:
            response = server.infer(request)
            for name, value in fields.items():
                if name == "raw":
                    response.raw_output_contents[0] = value
                elif name == "shape":
                    response.outputs[0].shape[:] = value
                else:
                    setattr(response.outputs[0], name, value)
            return response

        server.answer = answer

    return apply


@pytest.mark.parametrize(
    ("misbehave", "said"),
    [
        (change(datatype="FP64"), "wrong answer: output 'y' must be FP32"),
        (change(datatype="INT32"), "not INT32"),
        (change(shape=[1, 63]), "came with 256 bytes"),
        (change(raw=b"123"), "came with 3 bytes"),
        (change(name="z"), "output 'y' is missing"),
        (change(shape=[-1, 64]), "wrong answer"),
        (change(shape=[2**40, 2**40]), "wrong answer"),
    ],
)
def test_a_wrong_answer_is_one_sentence_and_the_device_finishes(
    made: Made, misbehave: Callable[[Foreign], None], said: str
) -> None:
    with foreign(made) as server:
        misbehave(server)
        with OffloadSession(made.bundle, server.address) as session:
            check(made, session)
            assert session.counts.resumed == 1
        with (
            OffloadSession(made.bundle, server.address, on_server_loss="raise") as session,
            pytest.raises(ServerError, match=said) as caught,
        ):
            session.run(None, made.feeds())
        assert "\n" not in str(caught.value)


def test_an_error_of_one_frame_leaves_the_others(made: Made) -> None:
    counter = itertools.count()

    def every_second(request: kserve.ModelInferRequest) -> kserve.ModelInferResponse:
        if next(counter) % 2:
            raise ServerError("out of memory on GPU 0")
        return server.infer(request)

    with foreign(made) as server, OffloadSession(made.bundle, server.address) as session:
        server.answer = every_second
        for seed in range(6):
            check(made, session, seed)
        assert (session.counts.split, session.counts.resumed) == (3, 3)


def test_a_server_that_dies_is_replaced_by_the_device_until_it_is_back(made: Made) -> None:
    options: dict[str, Any] = {"heartbeat_s": 0.05, "patience_s": 0.5}
    with foreign(made) as server:
        port = server.port
        session = OffloadSession(made.bundle, server.address, **options)
        check(made, session)
        server.is_silent.set()
        running = session.begin(None, made.feeds(1))
        eventually(lambda: server.requests == 2)
    (y, _) = running.finish()
    np.testing.assert_allclose(y, made.expected(made.feeds(1))[0], rtol=1e-5)
    check(made, session)
    assert session.counts.split == 1
    with foreign(made, port):
        eventually(lambda: session.is_split)
        check(made, session)
        assert session.counts.split == 2
        session.close()


def test_a_silent_server_counts_as_lost(made: Made) -> None:
    with (
        foreign(made) as server,
        OffloadSession(made.bundle, server.address, heartbeat_s=0.05, patience_s=0.3) as session,
    ):
        server.is_silent.set()
        check(made, session)
        assert session.counts.resumed == 1
        assert not session.is_split


def test_a_deadline_is_kept_and_the_request_cancelled(made: Made) -> None:
    with foreign(made) as server:
        with OffloadSession(made.bundle, server.address, patience_s=30) as session:
            check(made, session)
            server.is_silent.set()
            feeds = made.feeds(3)
            (y, _) = session.run(None, feeds, deadline_s=2.0)
            np.testing.assert_allclose(y, made.expected(feeds)[0], rtol=1e-5)
            assert session.counts.hedged == 1
        options: dict[str, Any] = {"on_server_loss": "raise", "patience_s": 30}
        server.is_silent.clear()
        with OffloadSession(made.bundle, server.address, **options) as session:
            server.is_silent.set()
            with pytest.raises(DeadlineError, match="no answer within"):
                session.run(None, made.feeds(), deadline_s=0.2)


def test_a_closed_session_stops_those_who_wait(made: Made) -> None:
    with foreign(made) as server:
        session = OffloadSession(made.bundle, server.address, patience_s=30)
        server.is_silent.set()
        running = session.begin(None, made.feeds())
        session.close()
        with pytest.raises(InputError, match="the session is closed"):
            running.finish()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: m.inputs.pop(), r"takes \['t0'\], not \['t0', 't1'\] as this bundle does"),
        (lambda m: m.inputs.add(name="more", datatype="FP32", shape=[1]), "takes .*'more'"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP16"), r"takes 't0' as FP16\[1x64\]"),
        (lambda m: m.inputs[0].shape.__setitem__(1, 65), r"as FP32\[1x65\], not FP32\[1x64\]"),
        (lambda m: m.inputs[0].shape.append(1), r"FP32\[1x64x1\]"),
        (lambda m: m.outputs.pop(), r"gives \[\], not \['y'\]"),
        (lambda m: setattr(m.outputs[0], "datatype", "BYTES"), "gives 'y' as BYTES"),
    ],
)
def test_another_model_of_the_same_name_is_refused(
    made: Made, spoil: Callable[[kserve.ModelMetadataResponse], None], said: str
) -> None:
    with foreign(made) as server:
        spoil(server.metadata)
        with pytest.raises(BundleError, match=said):
            OffloadSession(made.bundle, server.address)


def test_a_dynamic_batch_of_the_server_fits_a_fixed_one(made: Made) -> None:
    with foreign(made) as server:
        for tensor in (*server.metadata.inputs, *server.metadata.outputs):
            tensor.shape[0] = -1
        server.metadata.outputs.add(name="more", datatype="FP32", shape=[1])
        with OffloadSession(made.bundle, server.address) as session:
            check(made, session)


def test_where_nothing_listens_the_reason_is_given(made: Made) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"kserve://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerError, match="nothing listens there"):
            OffloadSession(made.bundle, address)
        with OffloadSession(made.bundle, address, require_server=False) as session:
            check(made, session)
            assert session.counts.local == 1


def test_a_host_that_never_answers_ends_in_time(made: Made) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"kserve://127.0.0.1:{deaf.getsockname()[1]}"
        start_s = time.monotonic()
        with pytest.raises(ServerError):
            OffloadSession(made.bundle, address, connect_timeout_s=0.5)
        assert time.monotonic() - start_s < 10


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("kserve://", "not understood"),
        ("kserve://host", "no port"),
        ("kserve://host:0", "write it like kserve://host:8001"),
        ("kserve://a b:1/m", "not understood"),
    ],
)
def test_wrong_addresses_get_one_sentence(made: Made, address: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OffloadSession(made.bundle, address)


def test_a_token_and_its_refusal(made: Made, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-of-some-length\n")
    options = ServeOptions(ONE, security=ServerSecurity(token_file=tokens))
    with Server([made.bundle], options=options) as server:
        address = f"kserve://{server.address}"
        security = ClientSecurity(token="a-secret-of-some-length")
        with OffloadSession(made.bundle, address, security=security) as session:
            check(made, session)
        with pytest.raises(ServerError, match="refused the token"):
            OffloadSession(made.bundle, address, security=ClientSecurity(token="another"))


def test_mutual_tls_and_its_refusals(made: Made, tmp_path: Path) -> None:
    pems, host = tmp_path / "certs", "127.0.0.1"
    make_certificates(pems, servers=[host], devices=["camera"])
    make_certificates(pems / "other", servers=[host], devices=["camera"])
    security = ServerSecurity(pems / f"{host}.pem", pems / f"{host}.key", pems / "ca.pem")

    def camera(folder: Path) -> ClientSecurity:
        return ClientSecurity(pems / "ca.pem", folder / "camera.pem", folder / "camera.key")

    with Server([made.bundle], options=ServeOptions(ONE, security=security)) as server:
        address = f"kserve://{server.address}"
        with OffloadSession(made.bundle, address, security=camera(pems)) as session:
            check(made, session)
            assert session.counts.split == 1
        for wrong, said in ((camera(pems / "other"), "handshake"), (None, "speaks TLS")):
            with pytest.raises(ServerError, match=said):
                OffloadSession(made.bundle, address, security=wrong, connect_timeout_s=2)


def test_plans_that_one_request_cannot_serve_are_refused(tmp_path: Path) -> None:
    there = bundles.there_and_back(tmp_path / "there")
    with pytest.raises(InputError, match="an answer of the server before its last upload"):
        OffloadSession(there.bundle, "kserve://127.0.0.1:1")
    packed = bundles.branches(tmp_path / "packed", encoding="zstd")
    with pytest.raises(InputError, match="as zstd, which a KServe server cannot decode"):
        OffloadSession(packed.bundle, "kserve://127.0.0.1:1")
    with pytest.raises(InputError, match="emulated with our own server only"):
        OffloadSession(there.bundle, "kserve://127.0.0.1:1", slowdown=2)


def test_a_version_of_our_own_server_is_requested_by_the_bundles_digest(
    made: Made, tmp_path: Path
) -> None:
    other = bundles.branches(tmp_path / "other/b")
    with (
        Server([other.bundle, made.bundle], options=ServeOptions(ONE)) as server,
        OffloadSession(made.bundle, f"kserve://{server.address}") as session,
    ):
        check(made, session)
        assert session.counts.split == 1
