"""Cancelling and leaving streams: the cancellation comes through and nothing runs on."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from offload_runtimes import OffloadSession, open_session, parse_link

from tests.front_door.apps import frame, split_chain
from tests.front_door.door import Door

SLOW = parse_link("1 Mbit/s,0.3 s")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A folder with a model and its bundle."""
    made = Door(tmp_path_factory.mktemp("chain"))
    split_chain(made)
    return made


@pytest.fixture
def session(chain: Door) -> Iterator[OffloadSession]:
    with open_session(chain.folder / "b", link=SLOW) as opened:
        yield opened


class Camera:
    """An endless source that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.read = 0

    def frames(self) -> Iterator[dict[str, Any]]:
        try:
            while True:
                self.read += 1
                yield frame(self.read % 5)
        finally:
            self.closed.set()

    async def aframes(self) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                self.read += 1
                await asyncio.sleep(0)
                yield frame(self.read % 5)
        finally:
            self.closed.set()


def assert_over(session: OffloadSession, camera: Camera) -> None:
    assert camera.closed.is_set()
    assert not any(thread.name in ("stream", "latest") for thread in threading.enumerate())
    read = camera.read
    assert session.run(None, frame(1))[0].shape == frame(1)["x"].shape
    assert camera.read == read


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("how", ["cancel", "wait_for", "arun"])
def test_a_cancelled_task_is_cancelled(
    session: OffloadSession, how: str, asynchronous: bool, latest: bool
) -> None:
    camera = Camera()

    async def consume() -> None:
        source = camera.aframes() if asynchronous else camera.frames()
        async for _ in session.astream(source, latest=latest):
            pass

    async def main() -> None:
        work: asyncio.Task[Any]
        if how == "arun":
            work = asyncio.create_task(session.arun(None, frame(2)))
            camera.closed.set()
        else:
            work = asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        if how == "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work, 0.01)
        else:
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        assert work.cancelled()
        assert camera.closed.is_set()

    asyncio.run(main())
    assert_over(session, camera)


def test_the_server_forgets_what_was_cancelled(session: OffloadSession) -> None:
    async def main() -> None:
        for _ in range(3):
            work = asyncio.create_task(session.arun(None, frame(2)))
            await asyncio.sleep(0.05)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    asyncio.run(main())
    assert not session._active.opened.runner._under_way, "an inference and its tensors are kept"
    assert session.counts.runs == 0


@pytest.mark.parametrize("latest", [False, True])
def test_a_stream_that_is_left_closes_its_source(session: OffloadSession, latest: bool) -> None:
    camera = Camera()
    for _ in session.stream(camera.frames(), latest=latest):
        break
    assert camera.closed.wait(10)
    assert_over(session, camera)


def test_ctrl_c_under_asyncio_run(chain: Door) -> None:
    code = """
import asyncio, sys
from offload_runtimes import open_session, parse_link
import numpy as np
def camera():
    try:
        while True:
            yield {"x": np.ones((1, 16), np.float32)}
    finally:
        print("source closed", flush=True)
async def main(session):
    async for _ in session.astream(camera()):
        print("answer", flush=True)
with open_session("b", link=parse_link("1 Mbit/s,0.1 s")) as session:
    try:
        asyncio.run(main(session))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=chain.folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "answer\n"
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line for line in said.splitlines() if line != "answer"] == [
        "source closed",
        "interrupted",
    ]
    assert complaint == ""
