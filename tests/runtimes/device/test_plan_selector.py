"""When the plan selector changes plans: simulated messages and a simulated clock."""

import itertools
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from offload.bundle.bundle import Bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Plan, Segment, Side, Speeds
from offload.planning.plan_set import SwitchPolicy
from offload.scheduling.timeline import Lane
from offload_runtimes.device.link_monitor import LATE_S
from offload_runtimes.device.plan_selector import PlanSelector
from offload_runtimes.protocol.messages import MAX_PING_BYTES
from offload_runtimes.protocol.offload_pb2 import Span

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
    """A selector with a simulated link: messages take its costs times random noise."""

    def __init__(self, bundle: Bundle, rate_bps: float, noise: float = 0.0, seed: int = 0) -> None:
        self.now_s = 1000.0
        self.link = link(rate_bps)
        self.speeds = Speeds()
        self.noise = noise
        self.probed: list[int] = []
        self.loaded: list[Plan] = []
        self.refuses: Callable[[Plan], bool] = lambda _: False
        self.changes = 0
        self._random = np.random.default_rng(seed)
        self.selector = PlanSelector(
            bundle, self._load, None, RULE, self._changed, Random(seed).random
        )
        self.bundle = bundle

    def _changed(self) -> None:
        self.changes += 1

    def _load(self, plan: Plan) -> None:
        if self.refuses(plan):
            raise InputError("it cannot be loaded")
        self.loaded.append(plan)

    def probe(self, size_bytes: int) -> None:
        self.probed.append(size_bytes)
        self.passes(Lane.UPLINK, size_bytes, self.link.upload_s(size_bytes))
        self.passes(Lane.DOWNLINK, size_bytes, self.link.download_s(size_bytes))

    def passes(self, lane: Lane, size_bytes: int, seconds: float) -> None:
        """Record a message; with noise, one in ten took far too long or almost no time."""
        factor = float(np.exp(self._random.normal(0, self.noise)))
        if self.noise and self._random.random() < 0.1:
            factor = float(self._random.choice((0.001, 6.0)))
        self.selector.monitor.passed(lane, size_bytes, seconds * factor, self.now_s)

    def computes(self, number: int) -> None:
        """Record the segments of a frame."""
        for segment in self.bundle.plans[number].on(Side.DEVICE):
            seconds = self.runs_s(segment)
            self.selector.speed_monitor.computed(number, segment.id, seconds, self.now_s)
        for segment in self.bundle.plans[number].on(Side.SERVER):
            start_s = self.now_s + self.speeds.server_wait_s
            seconds = self.speeds.server * self.bundle.plans[number].forecast.work.server_s
            spans = [
                Span(kind=Span.ARRIVAL, name="x", end_s=self.now_s),
                Span(kind=Span.COMPUTE, name=segment.id, start_s=start_s, end_s=start_s + seconds),
            ]
            self.selector.speed_monitor.served(number, spans, self.now_s)

    def runs_s(self, segment: Segment) -> float:
        """Seconds of a device's segment: the only one of its plan."""
        plan = next(plan for plan in self.bundle.plans if segment in plan.segments)
        return self.speeds.device * plan.forecast.work.total_compute_s

    def run(self, seconds: float) -> list[int]:
        """Send frames as fast as the link allows; the plans after each call of `attend`."""
        seen = []
        for _ in range(round(seconds / BEAT_S)):
            self.now_s += BEAT_S
            number = self.selector.plan
            plan = self.bundle.plans[number]
            self.computes(number)
            for send in plan.uploads:
                size = send.size_bytes or 0
                for _ in range(max(1, int(BEAT_S / self.link.upload_s(size) / 2))):
                    self.passes(Lane.UPLINK, size, self.link.upload_s(size))
                for back in plan.downloads:
                    size = back.size_bytes or 0
                    self.passes(Lane.DOWNLINK, size, self.link.download_s(size))
            self.selector.speed_monitor.waited(self.speeds.server_wait_s, self.now_s)
            self.selector.attend_device(self.runs_s, self.now_s)
            self.selector.attend(self.probe, self.now_s, BEAT_S)
            seen.append(self.selector.plan)
        return seen


def test_settles_on_the_best_plan_of_the_measured_link(bundle: Bundle) -> None:
    for rate_bps, number in ((2e4, LOCAL), (2e5, SPLIT), (1e7, CLOUD)):
        world = World(bundle, rate_bps)
        world.selector.settle(world.probe)
        assert world.selector.plan == number
        assert world.loaded == [bundle.plans[number]]
        assert world.selector.link
        assert world.selector.link.up_bps == pytest.approx(rate_bps, rel=0.1)


def test_short_messages_that_pass_at_once_do_not_choose_the_first_plan(bundle: Bundle) -> None:
    """As through a token bucket, which lets 3 kB pass at once: a rate from 4 kB is 4 times off."""
    world = World(bundle, 2e7)

    def probe(size_bytes: int) -> None:
        world.probed.append(size_bytes)
        for lane, seconds_of in (
            (Lane.UPLINK, world.link.upload_s),
            (Lane.DOWNLINK, world.link.download_s),
        ):
            world.passes(lane, size_bytes, seconds_of(max(size_bytes - 3072, 0)))

    world.selector.settle(probe)
    assert world.probed[-1] > world.probed[0]
    assert world.selector.link
    assert world.selector.link.up_bps == pytest.approx(2e7, rel=0.25)


def test_settles_on_the_slow_link_plan_without_a_server(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.selector.settle(None)
    assert (world.selector.plan, world.selector.link, world.probed) == (LOCAL, None, [])


def test_follows_the_link_back_and_forth(bundle: Bundle) -> None:
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


def test_overdue_messages_lower_the_estimate(bundle: Bundle) -> None:
    """The link slows down while a tensor is on it: the next frame already follows another plan."""
    world = World(bundle, 1e7)
    assert world.run(10)[-1] == CLOUD
    stuck_s = world.now_s
    world.selector.monitor.sent(100_000)
    world.selector.monitor.pinged(1, stuck_s)
    while world.selector.plan == CLOUD:
        world.now_s += BEAT_S
        world.selector.attend(world.probe, world.now_s, BEAT_S)
        assert world.now_s - stuck_s <= 2 * LATE_S + RULE.estimates * BEAT_S
    assert world.selector.switches[-1].link.up_bps < 1e6


def test_a_short_delay_changes_nothing(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.run(10)
    for number, (size_bytes, waited_s) in enumerate(((100_000, LATE_S), (1_000, 10.0))):
        world.selector.monitor.sent(size_bytes)
        world.selector.monitor.pinged(number, world.now_s - waited_s)
        for _ in range(10):
            world.selector.attend(world.probe, world.now_s, BEAT_S)
        assert world.selector.plan == CLOUD, "not late for long, or nothing large under way"
        world.selector.monitor.ponged(number)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate_bps", [2e4, 1e5, 3e5, 5e7])
def test_no_changes_on_a_steady_link(bundle: Bundle, seed: int, rate_bps: float) -> None:
    """Noise of 10 % and one send in ten far off change nothing."""
    world = World(bundle, rate_bps, noise=0.1, seed=seed)
    world.run(10)
    before = world.changes
    world.run(30)
    assert world.changes == before
    assert world.selector.plan == bundle.plan_set.at(rate_bps)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate_bps", [4.2e4, 4.5e4, 1.5e6, 1.7e6])
def test_no_alternation_between_equally_fast_plans(
    bundle: Bundle, seed: int, rate_bps: float
) -> None:
    world = World(bundle, rate_bps, noise=0.1, seed=seed)
    seen = [plan for plan, _ in itertools.groupby(world.run(40))]
    assert len(seen) == len(set(seen)), "none is taken up again"


def test_probes_now_and_then_if_the_plan_sends_little(bundle: Bundle) -> None:
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


def test_no_probes_on_a_busy_link(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.run(5)
    assert world.selector.plan == CLOUD
    world.probed.clear()
    world.run(10)
    assert world.probed == []


def test_a_plan_that_cannot_be_loaded_is_skipped(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.refuses = lambda plan: plan.scheme == "cloud"
    assert CLOUD not in world.run(20)
    assert world.selector.plan == SPLIT, "the next best"
    assert [plan.scheme for plan in world.loaded] == ["neurosurgeon"]


def test_the_first_inference_after_a_switch_records_it(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    world.run(5)
    number, change = world.selector.take()
    assert number == CLOUD
    assert change.startswith("plan 0 -> plan 2 (")
    assert world.selector.take() == (CLOUD, "")


def test_follows_the_device(bundle: Bundle) -> None:
    """On this link all local is best; on a device that is 3 times slower, a split."""
    world = World(bundle, 3e4)
    assert world.run(5)[-1] == LOCAL
    world.speeds = Speeds(device=3.0)
    seen = world.run(5)
    assert seen[-1] != LOCAL
    assert seen[: round(3 / BEAT_S)][-1] == seen[-1], "within 3 s"
    assert world.selector.speeds.device == pytest.approx(3.0, rel=0.05)
    assert "device takes 3x as long" in str(world.selector.switches[-1])
    world.speeds = Speeds()
    assert world.run(5)[-1] == LOCAL


def test_an_idle_device_is_measured(bundle: Bundle) -> None:
    """The plan that runs has no segment on the device, which becomes fast again."""
    world = World(bundle, 1e5)
    world.speeds = Speeds(device=30.0)
    assert world.run(10)[-1] == CLOUD
    world.speeds = Speeds()
    assert world.run(8)[-1] == SPLIT


def test_follows_the_wait_at_the_server(bundle: Bundle) -> None:
    world = World(bundle, 1e7)
    assert world.run(5)[-1] == CLOUD
    world.speeds = Speeds(server_wait_s=10.0)
    assert world.run(5)[-1] == LOCAL
    world.speeds = Speeds(server_wait_s=0.01)
    assert world.run(3)[-1] == LOCAL, "it does not come back while others use the server"
    world.speeds = Speeds()
    assert world.run(6)[-1] == CLOUD, "pongs tell that nothing waits any more"


@pytest.mark.parametrize("seed", range(5))
def test_devices_of_a_busy_server_settle(bundle: Bundle, seed: int) -> None:
    """Eight devices, and a server that is best for all of them while few use it.

    They settle where no device gains by a change, and change once in 10 s at most.
    """
    worlds = [World(bundle, 2e5, seed=100 * seed + number) for number in range(8)]
    plans = bundle.plans
    cloud_s = plans[CLOUD].forecast.value_s(link(1e7))
    server_s = 0.25 * plans[LOCAL].forecast.value_s(link(1e7))  # four devices are enough

    for world in worlds:
        world.link = link(1e7)

    def wait_s(users: int) -> float:
        """At a server with one worker that is fair, all users wait equally long."""
        return max(0.0, users * server_s - cloud_s)

    history: list[list[int]] = []
    for _ in range(round(60 / BEAT_S)):
        users = sum(world.selector.plan != LOCAL for world in worlds)
        for world in worlds:
            is_user = world.selector.plan != LOCAL
            world.speeds = Speeds(server_wait_s=wait_s(users + (not is_user)))
        history.append([world.run(BEAT_S)[-1] for world in worlds])
    for device in zip(*history, strict=True):
        changes = [at * BEAT_S for at, (a, b) in enumerate(itertools.pairwise(device)) if a != b]
        settled = [at for at in changes if at > 10]
        assert all(b - a >= 9 for a, b in itertools.pairwise(settled))
    last = history[-round(10 / BEAT_S) :]
    assert len({tuple(row) for row in last}) <= 3, "few changes in the last 10 s"
    assert 3 <= sum(plan != LOCAL for plan in last[-1]) <= 5


def test_a_fixed_plan_stays(bundle: Bundle) -> None:
    selector = PlanSelector(bundle, lambda _: None, SPLIT, RULE, lambda: None)
    assert not selector.may_change
    assert selector.open_plans == selector.loaded_first == (bundle.plans[SPLIT],)
    selector.settle(None)
    selector.watch(lambda: None, lambda _: None, 0.01)
    assert selector.plan == SPLIT
    selector.close()


def test_with_one_plan_there_is_nothing_to_choose(bundle: Bundle) -> None:
    selector = PlanSelector(bundle.only(CLOUD), lambda _: None, None, RULE, lambda: None)
    assert not selector.may_change
