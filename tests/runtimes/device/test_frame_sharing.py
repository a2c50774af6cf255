"""Frames of a stream shared among plans: each answered once, in order, to the bit."""

import asyncio
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from offload.bundle.bundle import Bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import ResourceUse, Segment, Speeds
from offload_runtimes.client import OffloadSession
from offload_runtimes.device import frame_sharing
from offload_runtimes.device.frame_sharing import ComputeOrder, FrameSharing
from offload_runtimes.device.inference_runner import InferenceRunner
from offload_runtimes.device.segment_executor import FrameTensors, SegmentExecutor
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions

from tests.runtimes.faults import Fault, FaultPlan, FaultyConnector
from tests.runtimes.memory_transport import MemoryConnector
from tests.runtimes.waiting import eventually
from tests.toolkit.bundle.several import WIDTHS, swept

EXACT = EngineOptions(optimize=False)
COUNT = 60
LOCAL, SPLIT, CLOUD = range(3)
IDLE = (0, 0, 0)  # no frame waits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three plans: on the device, split, and on the server; their frames are shared."""
    made = swept(tmp_path_factory.mktemp("shared"))
    assert [plan.is_local for plan in made.plans] == [True, False, False]
    return replace(made, plan_set=replace(made.plan_set, shares=(0.4, 0.2, 0.4)))


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> list[np.ndarray]:
    whole = load(bundle.path.parent / "net.onnx", EXACT)
    return [whole.run(None, frame(seed))[0] for seed in range(COUNT)]


@pytest.fixture
def server(bundle: Bundle) -> Iterator[Server]:
    with Server([bundle], options=ServeOptions(EXACT)) as running:
        yield running


def fix_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix which plan each frame follows, whatever the speed of the machine that runs the test."""

    def fixed(uses: Sequence[ResourceUse], *_: object) -> tuple[tuple[float, ...], float]:
        return ((0.4, 0.2, 0.4) if len(uses) == 3 else (1.0,)), 1.0

    monkeypatch.setattr(frame_sharing, "shares_within", fixed)
    monkeypatch.setattr(InferenceRunner, "waiting", IDLE)


@pytest.fixture
def session(
    bundle: Bundle, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OffloadSession]:
    fix_shares(monkeypatch)
    with OffloadSession(bundle, server.address, optimize=False) as opened:
        yield opened


def frame(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((4, WIDTHS[0]), np.float32)}


def test_the_window_of_a_stream_follows_the_estimates(
    session: OffloadSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that began with too small a window would leave plans out until its end."""
    sharing = session._active.opened.selector.sharing
    assert sharing is not None
    given: list[int] = []

    def frames() -> Iterator[dict[str, np.ndarray]]:
        for number in range(COUNT):
            given.append(number)
            yield frame(number)

    monkeypatch.setattr(sharing, "update", lambda *_: None)  # the test sets the window
    sharing._window = 2
    stream = session.stream(frames())
    assert isinstance(stream, Generator)
    next(stream)
    eventually(lambda: len(given) == 3)
    sharing._window = 5
    next(stream)
    eventually(lambda: len(given) == 7)
    sharing._window = 1
    next(stream)
    assert len(given) == 7, "more are under way than the window allows now"
    stream.close()


def assert_right(answers: list[list[np.ndarray]], expected: list[np.ndarray]) -> None:
    assert len(answers) == len(expected)
    for number, ((y,), right) in enumerate(zip(answers, expected, strict=True)):
        assert np.array_equal(y, right), number


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_answers_are_those_of_the_whole_model_in_order(
    session: OffloadSession, expected: list[np.ndarray], window: int | None
) -> None:
    answers = list(session.stream(map(frame, range(COUNT)), window=window))
    assert_right(answers, expected)
    assert session.counts.by_plan == (24, 12, 24)
    assert session.counts.split == COUNT


def test_a_slow_device_does_not_hold_up_the_others(
    bundle: Bundle, server: Server, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the device is blocked, it gets few frames; the other plans get the rest."""
    may_compute, chosen, elsewhere = threading.Event(), [], []

    def slowly() -> Iterator[dict[str, np.ndarray]]:
        for number in range(COUNT):
            time.sleep(0.01)  # the server answers meanwhile
            yield frame(number)

    def run(executor: SegmentExecutor, segment: Segment, frame: FrameTensors, *more: Any) -> float:
        if frame.plan == LOCAL:
            may_compute.wait()
        return compute(executor, segment, frame, *more)

    def take(
        sharing: FrameSharing, window: int, waiting: Sequence[int], **options: Any
    ) -> int | None:
        elsewhere.append(sum(waiting) - waiting[LOCAL])
        chosen.append(choose(sharing, window, waiting, **options))
        return chosen[-1]

    compute, choose = SegmentExecutor.run, FrameSharing.take
    monkeypatch.setattr(frame_sharing, "shares_within", lambda *_: ((0.4, 0.2, 0.4), 1.0))
    monkeypatch.setattr(SegmentExecutor, "run", run)
    monkeypatch.setattr(FrameSharing, "take", take)
    address = server.address
    with (
        ThreadPoolExecutor(1) as others,
        OffloadSession(bundle, address, optimize=False) as session,
    ):
        answers = others.submit(lambda: list(session.stream(slowly(), window=30)))
        eventually(lambda: len(chosen) == 30)
        local = chosen.count(LOCAL)
        may_compute.set()
        assert_right(answers.result(), expected)
    # By its share it would get 12. It gets a frame only while it has at most 40 % of the waiting
    # frames plus one. The others' waiting frames depend on the speed of the machine.
    assert 1 <= local <= 1 + (0.4 * max(elsewhere) + 1) / 0.6


def test_arrays_may_be_reused(session: OffloadSession, expected: list[np.ndarray]) -> None:
    def source() -> Iterator[dict[str, np.ndarray]]:
        x = np.empty((4, WIDTHS[0]), np.float32)
        for seed in range(COUNT):
            x[:] = frame(seed)["x"]
            yield {"x": x}

    assert_right(list(session.stream(source())), expected)


def test_asyncio(session: OffloadSession, expected: list[np.ndarray]) -> None:
    async def collect() -> list[list[np.ndarray]]:
        return [answer async for answer in session.astream(map(frame, range(COUNT)))]

    assert_right(asyncio.run(collect()), expected)
    assert session.counts.by_plan == (24, 12, 24)


def test_single_inferences_follow_one_plan(
    session: OffloadSession, expected: list[np.ndarray]
) -> None:
    for seed in range(5):
        assert np.array_equal(session.run(None, frame(seed))[0], expected[seed])
    assert sorted(session.counts.by_plan) in ([5], [0, 5], [0, 0, 5])


@pytest.mark.parametrize("at", [12, 25, 40])
def test_frames_stay_local_while_the_server_is_away(
    bundle: Bundle,
    server: Server,
    expected: list[np.ndarray],
    at: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fix_shares(monkeypatch)
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, at)])
    with OffloadSession(
        bundle, connector, optimize=False, heartbeat_s=0.02, patience_s=20
    ) as session:
        assert_right(list(session.stream(map(frame, range(COUNT)), window=4)), expected)
        eventually(lambda: session.counts.losses == 1)
        eventually(lambda: session._active.opened.connection is not None)
        before = session.counts.by_plan
        assert_right(list(session.stream(map(frame, range(COUNT)), window=4)), expected)
        after = session.counts.by_plan
        assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx(
            [24, 12, 24], abs=1
        )


def test_all_frames_are_local_without_a_server(bundle: Bundle, expected: list[np.ndarray]) -> None:
    with (
        OffloadSession(bundle, "127.0.0.1:1", optimize=False, require_server=False) as session,
    ):
        assert_right(list(session.stream(map(frame, range(COUNT)))), expected)
        assert session.counts.by_plan == (COUNT,)


def test_an_error_comes_in_the_turn_of_its_frame(
    session: OffloadSession, expected: list[np.ndarray]
) -> None:
    wrong = {"x": np.zeros((4, 1), np.float32)}
    answers = session.stream([frame(0), frame(1), wrong, frame(3)])
    assert np.array_equal(next(answers)[0], expected[0])
    assert np.array_equal(next(answers)[0], expected[1])
    with pytest.raises(InputError, match="'x'"):
        next(answers)


def test_a_closed_stream_leaves_no_thread(session: OffloadSession) -> None:
    answers = session.stream(map(frame, range(10_000)))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("stream")])


def taken(sharing: FrameSharing, now_s: float, *, has_server: bool = True) -> set[int | None]:
    """The plans of the next 50 frames."""
    return {sharing.take(1000, IDLE, has_server=has_server, now_s=now_s) for _ in range(50)}


def test_the_shares_follow_the_link(bundle: Bundle) -> None:
    """The plans change after three estimates, and back after 10 s."""
    fast, slow = Link(1e12, 1e12), Link(1.0, 1.0)
    sharing = FrameSharing(bundle.plans, fast)
    assert taken(sharing, 0.0) >= {CLOUD}
    for number in range(3):
        sharing.update(slow)
        assert (taken(sharing, 11.0) == {LOCAL}) == (number == 2)
    for now_s in (12.0, 13.0, 20.9, 21.1):
        sharing.update(fast)
        assert (CLOUD in taken(sharing, now_s)) == (now_s > 21)


def test_the_speeds_change_the_shares_at_once(bundle: Bundle) -> None:
    sharing = FrameSharing(bundle.plans, Link(6e4, 6e4))
    before = [sharing.take(1000, IDLE, has_server=True, now_s=0.0) for _ in range(100)]
    assert before.count(LOCAL) > 10
    sharing.update(Link(6e4, 6e4), Speeds(device=3.0))
    after = [sharing.take(1000, IDLE, has_server=True, now_s=1.0) for _ in range(100)]
    assert 0 < after.count(LOCAL) < before.count(LOCAL) / 2


def test_without_a_server_the_plans_change_at_once(bundle: Bundle) -> None:
    sharing = FrameSharing(bundle.plans, Link(1e12, 1e12))
    assert CLOUD in taken(sharing, 0.0)
    assert taken(sharing, 0.1, has_server=False) == {LOCAL}
    assert CLOUD in taken(sharing, 0.2)


def test_no_plan_without_a_server(bundle: Bundle) -> None:
    sharing = FrameSharing(bundle.plans[1:], Link(1e9, 1e9))
    assert taken(sharing, 0.0, has_server=False) == {None}


def test_frames_that_use_the_link_compute_first() -> None:
    order, done = ComputeOrder(), []
    first = order.new_place(uses_link=False)
    places = [order.new_place(uses_link=number % 2 == 1) for number in range(4)]

    def compute(number: int) -> None:
        with order.computing(places[number]):
            done.append(number)

    with order.computing(first):
        threads = [threading.Thread(target=compute, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(order._waiting) == 4)
    for thread in threads:
        thread.join()
    assert done == [1, 3, 0, 2]
