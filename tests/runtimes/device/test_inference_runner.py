"""Whatever happens to the server, at any instant: the right answer, or one clear error."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.errors import DeadlineError, OffloadError, ServerError
from offload.planning.plan import Plan, Segment, Side
from offload.scheduling.timeline import Lane
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.inference_runner import missing_segments
from offload_runtimes.device.speed_monitor import SpeedMonitor
from offload_runtimes.server import Server

from tests.runtimes import bundles
from tests.runtimes.bundles import NO_FORECAST, Made
from tests.runtimes.faults import Fault, FaultPlan, FaultyConnector
from tests.runtimes.memory_transport import MemoryConnector
from tests.runtimes.waiting import eventually

HANDSHAKE = 12  # messages before the first tensor: hello, welcome, five pings and pongs


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b", count=3)


@pytest.fixture
def server(made: Made) -> Iterator[Server]:
    with Server([made.bundle]) as running:
        yield running


def assert_right(session: OffloadSession, made: Made, seed: int) -> None:
    feeds = made.feeds(seed)
    for a, b in zip(session.run(None, feeds), made.expected(feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


FAULTS = [
    FaultPlan(fault, HANDSHAKE + at)
    for fault in Fault
    for at in range(6)
    if (fault, at) != (Fault.DUPLICATE, 5)
]


@pytest.mark.parametrize("plan", FAULTS, ids=lambda plan: f"{plan.fault}-{plan.at}")
def test_any_fault_at_any_message(server: Server, made: Made, plan: FaultPlan) -> None:
    connector = FaultyConnector(MemoryConnector(server.serve), [plan])
    with OffloadSession(
        made.bundle, connector, heartbeat_s=0.05, patience_s=0.15, deadline_s=30
    ) as session:
        for seed in range(4):
            assert_right(session, made, seed)
        eventually(lambda: session.is_split)
        before = session.counts.split

        def splits_again() -> bool:  # a machine as busy as this may lose its server once more
            assert_right(session, made, 9)
            return session.counts.split > before

        eventually(splits_again)


@pytest.mark.parametrize("at", range(4))
def test_a_lost_message_ends_the_session_at_the_next_ping(
    server: Server, made: Made, at: int
) -> None:
    """Three tensors, then the first answer; nothing else tells, for signs of life go on."""
    plan = FaultPlan(Fault.DROP, HANDSHAKE + at)
    connector = FaultyConnector(MemoryConnector(server.serve), [plan])
    with OffloadSession(made.bundle, connector, heartbeat_s=0.05, patience_s=60) as session:
        assert_right(session, made, 0)
        eventually(lambda: session.counts.losses == 1)
        assert_right(session, made, 1)


@pytest.mark.parametrize("at", range(HANDSHAKE))
def test_fault_during_the_handshake(server: Server, made: Made, at: int) -> None:
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, at)])
    with pytest.raises(ServerError):
        OffloadSession(made.bundle, connector, connect_timeout_s=2)
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, at)])
    with OffloadSession(made.bundle, connector, require_server=False, heartbeat_s=0.05) as session:
        assert_right(session, made, at)
        eventually(lambda: session.is_split)
        assert_right(session, made, at)


def test_server_restarts_on_the_same_port(server: Server, made: Made) -> None:
    with OffloadSession(made.bundle, server.address, heartbeat_s=0.05) as session:
        assert_right(session, made, 0)
        server.stop()
        eventually(lambda: not session.is_split)
        assert_right(session, made, 1)
        with Server([made.bundle], server.address):
            eventually(lambda: session.is_split)
            assert_right(session, made, 2)
        assert (session.counts.split, session.counts.local) == (2, 1)
        assert session.counts.losses >= 1


def test_local_policy_stays_local(server: Server, made: Made) -> None:
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, HANDSHAKE)])
    with OffloadSession(
        made.bundle, connector, on_server_loss="local", heartbeat_s=0.02
    ) as session:
        assert_right(session, made, 0)
        time.sleep(0.2)
        assert_right(session, made, 1)
        assert not session.is_split
        assert (session.counts.split, session.counts.runs) == (0, 2)


def test_raise_policy_raises_and_recovers(server: Server, made: Made) -> None:
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, HANDSHAKE)])
    with OffloadSession(
        made.bundle, connector, on_server_loss="raise", heartbeat_s=0.02
    ) as session:
        with pytest.raises(ServerError) as caught:
            session.run(None, made.feeds())
        assert caught.value.retry
        eventually(lambda: session.is_split)
        assert_right(session, made, 1)


def test_device_files_alone_cannot_resume(server: Server, made: Made, tmp_path: Path) -> None:
    half = bundles.deployed(made, Side.DEVICE, tmp_path / "device")
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, HANDSHAKE)])
    with (
        OffloadSession(half, connector, heartbeat_s=5) as session,
        pytest.raises(ServerError),
    ):
        session.run(None, made.feeds())


@pytest.fixture
def idle(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that takes everything in and never runs a segment."""
    monkeypatch.setattr(server._dispatcher, "start", lambda *_, **__: None)
    return server


# How much longer than promised a busy machine may take; `make chaos` measures the promise.
BUSY_S = 5.0


def test_hedging_meets_the_deadline(idle: Server, made: Made) -> None:
    """The server lives, pings are answered, but the answer never comes."""
    with OffloadSession(made.bundle, MemoryConnector(idle.serve), deadline_s=3.0) as session:
        feeds = made.feeds()
        outputs, timeline = session.run_timed(None, feeds)
        assert timeline.makespan_s < 3.0 + BUSY_S
        np.testing.assert_allclose(outputs[0], made.expected(feeds)[0], rtol=1e-5, atol=1e-6)
        assert session.counts.hedged == 1
        assert "server-0" in [span.name for span in timeline.lane(Lane.DEVICE)]
        assert session.is_split


def test_deadline_error_if_the_device_may_not_finish(idle: Server, made: Made) -> None:
    with OffloadSession(
        made.bundle, MemoryConnector(idle.serve), on_server_loss="raise"
    ) as session:
        with pytest.raises(DeadlineError) as caught:
            session.run(None, made.feeds(), deadline_s=0.1)
        assert caught.value.retry


def plan(parts: list[tuple[Side, tuple[str, ...], tuple[str, ...]]]) -> Plan:
    segments = tuple(
        Segment(f"s{i}", side, (), (), ins, outs) for i, (side, ins, outs) in enumerate(parts)
    )
    return Plan("", "", segments, (), (), (), NO_FORECAST, 0.0, "", "")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Random segments, each needing some tensors made before it."""
    known, parts = ["x"], []
    for number in range(draw(st.integers(1, 6))):
        needs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        makes = [f"t{number}-{k}" for k in range(draw(st.integers(1, 2)))]
        parts.append((draw(st.sampled_from(Side)), tuple(needs), tuple(makes)))
        known += makes
    return plan(draw(st.permutations(parts)))


@given(plan=plans(), data=st.data())
def test_missing_segments_suffice_and_are_all_needed(plan: Plan, data: st.DataObject) -> None:
    made = [name for segment in plan.segments for name in segment.outputs]
    here = {"x", *data.draw(st.lists(st.sampled_from(made)))}
    wanted = data.draw(st.lists(st.sampled_from(made), min_size=1))
    left = missing_segments(plan, here.__contains__, wanted)
    assert runs(left, here, wanted)
    for without in left:
        assert not runs([s for s in left if s is not without], here, wanted)


def runs(order: object, here: set[str], wanted: list[str]) -> bool:
    tensors = set(here)
    for segment in order:  # type: ignore[attr-defined]
        if not tensors >= set(segment.inputs):
            return False
        tensors |= set(segment.outputs)
    return tensors >= set(wanted)


def test_a_lost_server_raises_only_offload_errors(server: Server, made: Made) -> None:
    """Every error a lost server leads to is an OffloadError of one line."""
    for at in range(HANDSHAKE, HANDSHAKE + 5):
        for fault in (Fault.CUT, Fault.CORRUPT):
            connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(fault, at)])
            with OffloadSession(made.bundle, connector, on_server_loss="raise") as session:
                try:
                    session.run(None, made.feeds())
                except OffloadError as error:
                    assert "\n" not in str(error)  # noqa: PT017


def test_an_answer_is_delivered_before_the_speeds_are_learned(
    server: Server, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_returned, waits = threading.Event(), []
    monkeypatch.setattr(SpeedMonitor, "served", lambda *_: waits.append(has_returned.wait(20)))
    with OffloadSession(made.bundle, server.address, on_server_loss="raise") as session:
        timeline = session.run_timed(None, made.feeds())[1]
        has_returned.set()
        eventually(lambda: bool(waits))
    assert all(waits)
    assert {span.lane for span in timeline.spans} == set(Lane)  # recorded before
