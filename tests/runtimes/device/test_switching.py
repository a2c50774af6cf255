"""The link changes in the middle of a stream: every frame is answered once, in order, to the bit.

Real gRPC over an emulated link whose two speeds are so far apart that no busy machine can make
one look like the other. The selector attends between frames, called by the source of the stream.
"""

import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from offload.bundle.bundle import Bundle
from offload.bundle.write import write_bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload.planning.plan import Plan, Segment, Side
from offload.planning.plan_set import BandwidthRange, PlanSet, SwitchPolicy
from offload.scheduling.timeline import Lane
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.segment_executor import SegmentExecutor
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions

from tests.runtimes.waiting import eventually
from tests.toolkit.bundle.several import WIDTHS, funnel, ranged_over

EXACT = EngineOptions(optimize=False)
RULE = SwitchPolicy(dwell_s=0.0, probe_s=0.02)
HERE, FAR = 0, 1
FAST, SLOW = Link(1e9, 1e9), Link(100e3, 100e3)
SEEDS = 16
NEVER_S = 1e6


class Changing:
    """A link whose costs change at once, also for messages that wait for it."""

    def __init__(self) -> None:
        self.now = FAST

    def upload_s(self, size_bytes: float) -> float:
        return self.now.upload_s(size_bytes)

    def download_s(self, size_bytes: float) -> float:
        return self.now.download_s(size_bytes)


@pytest.fixture(scope="module", params=["local", "neurosurgeon"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two plans: all on the server, which is best on the fast link; and one for the slow link.

    On it that one is twice as fast: it needs the link for its answer alone or not at all.
    """
    folder = tmp_path_factory.mktemp("switching")
    model = load_model(funnel(folder / "net.onnx"))
    graph = read_graph(model)
    found = ranged_over(graph, 0.02 if request.param == "local" else 0.2)
    plans = [plan for plan in found.plans if plan.scheme in (request.param, "cloud")]
    ranges = (BandwidthRange(0.0, 5e5, HERE), BandwidthRange(5e5, math.inf, FAR))
    return write_bundle(model, graph, PlanSet(tuple(plans), ranges), folder / "b")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> list[np.ndarray]:
    whole = load(bundle.path.parent / "net.onnx", EXACT)
    return [whole.run(None, frame(seed))[0] for seed in range(SEEDS)]


@pytest.fixture
def server(bundle: Bundle) -> Iterator[Server]:
    with Server([bundle], options=ServeOptions(EXACT)) as running:
        yield running


def frame(number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(number % SEEDS)
    return {"x": random.standard_normal((4, WIDTHS[0]), np.float32)}


class Camera:
    """A source of frames that runs the selector before each frame and records the frame's plan."""

    def __init__(self, session: OffloadSession) -> None:
        self._session = session
        self.plans: list[int] = []

    def until(self, plan: int, most: int = 20_000) -> Iterator[dict[str, np.ndarray]]:
        """Frames until a plan is followed."""
        for _ in range(most):
            if self._session.plan == plan:
                return
            yield self._next()
            time.sleep(0.002)
        raise AssertionError(f"plan {plan} was never taken up")

    def some(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        for _ in range(count):
            yield self._next()

    def _next(self) -> dict[str, np.ndarray]:
        selector = self._session._active.opened.selector
        connection = self._session._active.opened.connection
        selector.attend(connection.probe if connection else None, time.monotonic(), 0.02)
        self.plans.append(self._session.plan)
        return frame(len(self.plans) - 1)


def assert_all_right(
    found: list[list[np.ndarray]], camera: Camera, right: list[np.ndarray]
) -> None:
    assert len(found) == len(camera.plans), "every frame once"
    for number, (y,) in enumerate(found):
        assert np.array_equal(y, right[number % SEEDS]), number


def test_a_stream_goes_on_while_the_link_changes(
    bundle: Bundle, server: Server, expected: list[np.ndarray]
) -> None:
    link = Changing()
    with OffloadSession(
        bundle, server.address, link=link, optimize=False, heartbeat_s=NEVER_S, switching=RULE
    ) as session:
        camera = Camera(session)

        def frames() -> Iterator[dict[str, np.ndarray]]:
            yield from camera.some(4)
            link.now = SLOW
            yield from camera.until(HERE)
            yield from camera.some(12)
            link.now = FAST
            yield from camera.until(FAR)
            yield from camera.some(12)

        found = list(session.stream(frames()))
        assert_all_right(found, camera, expected)
        assert camera.plans[:4] + camera.plans[-12:] == [FAR] * 16
        assert [(s.before, s.after) for s in session.switches] == [(FAR, HERE), (HERE, FAR)]
        assert session.counts.switches == 2
        assert session.counts.split == session.counts.runs == len(found)
        assert session.counts.losses == 0
        assert "plan 1 -> plan 0" in str(session.switches[0])
    if not bundle.plans[HERE].is_local:  # else the server sees one plan all along
        metric = f'offload_plan_switches_total{{bundle="{bundle.digest[:12]}"}} 2'
        assert metric in server.metrics_text()
        assert all(switch.link.up_bps < 5e5 for switch in session.switches[:1])


def test_the_first_frame_after_a_switch_records_it(bundle: Bundle, server: Server) -> None:
    link = Changing()
    with OffloadSession(bundle, server.address, link=link, heartbeat_s=NEVER_S) as session:
        assert session.plan == FAR
        assert session.link
        assert session.link.up_bps > 5e5
        session._active.opened.selector._change = "plan 0 -> plan 1"
        _, first = session.run_timed(None, frame(0))
        _, second = session.run_timed(None, frame(1))
    marks = [span for span in first.lane(Lane.DEVICE) if span.duration_s == 0]
    assert [(mark.name, mark.start_s) for mark in marks] == [("plan 0 -> plan 1", 0.0)]
    assert not [span for span in second.spans if span.name == "plan 0 -> plan 1"]


def test_the_selector_thread_switches_plans(
    bundle: Bundle, server: Server, expected: list[np.ndarray]
) -> None:
    """From a slow link, on which it settles, to a fast one, by what probes tell while it idles."""
    link = Changing()
    link.now = SLOW
    with OffloadSession(
        bundle, server.address, link=link, optimize=False, heartbeat_s=0.02, switching=RULE
    ) as session:
        eventually(lambda: session.plan == HERE)
        assert np.array_equal(session.run(None, frame(0))[0], expected[0])
        link.now = FAST
        eventually(lambda: session.plan == FAR)
        assert np.array_equal(session.run(None, frame(1))[0], expected[1])


class Gate:
    """Holds up the loading of a plan until it is opened."""

    def __init__(self, session: OffloadSession) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._load = session._active.opened.selector._load
        session._active.opened.selector._load = self

    def __call__(self, plan: Plan) -> None:
        self.reached.set()
        assert self.open.wait(60)
        self._load(plan)


def test_the_server_is_lost_in_the_middle_of_a_change(
    bundle: Bundle, server: Server, expected: list[np.ndarray]
) -> None:
    """While the next plan is being loaded, frames under way: all go on, and so does the change."""
    link = Changing()
    link.now = SLOW
    with OffloadSession(
        bundle, server.address, link=link, optimize=False, heartbeat_s=0.02, switching=RULE
    ) as session:
        eventually(lambda: session.plan == HERE)
        gate = Gate(session)
        link.now = FAST
        sent = 0

        def frames() -> Iterator[dict[str, np.ndarray]]:
            nonlocal sent
            while not gate.reached.wait(0.002):
                yield frame((sent := sent + 1) - 1)
            server.stop()
            for _ in range(10):
                yield frame((sent := sent + 1) - 1)
            gate.open.set()
            while session.plan != FAR:
                yield frame((sent := sent + 1) - 1)
                time.sleep(0.002)
            for _ in range(10):
                yield frame((sent := sent + 1) - 1)

        found = list(session.stream(frames()))
        assert len(found) == sent
        for number, (y,) in enumerate(found):
            assert np.array_equal(y, expected[number % SEEDS]), number
        assert session.counts.runs == sent
        assert not session.is_split
        with Server([bundle], server.address, options=ServeOptions(EXACT)):
            eventually(lambda: session.is_split)
            before = session.counts.split
            assert np.array_equal(session.run(None, frame(0))[0], expected[0])
            assert session.counts.split == before + 1


def test_a_plan_that_cannot_be_loaded_is_not_followed(
    bundle: Bundle, server: Server, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SegmentExecutor.load

    def refuse(device: SegmentExecutor, segments: tuple[Segment, ...]) -> None:
        wanted = {s.part for s in bundle.plans[HERE].on(Side.DEVICE)}
        if wanted & {segment.part for segment in segments}:
            raise InputError("there is no memory for it")
        real(device, segments)

    monkeypatch.setattr(SegmentExecutor, "load", refuse)
    link = Changing()
    with OffloadSession(
        bundle, server.address, link=link, optimize=False, heartbeat_s=NEVER_S, switching=RULE
    ) as session:
        camera = Camera(session)
        link.now = SLOW
        found = list(session.stream(camera.some(12)))
        assert_all_right(found, camera, expected)
        assert (session.plan, session.counts.switches) == (FAR, 0)


def test_a_fixed_plan_is_followed_whatever_the_link(bundle: Bundle, server: Server) -> None:
    link = Changing()
    with OffloadSession(
        bundle, server.address, link=link, plan=HERE, heartbeat_s=0.02, switching=RULE
    ) as session:
        for number in range(20):
            session.run(None, frame(number))
        assert (session.plan, session.switches, session.link) == (HERE, (), None)
