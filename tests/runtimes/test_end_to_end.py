"""Bundles run over real gRPC on loopback give what the whole model gives."""

import itertools
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from offload.bundle.bundle import open_bundle
from offload.costs.link import Link
from offload.errors import BundleError, InputError, OffloadError, ServerError
from offload.planning.plan import Side
from offload.scheduling.timeline import Lane
from offload_runtimes.address import parse_address
from offload_runtimes.client import OffloadSession
from offload_runtimes.emulation.pacing import Pacer
from offload_runtimes.local import open_session
from offload_runtimes.measure.probe import probe
from offload_runtimes.security.credentials import ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.transport import PROBE, PROBE_LIMIT_BYTES
from offload_runtimes.transport.grpc_client import GrpcConnector

from tests.runtimes import bundles
from tests.runtimes.bundles import Made

KINDS: dict[str, Callable[[Path], Made]] = {
    "branches": bundles.branches,
    "one branch": lambda folder: bundles.branches(folder, count=1),
    "zstd": lambda folder: bundles.branches(folder, encoding="zstd"),
    "dynamic batch": lambda folder: bundles.branches(folder, batch="n"),
    "there and back": bundles.there_and_back,
    "local": lambda folder: bundles.on_one_side(folder, Side.DEVICE),
    "cloud": lambda folder: bundles.on_one_side(folder, Side.SERVER),
}


@pytest.fixture(params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return KINDS[request.param](tmp_path / "bundle")


@pytest.fixture
def pair(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "pair")


@pytest.fixture
def server(pair: Made) -> Iterator[Server]:
    with Server([pair.bundle]) as running:
        yield running


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_split_equals_whole(made: Made) -> None:
    with open_session(made.bundle) as session:
        for seed in range(4):
            feeds = made.feeds(seed)
            assert_same(session.run(None, feeds), made.expected(feeds))


def test_looks_like_an_onnxruntime_session(server: Server, pair: Made) -> None:
    with OffloadSession(pair.bundle.path, server.address) as session:
        assert [(v.name, v.type, v.shape) for v in session.get_inputs()] == [
            ("x", "tensor(float)", (1, 64))
        ]
        assert [value.name for value in session.get_outputs()] == ["y", "t1"]
        feeds = pair.feeds()
        y, t1 = pair.expected(feeds)
        assert_same(session.run(["t1"], feeds), [t1])
        assert_same(session.run(["t1", "y"], feeds), [t1, y])


def test_each_side_needs_only_its_deployed_files(made: Made, tmp_path: Path) -> None:
    """Each machine has only what `deploy` puts there."""
    device = bundles.deployed(made, Side.DEVICE, tmp_path / "device")
    feeds = made.feeds()
    if made.bundle.plan.is_local:
        with OffloadSession(device) as session:
            assert_same(session.run(None, feeds), made.expected(feeds))
        return
    far = bundles.deployed(made, Side.SERVER, tmp_path / "server")
    with Server([far]) as server, OffloadSession(device, server.address) as session:
        assert_same(session.run(None, feeds), made.expected(feeds))


def test_two_bundles_and_many_sessions_on_one_server(tmp_path: Path) -> None:
    first, second = bundles.branches(tmp_path / "a"), bundles.there_and_back(tmp_path / "b")
    with Server([first.bundle, second.bundle]) as server:
        assert set(server.bundles) == {first.bundle.digest, second.bundle.digest}
        sessions = [OffloadSession(m.bundle, server.address) for m in (first, second, first)]
        for made, session in zip((first, second, first), sessions, strict=True):
            feeds = made.feeds()
            assert_same(session.run(None, feeds), made.expected(feeds))
        for session in sessions:
            session.close()


def test_outputs_are_writable(server: Server, pair: Made) -> None:
    with OffloadSession(pair.bundle, server.address) as session:
        for array in session.run(None, pair.feeds()):
            array[...] = 0


class Remembering(Pacer):
    """A pacer that knows whom it was asked to pace, and lets everyone pass."""

    def __init__(self) -> None:
        super().__init__(2.0)
        self.learnt: list[str] = []
        self.paced: list[str] = []

    def add(self, key: str, duration_s: float) -> None:
        self.learnt.append(key)
        super().add(key, duration_s)

    def pace(self, key: str, start_s: float | None = None) -> None:
        self.paced.append(key)
        assert start_s is not None


def test_sessions_that_share_a_pacer_are_paced_alike(tmp_path: Path) -> None:
    pacer = Remembering()
    made = bundles.branches(tmp_path / "one", count=2)
    shutil.copytree(made.bundle.path, tmp_path / "two")
    for name in ("one", "two"):
        with open_session(tmp_path / name, slowdown=pacer) as session:
            session.run(None, made.feeds())
    assert len(pacer.paced) == 4
    assert pacer.paced[:2] == pacer.paced[2:]
    assert len(set(pacer.paced)) == 2


@pytest.mark.parametrize(("kind", "known"), [("branches", 2), ("there and back", 1)])
def test_a_rehearsal_runs_what_needs_no_server(kind: str, known: int, tmp_path: Path) -> None:
    made = KINDS[kind](tmp_path / "bundle")
    pacer = Remembering()
    with open_session(made.bundle, slowdown=pacer) as session:
        pacer.learnt.clear()
        session.rehearse(made.feeds())
    assert len(pacer.learnt) == known
    assert pacer.paced == []


# How far the two sides' clocks may be told apart wrongly when the machine is busy.
CLOCK_ERROR_S = 0.03


def test_timeline_of_a_split_run(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "b", count=3)
    link = Link(1e6, 1e6, up_start_s=0.02, down_start_s=0.005)
    with open_session(made.bundle, link=link, slowdown=200.0) as session:
        _, timeline = session.run_timed(None, made.feeds())
    names = {lane: [span.name for span in timeline.lane(lane)] for lane in Lane}
    assert names == {
        Lane.DEVICE: ["device-0", "device-1", "device-2"],
        Lane.UPLINK: ["t0", "t1", "t2"],
        Lane.SERVER: ["server-0"],
        Lane.DOWNLINK: ["y"],
    }
    uploads = timeline.lane(Lane.UPLINK)
    sending_s = uploads[-1].end_s - uploads[0].start_s
    assert sending_s >= 3 * link.up_start_s - CLOCK_ERROR_S
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(uploads))
    # The point of it all: the first upload begins before the last branch is computed.
    assert uploads[0].start_s < timeline.lane(Lane.DEVICE)[-1].end_s
    (tail,), (answer,) = timeline.lane(Lane.SERVER), timeline.lane(Lane.DOWNLINK)
    assert uploads[-1].end_s <= tail.start_s + CLOCK_ERROR_S
    assert answer.duration_s >= 0.005


def test_server_in_another_process(pair: Made) -> None:
    code = (
        "import sys; from offload_runtimes.server import Server\n"
        "server = Server([sys.argv[1]]).start(); print(server.address, flush=True)\n"
        "sys.stdin.read(); server.stop()"
    )
    command = [sys.executable, "-c", code, str(pair.bundle.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        with OffloadSession(pair.bundle, address) as session:
            feeds = pair.feeds()
            assert_same(session.run(None, feeds), pair.expected(feeds))
        process.communicate("")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 63), np.float32)}, r"must be float32\[1x64\], not float32\[1x63\]"),
        ({"x": np.zeros((1, 64))}, "not float64"),
        ({"q": np.zeros((1, 64), np.float32)}, "no input 'q'"),
    ],
)
def test_wrong_input(server: Server, pair: Made, feeds: dict[str, np.ndarray], said: str) -> None:
    with OffloadSession(pair.bundle, server.address) as session:
        with pytest.raises(InputError, match=said):
            session.run(None, feeds)
        with pytest.raises(InputError, match="no output 'q'"):
            session.run(["q"], pair.feeds())
        assert_same(session.run(None, pair.feeds()), pair.expected(pair.feeds()))


def test_server_without_this_bundle(server: Server, tmp_path: Path) -> None:
    other = bundles.there_and_back(tmp_path / "other")
    with pytest.raises(BundleError, match=rf"{server.address}: bundle .* not served here"):
        OffloadSession(other.bundle, server.address)


def test_server_out_of_reach(pair: Made) -> None:
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9 cannot be reached"):
        OffloadSession(pair.bundle, "127.0.0.1:9")
    with pytest.raises(InputError, match="needs a server"):
        OffloadSession(pair.bundle)


def test_port_in_use(server: Server, pair: Made) -> None:
    with pytest.raises(InputError, match="port is in use"):
        Server([pair.bundle], server.address).start()


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:99999", ":5"])
def test_wrong_address(pair: Made, listen: str) -> None:
    with pytest.raises(InputError, match="write it like"):
        Server([pair.bundle], listen)


def test_plain_text_stays_on_loopback(pair: Made) -> None:
    with pytest.raises(InputError, match="not encrypted"):
        Server([pair.bundle], "0.0.0.0:0")
    with Server(
        [pair.bundle], "0.0.0.0:0", options=ServeOptions(security=ServerSecurity(insecure=True))
    ) as server:
        assert server.address.startswith("0.0.0.0:")


def test_error_after_the_server_stopped(server: Server, pair: Made) -> None:
    with OffloadSession(pair.bundle, server.address, on_server_loss="raise") as session:
        assert server.drain(5)
        server.stop()
        with pytest.raises(ServerError, match=r"shutting down|cannot be reached") as caught:
            session.run(None, pair.feeds())
        assert caught.value.retry


def test_damaged_bundle(pair: Made) -> None:
    path = pair.bundle.segment_path("server-0")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"server-0\.onnx was changed after"):
        Server([pair.bundle.path])
    with pytest.raises(BundleError):
        open_bundle(pair.bundle.path)


def test_probe_gives_samples_of_every_size(server: Server) -> None:
    samples = probe(server.address, sizes_bytes=[100, 100_000], repeats=3)
    assert [sample.size_bytes for sample in samples] == [100] * 3 + [100_000] * 3
    assert all(sample.up_s >= 0 and sample.down_s >= 0 for sample in samples)
    with pytest.raises(InputError, match="probe sizes"):
        probe(server.address, sizes_bytes=[10**9])
    with pytest.raises(ServerError, match="cannot be reached"):
        probe("127.0.0.1:9")


def test_a_probe_passes_an_emulated_link(server: Server) -> None:
    link = Link(4e6, 8e6)
    (sample,) = probe(server.address, sizes_bytes=[100_000], repeats=1, link=link)
    assert sample.up_s > link.upload_s(100_000) / 2
    assert sample.down_s > link.download_s(100_000) / 2


def test_a_message_that_is_not_a_probe_ends_the_stream(server: Server) -> None:
    outgoing = iter([b"\xff" * 9])
    address = parse_address(server.address)
    connector = GrpcConnector(address, PROBE_LIMIT_BYTES, method=PROBE)
    stream = connector.connect(outgoing, 5.0)
    ends: queue.SimpleQueue[OffloadError | None] = queue.SimpleQueue()

    class Ends:
        def received(self, message: bytes) -> None:
            raise AssertionError(message)

        def ended(self, error: OffloadError | None) -> None:
            ends.put(error)

    stream.deliver(Ends())
    assert ends.get(timeout=20) is None
    stream.close()
    stream.wait(5.0)


def test_a_process_without_close_ends(pair: Made) -> None:
    code = (
        "import sys; import numpy as np\n"
        "from offload_runtimes.local import open_session\n"
        "session = open_session(sys.argv[1])\n"
        "session.run(None, {'x': np.zeros((1, 64), np.float32)})\n"
        "stream = session.stream([{'x': np.zeros((1, 64), np.float32)}] * 9)\n"
        "next(stream); print('end')"
    )
    command = [sys.executable, "-c", code, str(pair.bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
