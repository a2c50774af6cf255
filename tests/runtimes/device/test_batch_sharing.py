"""Batches whose rows several plans share, over a real server, against one plan for all rows."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.bundle.bundle import Bundle
from offload.costs.link import Link, parse_link
from offload.errors import InputError, ServerError
from offload.planning.batch import MicroBatch, share_batch
from offload.planning.plan import Side, Speeds
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.batch_sharing import BatchSharing, SharedBatch
from offload_runtimes.device.session_options import SessionOptions
from offload_runtimes.measure.split import SplitRequest, split
from offload_runtimes.server import Server
from offload_runtimes.transport.connection import Stream
from onnx import NodeProto, helper

from tests.runtimes import models
from tests.runtimes.bundles import deployed_bundle
from tests.runtimes.faults import Fault, FaultPlan, FaultyConnection, FaultyConnector
from tests.runtimes.memory_transport import MemoryConnector, PumpedStream
from tests.runtimes.waiting import eventually

ROWS = 64
LINK = parse_link("5 Mbit/s,1 ms")
EMULATED = Link(5e6, 5e6, 0.001, 0.001)
NODES = (helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Relu", ["h"], ["y"]))


def split_batch(folder: Path, *nodes: NodeProto) -> Bundle:
    """A product of matrices for 64 rows: 84 ms on the device, 106 ms on the link."""
    weight = (np.random.default_rng(1).standard_normal((256, 256)) / 16).astype(np.float32)
    ends = models.floats("x", "rows", 256), models.floats("y", "rows", 256)
    proto = models.model(list(nodes or NODES), [ends[0]], [ends[1]], {"W": weight})
    onnx.save(proto, folder / "net.onnx")
    shapes = {"x": (ROWS, 256)}
    request = SplitRequest(folder / "net.onnx", LINK, device=1e8, server=1e10, shapes=shapes)
    return split(request, folder / "b")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return split_batch(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Server]:
    with Server([bundle]) as running:
        yield running


class TensorFaults(FaultyConnector):
    """Its first stream has a fault at a message with a tensor; counted once `armed` is set."""

    def __init__(self, server: Server, fault: Fault, at: int) -> None:
        super().__init__(MemoryConnector(server.serve), [])
        self.armed = threading.Event()
        self._fault: FaultPlan | None = FaultPlan(fault, at)

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        del timeout_s
        sound = self._inner.open()
        fault, self._fault = self._fault, None
        if fault is None:
            return PumpedStream(sound, outgoing)
        armed = self.armed

        class Faulty(FaultyConnection):
            def _pass(self, message: bytes) -> list[bytes]:
                has_tensor = armed.is_set() and len(message) > 1000
                return super()._pass(message) if has_tensor or self._silent else [message]

        return PumpedStream(Faulty(sound, fault), outgoing)


def batch(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 256), np.float32)}


def alone(bundle: Bundle, server: Server, feeds: dict[str, np.ndarray], plan: int) -> np.ndarray:
    with OffloadSession(bundle, server.address, plan=plan) as session:
        y: np.ndarray = session.run(None, feeds)[0]
        return y


def test_parts_are_bit_equal_to_the_same_rows_alone(bundle: Bundle, server: Server) -> None:
    assert bundle.rows == ROWS
    with OffloadSession(bundle, server.address, link=EMULATED) as session:
        micro_batches = session.micro_batches(ROWS)
        assert sum(each.rows for each in micro_batches) == ROWS
        assert {each.plan for each in micro_batches} == {0, 1}
        feeds = batch(ROWS)
        (y,), timeline = session.run_timed(None, feeds)
        assert session.counts.runs == len(micro_batches)
    start = 0
    assert y.shape == (ROWS, 256)
    for each in micro_batches:
        rows = slice(start, start + each.rows)
        expected = alone(bundle, server, {"x": feeds["x"][rows]}, each.plan)
        np.testing.assert_array_equal(y[rows], expected)
        start += each.rows
    np.testing.assert_allclose(y, alone(bundle, server, feeds, 0), rtol=1e-4, atol=1e-4)
    assert len(timeline.marks) == len(micro_batches)
    first = micro_batches[0]
    assert timeline.marks[0].name == f"rows 0 to {first.rows - 1}: plan {first.plan}"


@pytest.mark.parametrize("rows", [1, 2, 7, 200])
def test_any_number_of_rows(bundle: Bundle, server: Server, rows: int) -> None:
    with OffloadSession(bundle, server.address, link=EMULATED) as session:
        (y,) = session.run(["y"], batch(rows))
        (same,) = asyncio.run(session.arun(["y"], batch(rows)))
    np.testing.assert_allclose(y, alone(bundle, server, batch(rows), 0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y, same, rtol=1e-4, atol=1e-4)


def test_bad_batches_fail_as_without_sharing(bundle: Bundle, server: Server) -> None:
    empty = {"x": np.zeros((0, 256), np.float32)}
    with (
        OffloadSession(bundle, server.address) as session,
        OffloadSession(bundle, server.address, share=False) as before,
    ):
        (y,) = session.run(None, empty)
        np.testing.assert_array_equal(y, before.run(None, empty)[0])
        for wrong in ({"x": np.zeros((4, 7), np.float32)}, {"x": np.float32(1)}):
            said = []
            for each in (session, before):
                with pytest.raises(InputError) as error:
                    each.run(None, wrong)
                said.append(str(error.value))
            assert said[0] == said[1]


def test_sharing_can_be_turned_off(bundle: Bundle, server: Server) -> None:
    for options in ({"share": False}, {"plan": 0}, {"plan": 1, "share": False}):
        chosen = SessionOptions(link=EMULATED, **options)
        with OffloadSession(bundle, server.address, chosen) as session:
            assert session.micro_batches(ROWS) == ()
            session.run(None, batch(ROWS))
            assert session.counts.runs == 1


def test_without_sharing_a_local_plan_needs_no_server(bundle: Bundle) -> None:
    assert bundle.plan.is_local
    with OffloadSession(bundle, share=False) as session:
        assert session.run(None, batch(ROWS))[0].shape == (ROWS, 256)
        assert not session.is_split
    with pytest.raises(InputError, match="needs a server"):
        OffloadSession(bundle)


def test_begin_and_streams_follow_one_plan(bundle: Bundle, server: Server) -> None:
    with OffloadSession(bundle, server.address, link=EMULATED) as session:
        session.begin(None, batch(ROWS)).finish()
        assert len(list(session.stream([batch(ROWS)] * 3))) == 3
        assert session.counts.runs == 4


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("half", [False, True])
def test_nothing_is_lost_with_the_server(
    bundle: Bundle, server: Server, tmp_path: Path, at: int, half: bool
) -> None:
    """A device without the server's files computes the rest by its own plan."""
    folder = deployed_bundle(bundle, Side.DEVICE, tmp_path / "device") if half else bundle
    connector = TensorFaults(server, Fault.CUT, at)
    with OffloadSession(folder, connector, heartbeat_s=0.05, link=EMULATED) as session:
        assert len(session.micro_batches(ROWS)) >= 4
        connector.armed.set()
        for seed in range(2):
            (y,) = session.run(None, batch(ROWS, seed))
            expected = alone(bundle, server, batch(ROWS, seed), 0)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
        eventually(lambda: session.counts.losses == 1)


def test_a_lost_server_is_an_error_if_that_is_requested(bundle: Bundle, server: Server) -> None:
    connector = TensorFaults(server, Fault.CUT, 3)
    with OffloadSession(bundle, connector, link=EMULATED, on_server_loss="raise") as session:
        connector.armed.set()
        with pytest.raises(ServerError, match="cut"):
            session.run(None, batch(ROWS))


@pytest.mark.parametrize("at", [0, 3])
def test_a_stalled_server_does_not_break_a_deadline(
    bundle: Bundle, server: Server, at: int
) -> None:
    connector = TensorFaults(server, Fault.SILENCE, at)
    options = SessionOptions(link=EMULATED, patience_s=60.0, deadline_s=2.0)
    with OffloadSession(bundle, connector, options) as session:
        connector.armed.set()
        (y,) = session.run(None, batch(ROWS))
        assert session.counts.hedged > 0
    np.testing.assert_allclose(y, alone(bundle, server, batch(ROWS), 0), rtol=1e-4, atol=1e-4)


def test_time_is_kept_for_the_other_micro_batches(bundle: Bundle, server: Server) -> None:
    (remote,) = (number for number, plan in enumerate(bundle.plans) if not plan.is_local)
    options = SessionOptions(link=EMULATED, deadline_s=60.0)
    with OffloadSession(bundle, server.address, options) as session:
        opened, feeds, make = session._checked(None, batch(16), None, copy=False)
        executor, segments = opened.executor, bundle.plans[remote].segments
        executor.rehearse(segments, {"x": feeds["x"][:8]}, rows=8)
        usual_s = executor.estimate_s(segments, 8)
        assert usual_s
        shared = SharedBatch([MicroBatch(remote, 8)] * 2, feeds, make, None)
        shared.start()
        first, last = shared._inferences
        assert first.reserved_s == pytest.approx(usual_s)
        assert last.reserved_s == 0
        until_s = opened.runner._server_until_s(last)
        last.reserved_s = 10.0
        later_s = opened.runner._server_until_s(last)
        assert until_s
        assert later_s == pytest.approx(until_s - 15.0)
        (y,) = shared.finish()
        np.testing.assert_allclose(y, alone(bundle, server, batch(16), 0), rtol=1e-4, atol=1e-4)


def test_several_threads(bundle: Bundle, server: Server) -> None:
    with (
        OffloadSession(bundle, server.address, link=EMULATED) as session,
        ThreadPoolExecutor(4) as pool,
    ):
        outputs = list(pool.map(lambda seed: session.run(None, batch(ROWS, seed))[0], range(8)))
    for seed, y in enumerate(outputs):
        expected = alone(bundle, server, batch(ROWS, seed), 0)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_rows_that_depend_on_each_other_are_not_shared(tmp_path: Path) -> None:
    mixes = helper.make_node("Softmax", ["h"], ["y"], axis=0)
    bundle = split_batch(tmp_path, NODES[0], mixes)
    assert bundle.rows == 0
    assert len(bundle.plans) == 1


def test_parts_follow_the_link(bundle: Bundle) -> None:
    sharing = BatchSharing(bundle.plans, bundle.rows)
    planned = sharing.micro_batches(ROWS, None)
    assert planned
    assert sharing.micro_batches(ROWS, replace(LINK, up_bps=LINK.up_bps * 1.05)) == planned
    faster = sharing.micro_batches(ROWS, replace(LINK, up_bps=LINK.up_bps * 2))
    assert faster != planned
    assert sharing.micro_batches(ROWS, Link(1e4, 1e4)) == (), "the device alone is as fast"
    assert sharing.micro_batches(1, LINK) == ()


def test_micro_batches_follow_the_speeds(bundle: Bundle) -> None:
    sharing = BatchSharing(bundle.plans, bundle.rows)
    (local,) = (number for number, plan in enumerate(bundle.plans) if plan.is_local)

    def kept(speeds: Speeds) -> int:
        shared = sharing.micro_batches(ROWS, LINK, speeds)
        return sum(each.rows for each in shared if each.plan == local)

    planned = kept(Speeds())
    assert kept(Speeds(device=1.05)) == planned, "too small a change"
    assert kept(Speeds(device=2.0)) < planned
    assert kept(Speeds(server=100.0)) > planned
    assert kept(Speeds(server_wait_s=0.03)) != planned
    assert kept(Speeds()) == planned


def test_lossy_plans_take_no_part(bundle: Bundle) -> None:
    local, remote = sorted(bundle.plans, key=lambda plan: not plan.is_local)
    lossy = replace(remote, uploads=(replace(remote.uploads[0], encoding="fp16"),))
    assert BatchSharing((local, remote), ROWS).micro_batches(ROWS, LINK)
    assert BatchSharing((local, lossy), ROWS).micro_batches(ROWS, LINK) == ()


def test_sharing_must_also_beat_lossy_plans(bundle: Bundle) -> None:
    local, remote = sorted(bundle.plans, key=lambda plan: not plan.is_local)
    upload = replace(remote.uploads[0], encoding="fp16")
    for factor, is_shared in ((1.0, True), (0.1, False)):
        lossy = replace(remote, uploads=(upload,), forecast=remote.forecast.scaled(factor))
        shared = share_batch((lossy, local, remote), ROWS, ROWS, LINK)
        assert shared.is_certain == is_shared
        assert 0 not in {each.plan for each in shared.micro_batches}
