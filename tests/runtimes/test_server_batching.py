"""Sessions whose rows run together: each gets its own answer, whatever the others do.

The server waits for rows until every open session has one in, so that who runs with whom does
not depend on the machine's load.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from offload.bundle.bundle import MANIFEST, manifest_digest, open_bundle
from offload.errors import DeadlineError, InputError, OffloadError
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import Engine, EngineOptions, rows_of
from offload_runtimes.engine import engine as engine_module
from offload_runtimes.protocol import messages as wire
from offload_runtimes.server import Server
from offload_runtimes.serving import bundles as served_bundles
from offload_runtimes.serving.bundles import load_bundle
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport.connection import Connection
from onnx import NodeProto, TensorProto, helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made
from tests.runtimes.memory_transport import pair
from tests.runtimes.tensor_messages import encode_tensor
from tests.runtimes.waiting import eventually

Feeds = Mapping[str, np.ndarray]
LONG_S = 60.0  # a wait that ends because everybody is there
ONE = EngineOptions(threads=1)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b", batch="n")


def feeds(seed: int, rows: int = 1, width: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((rows, width)).astype(np.float32)}


@contextmanager
def batching(made: Made, rows: int = 8, wait_s: float = LONG_S, **more: Any) -> Iterator[Server]:
    options = ServeOptions(ONE, batch_rows=rows, batch_wait_s=wait_s, **more)
    with Server([made.bundle], options=options) as server:
        yield server


@contextmanager
def sessions(made: Made, server: Server, count: int) -> Iterator[list[OffloadSession]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                OffloadSession(made.bundle, server.address, threads=1, on_server_loss="raise")
            )
            for _ in range(count)
        ]


def at_once(calls: Sequence[Callable[[], object]]) -> list[object]:
    """Results of calls on threads of their own, or the errors that they raise."""
    found: list[object] = [None] * len(calls)

    def call(place: int) -> None:
        try:
            found[place] = calls[place]()
        except OffloadError as error:
            found[place] = error

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def asked(session: OffloadSession, given: Feeds, **more: float) -> Callable[[], object]:
    return lambda: session.run(["y"], dict(given), **more)[0]


def right(made: Made, given: Feeds, answer: object) -> None:
    assert isinstance(answer, np.ndarray), answer
    np.testing.assert_allclose(answer, made.expected(dict(given))[0], rtol=1e-4, atol=1e-5)


def histogram(server: Server) -> tuple[int, int]:
    """The number of runs and of rows."""
    found = dict(line.rsplit(" ", 1) for line in server.metrics_text().splitlines())
    names = ("offload_batch_rows_count", "offload_batch_rows_sum")
    return tuple(int(float(found.get(name, 0))) for name in names)  # type: ignore[return-value]


def test_rows_of_all_sessions_run_as_one(made: Made) -> None:
    given = [feeds(seed, rows) for seed, rows in enumerate((1, 2, 1, 3))]
    with batching(made) as server, sessions(made, server, 4) as open_:
        answers = at_once([asked(*pair_) for pair_ in zip(open_, given, strict=True)])
        for one, answer in zip(given, answers, strict=True):
            right(made, one, answer)
        assert histogram(server) == (1, 7)
        assert 'offload_batch_rows_bucket{le="4.0"} 0' in server.metrics_text()
        assert 'offload_batch_rows_bucket{le="8.0"} 1' in server.metrics_text()
        assert "offload_queue_length 0" in server.metrics_text()


def test_what_does_not_fit_runs_next(made: Made) -> None:
    """The load decides which rows run together, but never more than fit."""
    given = [feeds(seed, 3) for seed in range(3)]
    with batching(made, rows=6, wait_s=0.05) as server, sessions(made, server, 3) as open_:
        answers = at_once([asked(*pair_) for pair_ in zip(open_, given, strict=True)])
        for one, answer in zip(given, answers, strict=True):
            right(made, one, answer)
        right(made, feeds(9, 9), asked(open_[0], feeds(9, 9))())
        runs, rows = histogram(server)
        assert rows == 18
        assert runs in (3, 4)


def test_a_session_alone_waits_for_nobody(made: Made) -> None:
    with batching(made) as server, sessions(made, server, 1) as open_:
        for seed in range(3):
            right(made, feeds(seed), asked(open_[0], feeds(seed))())
        assert histogram(server) == (3, 3)


def test_streams_run_together_and_stay_in_order(made: Made) -> None:
    """Rows that wait already join the batch; the load decides how many."""
    frames = [[feeds(100 * number + seed) for seed in range(40)] for number in range(4)]
    with batching(made, wait_s=0.0) as server, sessions(made, server, 4) as open_:
        each = zip(open_, frames, strict=True)
        streams = [partial(list[object], session.stream(own)) for session, own in each]
        for own, answers in zip(frames, at_once(streams), strict=True):
            assert isinstance(answers, list), answers
            for given, (answer, _) in zip(own, answers, strict=True):
                right(made, given, answer)
        runs, rows = histogram(server)
        assert rows == 160
        assert runs <= rows


def mixing(made: Made) -> Made:
    """The same bundle, its server's part marked as one that mixes rows."""
    path = made.bundle.path / MANIFEST
    content = json.loads(path.read_text())
    del content["digest"]
    content["files"]["server-0.onnx"]["why_alone"] = "it mixes rows"
    path.write_text(json.dumps({"digest": manifest_digest(content), **content}))
    return Made(open_bundle(made.bundle.path), made.whole)


def test_a_bundle_that_does_not_allow_it_is_served_as_ever(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    old = mixing(made)
    with caplog.at_level(logging.INFO, "offload.server"), batching(old) as server:
        (said,) = [r for r in caplog.records if r.getMessage() == "batching"]
        assert "mixes rows" in said.fields["why_not"]  # type: ignore[attr-defined]
        with sessions(old, server, 2) as open_:
            for session, answer in zip(
                open_, at_once([asked(s, feeds(1)) for s in open_]), strict=True
            ):
                right(old, feeds(1), answer)
                assert session.counts.split == 1
        assert histogram(server) == (0, 0)


def segment(
    folder: Path, nodes: list[NodeProto], weights: dict[str, np.ndarray], kind: int, width: int
) -> Made:
    """A bundle that runs on the server, marked as batchable: input `x`, float outputs."""
    x = helper.make_tensor_value_info("x", kind, ["n", width])
    y = models.floats("y", "n", *([width] if kind == TensorProto.FLOAT else [width, 4]))
    whole = models.model(nodes, [x], [y], weights)
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    parts, steps = [(part, whole)], [("send", "x")]
    return bundles.write(folder, whole, parts, steps, [Send("x", None)], ["y"], {"server-0": ""})


def test_a_trial_that_fails_is_told_once(made: Made, tmp_path: Path) -> None:
    centred = [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"]),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    weights = {"zero": np.array([0], np.int64)}
    mixing = segment(tmp_path / "mixing", centred, weights, TensorProto.FLOAT, 4)
    with pytest.warns(RuntimeWarning, match="server-0 of mixing runs each frame alone") as caught:
        server = Server([mixing.bundle, made.bundle], options=ServeOptions(ONE, batch_rows=4))
    assert len(caught) == 1
    assert list(server.alone) == [f"{mixing.bundle.digest[:12]}/server-0"]
    assert (
        Server([mixing.bundle], options=ServeOptions(ONE)).alone.popitem()[1] == "batching is off"
    )


def table(folder: Path) -> Made:
    """A bundle that picks rows of a table; an index beyond it fails the run."""
    weights = {"w": bundles.RNG.standard_normal((5, 4)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"])]
    return segment(folder, nodes, weights, TensorProto.INT64, 2)


def test_a_bad_frame_spoils_nobody_elses(tmp_path: Path) -> None:
    made = table(tmp_path / "table")
    good = [{"x": np.array([[seed, seed + 1]])} for seed in range(3)]
    bad = {"x": np.array([[1, 99]])}
    with batching(made) as server, sessions(made, server, 4) as open_:
        answers = at_once([asked(*one) for one in zip(open_, [*good, bad], strict=True)])
        assert isinstance(answers[3], InputError)
        assert histogram(server) == (4, 4)  # spoilt together, then each alone
        again = at_once([asked(*one) for one in zip(open_, [*good, good[0]], strict=True)])
        for given, answer in zip([*good, *good, good[0]], [*answers[:3], *again], strict=True):
            right(made, given, answer)
        assert histogram(server) == (5, 7)  # who spoilt it is no longer asked to join
        assert not server.alone


def hello(made: Made) -> bytes:
    return wire.message(hello=pb.Hello(protocol=wire.PROTOCOL, bundle=made.bundle.digest))


def serve(server: Server) -> Connection:
    here, there = pair()
    threading.Thread(target=server.serve, args=(there,), daemon=True).start()
    return here


def sent(made: Made, server: Server) -> Connection:
    """A device whose only frame has arrived: the server has answered a later ping."""
    connection = serve(server)
    connection.send(hello(made))
    for name in ("t0", "t1"):
        connection.send(encode_tensor(1, name, np.zeros((1, 64), np.float32), "raw"))
    connection.send(wire.message(ping=pb.Ping(number=1, sent=4)))
    while (reply := connection.receive()) is not None:
        if wire.parse(reply)[0].WhichOneof("body") == "pong":
            break
    return connection


def test_who_vanishes_takes_only_its_own_rows_along(made: Made) -> None:
    given = [feeds(seed) for seed in range(2)]
    with batching(made) as server, sessions(made, server, 2) as open_:
        vanishing = sent(made, server)
        found: dict[int, object] = {}
        ask = [asked(*one) for one in zip(open_, given, strict=True)]
        first = threading.Thread(target=lambda: found.update({0: ask[0]()}))
        first.start()
        vanishing.close()
        eventually(lambda: "offload_sessions 2" in server.metrics_text())
        found[1] = ask[1]()
        first.join()
        for place in (0, 1):
            right(made, given[place], found[place])
        assert 'outcome="dropped",plan="0"} 1' in server.metrics_text()


def patient(folder: Path) -> Made:
    """A bundle that returns its input, after as many steps as its largest number."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Max", ["v", "v"], ["u"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            models.floats("v", "n", 2),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, []), models.floats("u", "n", 2)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "go", "x"], ["y"], body=body),
    ]
    return segment(folder, nodes, {"go": np.array(True)}, TensorProto.FLOAT, 2)


ENDLESS = {"x": np.full((1, 2), 1e15, np.float32)}
SHORT = {"x": np.ones((1, 2), np.float32)}


def test_time_is_limited_for_each(tmp_path: Path) -> None:
    """A frame that takes too long does not fail the others of its batch."""
    made = patient(tmp_path / "patient")
    with batching(made, max_run_s=2.0) as server, sessions(made, server, 3) as open_:
        answers = at_once(
            [asked(s, g) for s, g in zip(open_, [SHORT, ENDLESS, SHORT], strict=True)]
        )
        assert isinstance(answers[1], DeadlineError)
        right(made, SHORT, answers[0])
        right(made, SHORT, answers[2])


def test_a_run_that_nobody_waits_for_is_stopped(tmp_path: Path) -> None:
    """When all devices cancel, the only worker is free long before the time limit."""
    made = patient(tmp_path / "patient")
    with batching(made) as server, sessions(made, server, 2) as open_:
        answers = at_once([asked(session, ENDLESS, deadline_s=0.2) for session in open_])
        assert all(isinstance(answer, DeadlineError) for answer in answers)
        for answer in at_once([asked(session, SHORT) for session in open_]):
            right(made, SHORT, answer)
        assert not server.alone


def test_a_part_that_cannot_take_many_rows_is_left_alone(tmp_path: Path) -> None:
    """A Reshape to four rows at most fails only in a batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Gather", ["limited", "rows"], ["picked"]),
        helper.make_node("Mul", ["x", "picked"], ["y"]),
    ]
    weights: dict[str, np.ndarray] = {
        "zero": np.array(0, np.int64),
        "limited": np.ones(5, np.float32),
    }
    made = segment(tmp_path / "limited", nodes, weights, TensorProto.FLOAT, 2)
    given = [feeds(seed, 1, 2) for seed in range(6)]
    with batching(made) as server, sessions(made, server, 6) as open_:
        for _ in range(2):
            answers = at_once([asked(*one) for one in zip(open_, given, strict=True)])
            for one, answer in zip(given, answers, strict=True):
                right(made, one, answer)
            eventually(lambda: bool(server.alone))
        (why,) = server.alone.values()
        assert "cannot be computed" in why
        assert histogram(server) == (6, 6)


def test_without_memory_for_joined_inputs_frames_run_alone(made: Made) -> None:
    given = [feeds(seed, 250) for seed in range(2)]  # 128 kB each, of 262 kB for what crosses
    with (
        batching(made, rows=800, max_memory_bytes=1 << 20) as server,
        sessions(made, server, 2) as open_,
    ):
        answers = at_once([asked(*one) for one in zip(open_, given, strict=True)])
        for one, answer in zip(given, answers, strict=True):
            right(made, one, answer)
        assert histogram(server) == (2, 500)
        assert not server.alone


def test_draining_answers_what_waits(made: Made) -> None:
    with batching(made, wait_s=0.2) as server, sessions(made, server, 1):
        sent(made, server)
        assert server.drain(20)
        assert 'outcome="answered",plan="0"} 1' in server.metrics_text()


@pytest.fixture
def as_if_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Treat the CPU as a GPU that a change of rows slows down; all runs: thread and rows."""
    ran: list[tuple[str, int]] = []
    compute = Engine.compute

    def spy(self: Engine, outputs: Any, given: Any, options: Any) -> Any:
        ran.append((threading.current_thread().name, rows_of(given) or 0))
        return compute(self, outputs, given, options)

    monkeypatch.setattr(engine_module, "GPU_PROVIDERS", ("CPUExecutionProvider",))
    monkeypatch.setattr(served_bundles, "is_slowed_by_changes", lambda *_: True)
    monkeypatch.setattr(Engine, "compute", spy)
    return ran


def test_a_gpu_gets_batches_of_one_size(
    made: Made, as_if_gpu: list[tuple[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    given = [feeds(seed, rows) for seed, rows in enumerate((1, 2, 1))]
    with caplog.at_level(logging.INFO, "offload.server"), batching(made) as server:
        (said,) = [r for r in caplog.records if r.getMessage() == "warmed up"]
        assert said.fields["padded"] == ["server-0"]  # type: ignore[attr-defined]
        assert said.fields["runs"] == 2  # type: ignore[attr-defined]
        as_if_gpu.clear()
        with sessions(made, server, 3) as open_:
            answers = at_once([asked(*pair_) for pair_ in zip(open_, given, strict=True)])
            for one, answer in zip(given, answers, strict=True):
                right(made, one, answer)
        server_runs = [run for run in as_if_gpu if run[0].startswith("worker")]
        assert [rows for _, rows in server_runs] == [8]
        assert histogram(server) == (1, 4)  # padding counts as no row


def test_each_worker_warms_a_gpu_up(made: Made, as_if_gpu: list[tuple[str, int]]) -> None:
    with batching(made, workers=2):
        on_workers = sorted(run for run in as_if_gpu if run[0].startswith("worker"))
    assert on_workers == [(f"worker-{n}", rows) for n in range(2) for rows in (1, 8)]


def test_only_workers_run_a_gpu(made: Made, as_if_gpu: list[tuple[str, int]]) -> None:
    """A short run on a CPU may take the thread that received the frame; on a GPU it may not."""
    with Server([made.bundle], options=ServeOptions(ONE)) as server:
        as_if_gpu.clear()
        with sessions(made, server, 1) as open_:
            for seed in range(20):
                right(made, feeds(seed), asked(open_[0], feeds(seed))())
            assert open_[0].counts.split == 20
        threads = [name for name, _ in as_if_gpu]
    assert threads.count("worker-0") == 20


@pytest.mark.usefixtures("as_if_gpu")
def test_equal_parts_share_the_engine_for_batches(made: Made) -> None:
    options = ServeOptions(ONE, batch_rows=8)
    first = load_bundle(made.bundle, options)
    other = replace(made.bundle, digest="another plan of the same parts")
    assert load_bundle(other, options, others=[first]).padded == first.padded
    assert first.padded["server-0"] is not first.engines["server-0"]


def test_what_is_loaded_later_is_warmed_up_by_each_worker(
    made: Made, tmp_path: Path, as_if_gpu: list[tuple[str, int]]
) -> None:
    served = tmp_path / "served"
    served.symlink_to(made.bundle.path)
    with Server([served], options=ServeOptions(ONE, workers=2)) as server:
        as_if_gpu.clear()
        server.reload_bundles()
        assert not as_if_gpu
        served.unlink()
        later = bundles.branches(tmp_path / "later")
        served.symlink_to(later.bundle.path)
        server.reload_bundles()
        assert server.bundles == (later.bundle.digest,)
        assert sorted(as_if_gpu) == [("worker-0", 1), ("worker-1", 1)]
        as_if_gpu.clear()
        server._bundles.load_whole(later.bundle.digest)  # as for KServe v2
        assert sorted(as_if_gpu) == 2 * [("worker-0", 1)] + 2 * [("worker-1", 1)]
