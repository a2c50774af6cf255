"""A session with a list of servers: one is lost, drains, is full, hangs, or lacks the bundle."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError
from offload.planning.plan import Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.local import open_session
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport.connection import Connector, Stream

from tests.runtimes import bundles
from tests.runtimes.bundles import Made
from tests.runtimes.faults import Fault, FaultPlan, FaultyConnector
from tests.runtimes.memory_transport import MemoryConnector
from tests.runtimes.waiting import eventually

QUICK: dict[str, Any] = {"heartbeat_s": 0.02}
NEVER_S = 1e6  # no heartbeat: only what is done at once happens
HANDSHAKE = 12  # messages before the first frame: hello, welcome, and five pings with their answers


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "b")


@pytest.fixture
def half(made: Made, tmp_path: Path) -> Path:
    """The device's half: it can compute nothing without a server."""
    return bundles.deployed(made, Side.DEVICE, tmp_path / "half")


@pytest.fixture
def servers(made: Made) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Server([made.bundle])) for _ in range(2)]


def addresses(servers: Sequence[Server]) -> list[str]:
    return [server.address for server in servers]


def check(made: Made, session: OffloadSession, seed: int = 0) -> None:
    assert_right(made, session.run(None, made.feeds(seed)), seed)


def assert_right(made: Made, outputs: list[np.ndarray], seed: int) -> None:
    for given, expected in zip(outputs, made.expected(made.feeds(seed)), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_the_next_server_is_used_when_one_is_lost(
    made: Made, servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    """The servers are used in turn; counts, log and timeline show which one is in use."""
    first, second = addresses(servers)
    with (
        caplog.at_level(logging.WARNING, "offload.device"),
        open_session(made.bundle, [first, second], **QUICK) as session,
    ):
        assert session.server == first
        check(made, session)
        assert session.counts.by_server == {first: 1}
        servers[0].stop()
        eventually(lambda: session.server == second)
        _, timeline = session.run_timed(None, made.feeds(1))
        assert f"server {second}" in [span.name for span in timeline.spans]
        _, timeline = session.run_timed(None, made.feeds(1))
        assert f"server {second}" not in [span.name for span in timeline.spans]
        assert session.counts.by_server == {first: 1, second: 2}
        with Server([made.bundle], first):
            servers[1].stop()
            eventually(lambda: session.server == first)
            check(made, session, 2)
            assert session.counts.losses == 2
            assert session.counts.by_server == {first: 2, second: 2}
    rows = [vars(record)["fields"] for record in caplog.records]
    changes = [(row["before"], row["after"]) for row in rows if "before" in row]
    assert changes == [(first, second), (second, first)]


def test_a_half_answers_every_frame_while_its_server_is_lost(
    made: Made, half: Path, servers: list[Server]
) -> None:
    """Frames under way are sent to the next server: the device cannot compute them itself."""
    with OffloadSession(half, addresses(servers), **QUICK) as session:

        def frames() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            for seed in range(60):
                if seed == 20:
                    threading.Thread(target=servers[0].stop).start()
                yield seed, made.feeds(seed)
                time.sleep(0.002)

        answers = list(session.stream(frames()))
        assert [seed for seed, _ in answers] == list(range(60))
        for seed, outputs in answers:
            assert_right(made, outputs, seed)
        eventually(lambda: session.server == servers[1].address)
        check(made, session)
        assert session.counts.split == session.counts.runs == 61
        assert session.counts.losses == 1


@pytest.mark.parametrize("is_half", [False, True])
def test_a_server_that_drains_is_left_at_once(
    made: Made, half: Path, servers: list[Server], is_half: bool
) -> None:
    """Its last frames are answered, no caller gets an error, and nothing counts as a loss."""
    bundle = half if is_half else made.bundle
    with OffloadSession(bundle, addresses(servers), heartbeat_s=NEVER_S) as session:
        running = session.begin(None, made.feeds(0))
        drained = threading.Thread(target=servers[0].drain, args=(20,))
        drained.start()
        for seed in range(1, 40):
            check(made, session, seed)
        assert_right(made, running.finish(), 0)
        drained.join()
        eventually(lambda: session.server == servers[1].address)
        check(made, session)
        counts = session.counts
        assert counts.losses == 0
        assert counts.split + counts.local + counts.resumed == counts.runs == 41
        if is_half:
            assert counts.split == 41


def test_a_server_out_of_reach_at_the_start_is_passed_over(
    made: Made, servers: list[Server]
) -> None:
    servers[0].stop()
    with OffloadSession(made.bundle, addresses(servers), **QUICK) as session:
        assert session.server == servers[1].address
        check(made, session)
    servers[1].stop()
    with pytest.raises(ServerError) as caught:
        OffloadSession(made.bundle, addresses(servers))
    assert caught.value.retry
    said = str(caught.value)
    assert said.startswith("none of the 2 servers can be used: ")
    assert all(f"server {address} cannot be reached" in said for address in addresses(servers))
    with OffloadSession(made.bundle, addresses(servers), require_server=False, **QUICK) as session:
        check(made, session)
        with Server([made.bundle], servers[1].address):
            eventually(lambda: session.server == servers[1].address)
            check(made, session)


def test_a_full_server_is_passed_over(made: Made, servers: list[Server]) -> None:
    with Server([made.bundle], options=ServeOptions(max_sessions=1)) as full:
        addresses = [full.address, servers[0].address]
        with (
            OffloadSession(made.bundle, addresses, **QUICK) as first,
            OffloadSession(made.bundle, addresses, **QUICK) as second,
        ):
            assert (first.server, second.server) == tuple(addresses)
            check(made, first)
            check(made, second)


def test_a_server_without_the_bundle_is_passed_over(
    made: Made, servers: list[Server], tmp_path: Path
) -> None:
    other = bundles.branches(tmp_path / "other", count=3)
    with Server([other.bundle]) as lacking:
        with OffloadSession(made.bundle, [lacking.address, servers[0].address]) as session:
            assert session.server == servers[0].address
            check(made, session)
        servers[0].stop()
        with pytest.raises(BundleError) as caught:
            OffloadSession(made.bundle, [servers[0].address, lacking.address])
        assert f"{servers[0].address} cannot be reached" in str(caught.value)
        assert "is not served here" in str(caught.value)
        assert lacking.address in str(caught.value)


class Named:
    """A connector with an address of its own, which counts the streams that it opens."""

    def __init__(self, inner: MemoryConnector | FaultyConnector, address: str) -> None:
        self._inner = inner
        self.address = address
        self.opened = 0

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        self.opened += 1
        return self._inner.connect(outgoing, timeout_s)


def in_memory(server: Server, address: str, *plans: FaultPlan) -> Named:
    return Named(FaultyConnector(MemoryConnector(server.serve), list(plans)), address)


def test_a_server_that_falls_silent_is_replaced(
    made: Made, half: Path, servers: list[Server]
) -> None:
    silent = in_memory(servers[0], "a", FaultPlan(Fault.SILENCE, HANDSHAKE + 3))
    connectors: list[Connector] = [silent, in_memory(servers[1], "b")]
    with OffloadSession(half, connectors, heartbeat_s=0.02, patience_s=0.1) as session:
        for seed in range(4):
            check(made, session, seed)
        assert session.server == "b"
        assert session.counts.split == 4


def test_servers_lost_at_once_are_replaced_once_per_heartbeat(
    made: Made, servers: list[Server]
) -> None:
    cut = [FaultPlan(Fault.CUT, HANDSHAKE)] * 9
    first, second = (in_memory(servers[0], name, *cut) for name in "ab")
    connectors: list[Connector] = [first, second]
    with OffloadSession(made.bundle, connectors, heartbeat_s=NEVER_S) as session:
        for seed in range(50):
            check(made, session, seed)
            time.sleep(0.01)
        assert (first.opened, second.opened) == (2, 1)


def test_a_frame_that_every_server_fails_on_is_sent_once_to_each(
    made: Made, half: Path, servers: list[Server]
) -> None:
    cut = [FaultPlan(Fault.CUT, HANDSHAKE + 1)] * 9
    first, second, third = (in_memory(servers[0], name, *cut) for name in "abc")
    connectors: list[Connector] = [first, second, third]
    with OffloadSession(half, connectors, heartbeat_s=NEVER_S) as session:
        with pytest.raises(ServerError):
            session.run(None, made.feeds())
        opened = [each.opened for each in (first, second, third)]
        assert opened in ([1, 1, 1], [2, 1, 1])  # the next frame's connection may be open already


@pytest.mark.parametrize("at", range(4))
def test_a_frame_goes_on_from_its_tensors_on_the_next_server(tmp_path: Path, at: int) -> None:
    """Device, server, device, server: the connection is cut at each of the four messages."""
    made = bundles.there_and_back(tmp_path / "b")
    half = bundles.deployed(made, Side.DEVICE, tmp_path / "half")
    with Server([made.bundle]) as server:
        cut = in_memory(server, "a", FaultPlan(Fault.CUT, HANDSHAKE + at))
        connectors: list[Connector] = [cut, in_memory(server, "b")]
        with OffloadSession(half, connectors, heartbeat_s=NEVER_S) as session:
            outputs, timeline = session.run_timed(None, made.feeds(at))
            assert_right(made, outputs, at)
            assert session.counts.by_server == {"b": 1}
            runs = [span.name for span in timeline.spans if span.name.startswith("device-")]
            assert sorted(runs) == ["device-0", "device-1"], "nothing is computed twice"


def test_a_deadline_holds_while_no_server_answers(
    made: Made, half: Path, servers: list[Server]
) -> None:
    """The next server takes connections and never answers."""
    silent = [FaultPlan(Fault.SILENCE, 0)] * 9
    cut = in_memory(servers[0], "a", FaultPlan(Fault.CUT, HANDSHAKE + 1))
    connectors: list[Connector] = [cut, in_memory(servers[1], "b", *silent)]
    with (
        OffloadSession(half, connectors, heartbeat_s=0.02, connect_timeout_s=60) as session,
        pytest.raises(DeadlineError),
    ):
        session.run(None, made.feeds(), deadline_s=0.3)


def test_an_inference_that_waits_for_the_next_server_can_be_cancelled(
    made: Made, half: Path, servers: list[Server]
) -> None:
    silent = [FaultPlan(Fault.SILENCE, 0)] * 9
    cut = in_memory(servers[0], "a", FaultPlan(Fault.CUT, HANDSHAKE + 1))
    connectors: list[Connector] = [cut, in_memory(servers[1], "b", *silent)]

    async def run_for_a_while(session: OffloadSession) -> None:
        async with asyncio.timeout(0.3):
            await session.arun(None, made.feeds())

    with OffloadSession(half, connectors, connect_timeout_s=200) as session:
        with pytest.raises(TimeoutError):
            asyncio.run(run_for_a_while(session))
        waiting = session.begin(None, made.feeds())
        session.close()
        with pytest.raises(InputError, match="is closed"):
            waiting.finish()


def test_servers_of_kserve_may_be_listed(made: Made, half: Path, servers: list[Server]) -> None:
    listed = [f"kserve://{address}/b.server" for address in addresses(servers)]
    with OffloadSession(half, listed, **QUICK) as session:
        assert listed[0] == f"{session.server}/b.server"
        check(made, session)
        servers[0].stop()
        check(made, session, 1)
        assert listed[1] == f"{session.server}/b.server"


def test_with_local_no_other_server_is_used(made: Made, servers: list[Server]) -> None:
    with OffloadSession(
        made.bundle, addresses(servers), on_server_loss="local", **QUICK
    ) as session:
        check(made, session)
        servers[0].stop()
        eventually(lambda: session.server is None)
        for seed in range(5):
            check(made, session, seed)
        assert session.server is None


WRONG: dict[str, tuple[Any, str]] = {
    "empty": ([], "the list of servers is empty: give the HOST:PORT of at least one"),
    "twice": (["h:1", "g:1", "h:1"], "server h:1 is listed twice: give each server once"),
    "two spellings": (["unix:/s", "unix:///s"], "server unix:///s is listed twice"),
    "mixed": (["h:1", "kserve://h:2"], "kserve://h:2 and h:1 are servers of two kinds"),
    "no port": (["h:1", "g"], "address 'g' has no port"),
    "no address": (["h:1", 5], "an address must be a string"),
    "kserve twice": (["kserve://h:1"] * 2, "server kserve://h:1 is listed twice"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("open_it", [OffloadSession, open_session])
def test_wrong_lists(made: Made, open_it: Callable[..., OffloadSession], kind: str) -> None:
    servers, said = WRONG[kind]
    with pytest.raises(InputError) as caught:
        open_it(made.bundle, servers)
    assert said in str(caught.value)


def test_one_server_is_used_as_before(made: Made, servers: list[Server]) -> None:
    """In a list of servers, each server is named in the error about it."""
    with OffloadSession(made.bundle, [servers[0].address]) as session:
        check(made, session)
    servers[0].stop()
    errors: list[OffloadError] = []
    for server in (servers[0].address, [servers[0].address]):
        with pytest.raises(ServerError) as caught:
            OffloadSession(made.bundle, server)
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1])
    assert "none of" not in str(errors[0])
