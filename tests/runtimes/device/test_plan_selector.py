"""The selector on recorded sends and a clock that stands still: when it changes plans."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.bundle.bundle import Bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Plan
from offload.planning.plan_set import SwitchPolicy
from offload.scheduling.timeline import Lane
from offload_runtimes.device.link_monitor import LATE_S, LinkMonitor
from offload_runtimes.device.plan_selector import PlanSelector
from offload_runtimes.protocol.messages import MAX_PING_BYTES

from tests.toolkit.bundle.several import swept

BEAT_S = 0.25
RULE = SwitchPolicy()
LOCAL, SPLIT, CLOUD = range(3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return swept(tmp_path_factory.mktemp("selector"))


def link(rate_bps: float) -> Link:
    return Link(rate_bps, rate_bps, 0.001, 0.001)


class World:
    """A selector whose sends and probes take what a link says, give or take noise."""

    def __init__(self, bundle: Bundle, rate_bps: float, noise: float = 0.0, seed: int = 0) -> None:
        self.now_s = 1000.0
        self.link = link(rate_bps)
        self.noise = noise
        self.probed: list[int] = []
        self.loaded: list[Plan] = []
        self.refuses: Callable[[Plan], bool] = lambda _: False
        self.changes = 0
        self.stuck_bytes, self.stuck_s = 0, self.now_s
        self._random = np.random.default_rng(seed)
        self.selector = PlanSelector(bundle, self._load, None, RULE, self._changed)
        self.bundle = bundle

    def _changed(self) -> None:
        self.changes += 1

    def _load(self, plan: Plan) -> None:
        if self.refuses(plan):
            raise InputError("it cannot be loaded")
        self.loaded.append(plan)

    def waiting(self, now_s: float) -> tuple[int, float]:
        return self.stuck_bytes, now_s - self.stuck_s

    def probe(self, size_bytes: int) -> None:
        self.probed.append(size_bytes)
        self.passes(Lane.UPLINK, size_bytes, self.link.upload_s(size_bytes))
        self.passes(Lane.DOWNLINK, size_bytes, self.link.download_s(size_bytes))

    def passes(self, lane: Lane, size_bytes: int, seconds: float) -> None:
        """One in ten is far off: stalled, or seemingly there at once."""
        factor = float(np.exp(self._random.normal(0, self.noise)))
        if self.noise and self._random.random() < 0.1:
            factor = float(self._random.choice((0.001, 6.0)))
        self.selector.monitor.passed(lane, size_bytes, seconds * factor, self.now_s)

    def run(self, seconds: float) -> list[int]:
        """Frames as fast as the link lets them, and a beat four times a second; plans followed."""
        seen = []
        for _ in range(round(seconds / BEAT_S)):
            self.now_s += BEAT_S
            plan = self.bundle.plans[self.selector.plan]
            for send in plan.uploads:
                size = send.size_bytes or 0
                for _ in range(max(1, int(BEAT_S / self.link.upload_s(size) / 2))):
                    self.passes(Lane.UPLINK, size, self.link.upload_s(size))
                for back in plan.downloads:
                    size = back.size_bytes or 0
                    self.passes(Lane.DOWNLINK, size, self.link.download_s(size))
            self.selector.attend(self, self.now_s, BEAT_S)
            seen.append(self.selector.plan)
        return seen


def test_it_settles_on_the_plan_of_the_link_there_is(bundle: Bundle) -> None:
    for rate_bps, number in ((2e4, LOCAL), (2e5, SPLIT), (1e7, CLOUD)):
        world = World(bundle, rate_bps)
        world.selector.settle(world)
        assert world.selector.plan == number
        assert world.loaded == [bundle.plans[number]]
        assert world.selector.link
        assert world.selector.link.up_bps == pytest.approx(rate_bps, rel=0.1)


def test_without_a_server_it_settles_on_the_plan_for_slow_links(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.selector.settle(None)
    assert (world.selector.plan, world.selector.link, world.probed) == (LOCAL, None, [])


def test_it_goes_and_comes_back_with_the_link(bundle: Bundle) -> None:
    world = World(bundle, 1e7, noise=0.05)
    seen = world.run(10)
    assert seen[-1] == CLOUD
    for rate_bps, number in ((2e4, LOCAL), (1e7, CLOUD), (2e5, SPLIT), (2e4, LOCAL), (2e5, SPLIT)):
        world.link = link(rate_bps)
        seen = world.run(60)
        assert set(seen[100:]) == {number}, "within 25 seconds, and then for good"
    afters = [switch.after for switch in world.selector.switches]
    assert afters[-1] == SPLIT
    assert world.changes == len(afters)
    assert all(a.at_s < b.at_s for a, b in itertools.pairwise(world.selector.switches))


def test_what_does_not_arrive_is_not_waited_for(bundle: Bundle) -> None:
    """The link breaks down while a tensor is on it: the next frame already goes another way."""
    world = World(bundle, 1e7)
    assert world.run(10)[-1] == CLOUD
    world.stuck_bytes, world.stuck_s = 100_000, world.now_s
    while world.selector.plan == CLOUD:
        world.now_s += BEAT_S
        world.selector.attend(world, world.now_s, BEAT_S)
        assert world.now_s - world.stuck_s <= 2 * LATE_S + RULE.estimates * BEAT_S
    assert world.selector.switches[-1].link.up_bps < 1e6


def test_a_hiccup_is_waited_for(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.run(10)
    for size_bytes, waited_s in ((100_000, LATE_S), (1_000, 10.0)):
        world.stuck_bytes, world.stuck_s = size_bytes, world.now_s - waited_s
        for _ in range(10):
            world.selector.attend(world, world.now_s, BEAT_S)
        assert world.selector.plan == CLOUD, "not late for long, or nothing large under way"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate_bps", [2e4, 1e5, 3e5, 5e7])
def test_on_a_steady_link_a_plan_is_kept(bundle: Bundle, seed: int, rate_bps: float) -> None:
    """Noise of 10 % and one send in ten far off change nothing."""
    world = World(bundle, rate_bps, noise=0.1, seed=seed)
    world.run(10)
    before = world.changes
    world.run(30)
    assert world.changes == before
    assert world.selector.plan == bundle.plan_set.at(rate_bps)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate_bps", [4.2e4, 4.5e4, 1.5e6, 1.7e6])
def test_plans_do_not_alternate_where_they_take_as_long(
    bundle: Bundle, seed: int, rate_bps: float
) -> None:
    world = World(bundle, rate_bps, noise=0.1, seed=seed)
    seen = [plan for plan, _ in itertools.groupby(world.run(40))]
    assert len(seen) == len(set(seen)), "none is taken up again"


def test_a_plan_that_sends_little_is_sounded_now_and_then(bundle: Bundle) -> None:
    world = World(bundle, 2e4)
    world.run(10)
    assert world.selector.plan == LOCAL
    world.probed.clear()
    world.run(64)
    assert 3 <= len(world.probed) <= 4, "each takes 1.6 seconds: a tenth of the link"
    assert set(world.probed) == {4096}
    world.link = link(1e9)
    world.run(30)
    assert world.selector.plan == CLOUD
    assert max(world.probed) <= MAX_PING_BYTES


def test_a_busy_link_is_not_sounded(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.run(5)
    assert world.selector.plan == CLOUD
    world.probed.clear()
    world.run(10)
    assert world.probed == []


def test_a_plan_that_cannot_be_loaded_is_given_up(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.refuses = lambda plan: plan.scheme == "cloud"
    assert CLOUD not in world.run(20)
    assert world.selector.plan == SPLIT, "the next best"
    assert [plan.scheme for plan in world.loaded] == ["neurosurgeon"]


def test_the_first_inference_of_a_plan_tells_of_the_change(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.run(5)
    number, change = world.selector.take()
    assert number == CLOUD
    assert change.startswith("plan 0 -> plan 2 (")
    assert world.selector.take() == (CLOUD, "")


def test_a_fixed_plan_stays(bundle: Bundle) -> None:
    selector = PlanSelector(bundle, lambda _: None, SPLIT, RULE, lambda: None)
    assert not selector.may_change
    assert selector.open_plans == selector.loaded_first == (bundle.plans[SPLIT],)
    selector.settle(None)
    selector.watch(lambda: None, 0.01)
    assert selector.plan == SPLIT
    selector.close()


def test_one_plan_alone_needs_no_pilot(bundle: Bundle) -> None:
    selector = PlanSelector(bundle.only(CLOUD), lambda _: None, None, RULE, lambda: None)
    assert not selector.may_change


def test_a_new_connection_begins_anew() -> None:
    monitor = LinkMonitor(link(1e6))
    for _ in range(3):
        monitor.passed(Lane.UPLINK, 1000, 0.1, 5.0)
    assert monitor.link(6.0)
    monitor.reset()
    assert monitor.link(6.0) is None
    monitor.passed(Lane.UPLINK, 1000, 0.0, 6.0)
    assert monitor.uploads == 0, "what took no time tells nothing"


def test_two_late_messages_make_what_was_before_the_past() -> None:
    monitor, fast, slow = LinkMonitor(link(5e6)), link(2e7), link(1e6)
    for number in range(40):
        monitor.passed(Lane.UPLINK, 100_000, fast.upload_s(100_000), 0.05 * number)
    found = monitor.link(2.0)
    assert found
    assert found.up_bps == pytest.approx(2e7, rel=0.05)
    for now_s in (2.8, 3.6):
        monitor.passed(Lane.UPLINK, 100_000, slow.upload_s(100_000), now_s)
        found = monitor.link(now_s)
        assert found
        assert (found.up_bps < 1.1e6) == (now_s == 3.6), "one alone may be a hiccup"


@given(
    st.floats(5e5, 1e8),
    st.lists(st.floats(0.95, 1.05), min_size=12, max_size=40),
    st.lists(st.sampled_from((0.001, 8.0)), max_size=3),
)
def test_the_estimate_converges_under_noise_and_outliers(
    rate_bps: float, noise: list[float], off: list[float]
) -> None:
    monitor, true = LinkMonitor(link(5e6)), link(rate_bps)
    for number, factor in enumerate((*off, *noise)):
        for size in (20_000, 150_000):
            now_s = 0.05 * number
            monitor.passed(Lane.UPLINK, size, true.upload_s(size) * factor, now_s)
            monitor.passed(Lane.DOWNLINK, 4_000, true.download_s(4_000) * factor, now_s)
    found = monitor.link(0.05 * len(noise))
    assert found
    for size in (20_000, 60_000, 150_000):
        assert found.upload_s(size) == pytest.approx(true.upload_s(size), rel=0.15)
    assert found.download_s(4_000) == pytest.approx(true.download_s(4_000), rel=0.15)
