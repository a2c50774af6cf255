"""Streams: every frame answered in order, a bounded number under way, stale ones dropped."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from offload.costs.link import Link
from offload.errors import InputError
from offload.scheduling.timeline import Lane
from offload_runtimes.client import OffloadSession
from offload_runtimes.server import Server

from tests.runtimes import bundles
from tests.runtimes.bundles import Made
from tests.runtimes.faults import Fault, FaultPlan, FaultyConnector
from tests.runtimes.memory_transport import MemoryConnector
from tests.runtimes.waiting import eventually

COUNT = 25


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b")


@pytest.fixture
def server(made: Made) -> Iterator[Server]:
    with Server([made.bundle]) as running:
        yield running


@pytest.fixture
def session(server: Server, made: Made) -> Iterator[OffloadSession]:
    with OffloadSession(made.bundle, server.address) as opened:
        yield opened


def assert_in_order(found: list[list[np.ndarray]], made: Made) -> None:
    assert len(found) == COUNT
    for seed, outputs in enumerate(found):
        for a, b in zip(outputs, made.expected(made.feeds(seed)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 30])
def test_answers_come_in_order(session: OffloadSession, made: Made, window: int) -> None:
    frames = (made.feeds(seed) for seed in range(COUNT))
    assert_in_order(list(session.stream(frames, window=window)), made)
    assert session.counts.split == COUNT


@pytest.mark.parametrize("at", range(14, 40, 5))
def test_no_frame_is_lost_with_the_server(server: Server, made: Made, at: int) -> None:
    connector = FaultyConnector(MemoryConnector(server.serve), [FaultPlan(Fault.CUT, at)])
    with OffloadSession(made.bundle, connector, heartbeat_s=0.02) as session:
        frames = (made.feeds(seed) for seed in range(COUNT))
        assert_in_order(list(session.stream(frames)), made)
        assert session.counts.runs == COUNT
        eventually(lambda: session.counts.losses == 1)  # counted on the reconnect thread


def test_a_slow_caller_holds_up_the_source(session: OffloadSession, made: Made) -> None:
    read = []

    def frames() -> Iterator[dict[str, np.ndarray]]:
        for seed in range(COUNT):
            read.append(seed)
            yield made.feeds(seed)

    stream = session.stream(frames(), window=3)
    for taken in range(1, 6):
        next(stream)
        assert len(read) <= taken + 4
    stream.close()  # type: ignore[attr-defined]
    assert len(read) < COUNT
    feeds = made.feeds(3)
    np.testing.assert_allclose(session.run(["y"], feeds)[0], made.expected(feeds)[0], rtol=1e-5)


def test_frames_overlap(server: Server, made: Made) -> None:
    """While one frame is on the link, the device computes the next."""
    link = Link(1e9, 1e9, up_start_s=0.5)
    with OffloadSession(made.bundle, server.address, link=link) as session:
        first = session.begin(None, made.feeds(0))
        second = session.begin(None, made.feeds(1))
        shift_s = second.frame.started_s - first.frame.started_s
        first.finish()
        second.finish()
        one, two = first.timeline, second.timeline
        computed_s = shift_s + two.lane(Lane.DEVICE)[-1].end_s
        assert computed_s < one.lane(Lane.UPLINK)[-1].end_s


def test_errors_of_frames_are_raised_in_order(session: OffloadSession, made: Made) -> None:
    frames = [made.feeds(0), made.feeds(1), {"x": np.zeros(1, np.float32)}, made.feeds(3)]
    stream = session.stream(frames)
    next(stream)
    next(stream)
    with pytest.raises(InputError, match="'x' must be"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(InputError, match="window"):
        session.stream(frames, window=0)


def test_errors_of_the_source_pass_through(session: OffloadSession, made: Made) -> None:
    def frames() -> Iterator[dict[str, np.ndarray]]:
        yield made.feeds(0)
        raise OSError("camera unplugged")

    stream = session.stream(frames())
    next(stream)
    with pytest.raises(OSError, match="unplugged"):
        next(stream)


def test_latest_drops_stale_frames(session: OffloadSession, made: Made) -> None:
    """The source runs ahead while nothing is taken; only the newest frame is left then."""
    ahead, taken = threading.Event(), threading.Event()

    def frames() -> Iterator[dict[str, np.ndarray]]:
        yield made.feeds(0)
        taken.wait(10)
        for seed in range(1, COUNT):
            yield made.feeds(seed)
        ahead.set()

    stream = session.stream(frames(), ["y"], window=1, latest=True)
    found = [next(stream)]
    taken.set()
    ahead.wait(10)
    found += list(stream)
    assert len(found) + session.counts.dropped == COUNT
    assert session.counts.dropped >= COUNT - 5
    np.testing.assert_allclose(
        found[-1][0], made.expected(made.feeds(COUNT - 1))[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_async_streams(session: OffloadSession, made: Made, asynchronous: bool) -> None:
    async def frames() -> AsyncIterator[dict[str, np.ndarray]]:
        for seed in range(COUNT):
            await asyncio.sleep(0)
            yield made.feeds(seed)

    async def collect() -> list[list[np.ndarray]]:
        source = frames() if asynchronous else [made.feeds(seed) for seed in range(COUNT)]
        return [outputs async for outputs in session.astream(source)]

    assert_in_order(asyncio.run(collect()), made)


def test_async_stream_can_be_left(session: OffloadSession, made: Made) -> None:
    async def frames() -> AsyncIterator[dict[str, np.ndarray]]:
        while True:
            await asyncio.sleep(0.001)
            yield made.feeds(0)

    async def some() -> int:
        count = 0
        stream = session.astream(frames())
        async for _ in stream:
            count += 1
            if count == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return count

    assert asyncio.run(some()) == 3
    assert len(session.run(None, made.feeds())) == 2


def test_threads_may_begin_frames_at_once(server: Server, made: Made) -> None:
    """The server takes frames in the order of their numbers, whichever thread is first."""
    with OffloadSession(made.bundle, server.address, on_server_loss="raise") as session:

        def run(seed: int) -> None:
            for _ in range(100):
                outputs = session.run(None, made.feeds(seed))
                np.testing.assert_allclose(outputs[0], made.expected(made.feeds(seed))[0], 1e-4)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(run, range(8)))
        assert session.counts.split == 800
        assert session.counts.losses == 0
