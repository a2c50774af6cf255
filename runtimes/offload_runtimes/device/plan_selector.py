"""Choose the plan of the next inference, as the link and the speeds of both sides change.

An inference that has begun ends by its own plan, so a change falls between frames. The link is
estimated from the session's own messages; if they are too few, the server is asked to send some
bytes back. The speeds are those of the session's own segments; while the device has none to run,
it runs a short one now and then.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import random
from typing import TypeAlias

from offload.bundle.bundle import Bundle
from offload.costs.link import Link
from offload.costs.link_fit import LEAST_SENDS
from offload.errors import OffloadError
from offload.planning.plan import PLANNED_SPEEDS, Plan, Segment, Speeds
from offload.planning.plan_set import SwitchPolicy, SwitchState, best_of, step

from offload_runtimes.device.counters import LOG
from offload_runtimes.device.frame_sharing import FrameSharing
from offload_runtimes.device.link_monitor import LATE_S, SURPRISING, LinkMonitor
from offload_runtimes.device.speed_monitor import SpeedMonitor
from offload_runtimes.protocol.messages import MAX_PING_BYTES

# Sends this many bytes to the server and back; the link monitor records their times.
Probe: TypeAlias = Callable[[int], None]
# Runs a segment of the device and returns its seconds; None if it cannot.
DeviceProbe: TypeAlias = Callable[[Segment], float | None]
_UNKNOWN_LINK = Link(10e6, 10e6)
_LOST_PROBE_S = 5.0  # a probe that is not answered by then does not delay the next one
_PROBE_S = 0.02  # time of a probe: long enough to measure a rate, too short to delay a frame
_PROBE_SHARE = 0.1  # of the link's time, at most, in the long run
_SMALLEST_PROBE_BYTES = 4096
_FIRST_PROBES_S = 1.0
_FIRST_PROBES = 8  # at most
_GROWS = 1.25  # probe again while the probe for the estimated rate would be larger by this factor
_SWITCHES = 100  # that are remembered
_IDLE_DEVICE_S = 1.0  # without a frame that measures the device
_DEVICE_PROBE_SHARE = 0.1
# After a session left a busy server: the least time away, and how long it returns by turns only.
_AWAY_S, _CAUTIOUS_S = 10.0, 60.0
_IDLE_SERVER = 0.02  # a wait below this share of an inference


@dataclass(frozen=True, slots=True)
class PlanSwitch:
    """A change of plan.

    Attributes:
        at_s: seconds after the session began.
        before: index of the old plan.
        after: index of the new plan.
        link: estimate of the link at that time.
        speeds: estimate of the speeds at that time.
    """

    at_s: float
    before: int
    after: int
    link: Link
    speeds: Speeds = PLANNED_SPEEDS

    def __str__(self) -> str:
        why = f"{self.link.describe()}; {self.speeds.describe()}"
        return f"plan {self.before} -> plan {self.after} ({why})"


class PlanSelector:
    """Estimates the link and chooses the plan of the next inference.

    Args:
        bundle: the bundle with the plans.
        load: loads a plan's segments; may raise an OffloadError.
        only: index of the plan to follow on every link; None: the best plan.
        policy: how certain to be before changing plans.
        switched: called after each change.
        draw: returns a random number from 0 to 1.

    Attributes:
        monitor: measures the link.
        speed_monitor: measures both sides.
        may_change: whether there are several plans to choose from.
        sharing: shares the frames of a stream among the plans; None: a stream follows one plan.
    """

    def __init__(
        self,
        bundle: Bundle,
        load: Callable[[Plan], None],
        only: int | None,
        policy: SwitchPolicy,
        switched: Callable[[], None],
        draw: Callable[[], float] = random,
    ) -> None:
        chosen = bundle.only(only or 0).plan
        forecasts = [plan.forecast for plan in bundle.plans]
        self.may_change = only is None and len(bundle.plans) > 1
        largest = max((size or 0 for f in forecasts for size in f.upload_bytes), default=0)
        self._link = chosen.link or _UNKNOWN_LINK
        self.monitor = LinkMonitor(self._link, min(max(largest, 1), _SMALLEST_PROBE_BYTES))
        is_shared = self.may_change and bool(bundle.shares)
        self.sharing = FrameSharing(bundle.plans, self._link) if is_shared else None
        self.speed_monitor = SpeedMonitor(bundle.plans)
        self._speeds = PLANNED_SPEEDS
        self._plans = bundle.plans
        self._outputs = bundle.outputs
        self._forecasts = forecasts
        self._load = load
        self._policy = policy
        self._switched = switched
        self._draw = draw
        self._left_crowd_s = float("-inf")  # when it last left a plan because of others' work
        self._state = SwitchState(only or 0)
        self._is_measured = False
        self._refused: set[int] = set()
        self._switches: deque[PlanSwitch] = deque(maxlen=_SWITCHES)
        self._change = ""  # for the timeline of the next inference
        self._reviewed = (0, 0)  # uploads and measurements of speed
        self._probe_device_s = float("-inf")  # not before
        self._last_probe = (-1, float("-inf"))  # uploads before it, when
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def plan(self) -> int:
        """Index of the plan that the next inference follows."""
        return self._state.plan

    @property
    def open_plans(self) -> tuple[Plan, ...]:
        """The plans to choose from."""
        return self._plans if self.may_change else (self._plans[self.plan],)

    @property
    def loaded_first(self) -> tuple[Plan, ...]:
        """Plans to load before connecting.

        A fixed plan, and plans with downloads whose types only the device's segments define.
        """
        outputs = {value.name for value in self._outputs}
        return tuple(
            plan
            for plan in self.open_plans
            if not self.may_change or not outputs.issuperset(send.wire for send in plan.downloads)
        )

    @property
    def link(self) -> Link | None:
        """Last estimate of the link; None if there was none."""
        return self._link if self._is_measured else None

    @property
    def speeds(self) -> Speeds:
        """Last estimate of the speeds of device and server."""
        return self._speeds

    @property
    def switches(self) -> tuple[PlanSwitch, ...]:
        """The last changes, oldest first."""
        return tuple(self._switches)

    def take(self) -> tuple[int, str]:
        """Index of the plan of a new inference, and a text about the change if it is its first."""
        with self._lock:
            change, self._change = self._change, ""
            return self._state.plan, change

    def settle(self, probe: Probe | None) -> None:
        """Choose and load the first plan: probe the link, else take the plan for slow links.

        The probes grow with the estimated rate, up to a second in all: short messages pass faster
        than the link's rate, and a wrong first plan is kept while the best gains less than the
        policy's margin.

        Args:
            probe: probes the link; None: there is no connection.

        Raises:
            OffloadError: the plan cannot be loaded.
        """
        if probe is not None and self.may_change:
            until_s = time.monotonic() + _FIRST_PROBES_S
            for count in range(1, _FIRST_PROBES + 1):
                size_bytes = max(self.monitor.large_bytes, self._probe_bytes())
                probe(size_bytes)
                if not self.monitor.wait(count, until_s - time.monotonic()):
                    break
                self._update_link(time.monotonic())
                if count >= LEAST_SENDS and self._probe_bytes() <= _GROWS * size_bytes:
                    break
            if self._is_measured:
                self._state = SwitchState(best_of(self._values(self._link, self._speeds)))
        self._load(self._plans[self.plan])

    def watch(
        self,
        current_probe: Callable[[], Probe | None],
        probe_device: DeviceProbe,
        every_s: float,
    ) -> None:
        """Call `attend` and `attend_device` on a thread of its own until closed."""

        def attend() -> None:
            while not self._stopped.wait(every_s):
                self.attend_device(probe_device, time.monotonic())
                self.attend(current_probe(), time.monotonic(), every_s)

        if self.may_change:
            self._thread = threading.Thread(target=attend, name="plan selector", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching; may be called twice."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def attend(self, probe: Probe | None, now_s: float, every_s: float) -> None:
        """Probe the link if nothing else measures it; review the plan if there is news.

        Args:
            probe: probes the link; None: there is no connection.
            now_s: the time, by `time.monotonic`.
            every_s: seconds between calls.
        """
        monitor, link = self.monitor, self._link
        slower = 1.0  # how many times slower the link must be, if bytes under way are overdue
        if probe is not None:
            if self._must_probe(now_s, every_s):
                self._last_probe = (monitor.uploads, now_s)
                probe(self._probe_bytes())
            size_bytes, waited_s = monitor.waiting(now_s)
            expected_s = link.upload_s(size_bytes)
            if size_bytes >= monitor.large_bytes and waited_s > expected_s + LATE_S:
                slower = max(1.0, waited_s / expected_s)
        news = monitor.uploads, self.speed_monitor.samples
        if news != self._reviewed or slower > 1:
            self._reviewed = news
            self.review(now_s, slower)

    def attend_device(self, probe: DeviceProbe, now_s: float) -> None:
        """Measure the device if no frame does: run its shortest segment on zeros.

        At most 10 % of the device's time, and only of segments that are loaded.
        """
        idle_s = now_s - self.speed_monitor.device_at_s
        if idle_s < _IDLE_DEVICE_S or now_s < self._probe_device_s:
            return
        for plan, name in self.speed_monitor.device_segments():
            took_s = probe(self._plans[plan].segment(name))
            if took_s is not None:
                self.speed_monitor.computed(plan, name, took_s, now_s + took_s)
                self._probe_device_s = now_s + took_s / _DEVICE_PROBE_SHARE
                return
        self._probe_device_s = now_s + _IDLE_DEVICE_S

    def review(self, now_s: float, slower: float = 1.0) -> None:
        """Estimate link and speeds; change plans if another one has been better for long enough.

        `slower`: divide the estimated upload rate by this number.
        """
        if not self._update_link(now_s):
            return
        link, before = replace(self._link, up_bps=self._link.up_bps / slower), self._state
        after = step(before, self._values(link, self._speeds), now_s, self._policy)
        if after.plan != before.plan:
            if not self._takes_turn(link, before.plan, after.plan, now_s):
                return
            try:
                self._load(self._plans[after.plan])  # before any inference follows it
            except OffloadError as error:
                self._refused.add(after.plan)
                fields = {"plan": after.plan, "error": str(error)}
                LOG.warning("plan refused", extra={"fields": fields})
                return
        with self._lock:
            self._state = after
            if after.plan == before.plan:
                return
            switch = PlanSwitch(now_s - self._began_s, before.plan, after.plan, link, self._speeds)
            self._switches.append(switch)
            self._change = str(switch)
        self._switched()
        LOG.info(
            "plan switched",
            extra={
                "fields": {
                    "before": before.plan,
                    "after": after.plan,
                    "up_bps": round(link.up_bps),
                }
            },
        )

    def _update_link(self, now_s: float) -> bool:
        """Estimate the link; whether there were enough messages."""
        link = self.monitor.link(now_s)
        self._link = link or self._link
        self._is_measured = self._is_measured or link is not None
        self._speeds = self.speed_monitor.speeds(now_s)
        if link is not None and self.sharing:
            self.sharing.update(link, self._speeds)
        return link is not None

    def _takes_turn(self, link: Link, before: int, after: int, now_s: float) -> bool:
        """Whether to change plans now, if the reason is the work of other devices at the server.

        All devices of a busy server see the same wait. If all left it at once, it would be idle,
        and all would come back. So each changes with a probability that is the share of its time
        that it gains, until the wait shows what the others did; and it does not come back for some
        time, unless the server is idle.
        """
        values = self._values(link, self._speeds)
        alone = self._values(link, replace(self._speeds, server_wait_s=0.0))
        leaves = alone[before] <= alone[after] * (1 + self._policy.margin)
        away_s = now_s - self._left_crowd_s
        use_s = [forecast.use(link).server_s for forecast in self._forecasts]
        returns = away_s < _CAUTIOUS_S and use_s[after] > use_s[before]
        if not (leaves or returns):
            return True
        gain = 1 - values[after] / values[before]
        is_idle = self._speeds.server_wait_s < _IDLE_SERVER * values[after]
        if (returns and away_s < _AWAY_S and not is_idle) or self._draw() >= gain:
            return False
        self._left_crowd_s = now_s if leaves else self._left_crowd_s
        return True

    def _values(self, link: Link, speeds: Speeds) -> list[float]:
        return [
            float("inf") if number in self._refused else forecast.value_s(link, speeds)
            for number, forecast in enumerate(self._forecasts)
        ]

    def _must_probe(self, now_s: float, every_s: float) -> bool:
        """Whether to probe the link: sooner while the plan or the estimate is in doubt."""
        uploads, probed_s = self._last_probe
        if uploads == self.monitor.uploads and now_s - probed_s < _LOST_PROBE_S:
            return False  # a probe is under way
        is_in_doubt = (
            self._state.losses > 0
            or self.monitor.uploads < LEAST_SENDS
            or not 1 / SURPRISING < self.monitor.surprise(self._link) < SURPRISING
        )
        probe_s = self._link.upload_s(self._probe_bytes())
        interval_s = max(self._policy.probe_s, probe_s / _PROBE_SHARE)
        if is_in_doubt:
            interval_s = min(every_s / 2, interval_s)
        return now_s - self.monitor.last_large_s >= interval_s

    def _probe_bytes(self) -> int:
        size_bytes = int(self._link.up_bps * _PROBE_S / 8)
        return min(max(size_bytes, self.monitor.large_bytes), MAX_PING_BYTES)
