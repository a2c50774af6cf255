"""Which plan of a bundle the next inference follows, as the link changes.

The pilot never touches an inference: one that has begun ends by the plan it began with, so a
change falls between frames. It estimates the link from what the session sends anyway, and asks
the server to send back some bytes when that is too little to tell.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from offload.bundle.bundle import Bundle
from offload.costs.link import Link
from offload.costs.refit import LEAST_SENDS
from offload.errors import OffloadError
from offload.planning.plan import Plan
from offload.planning.plan_set import SwitchPolicy, SwitchState, best_of, step

from offload_runtimes.device.link_monitor import LATE_S, SURPRISING, LinkMonitor
from offload_runtimes.protocol.messages import MAX_PING_BYTES

LOG = logging.getLogger("offload.device")
LOG.addHandler(logging.NullHandler())

_LOST_S = 5.0  # after which a probe is not waited for any more
_PROBE_TAKES_S = 0.02  # long enough to tell a rate, short enough not to be in a frame's way
_MOST_OF_LINK = 0.1  # that probes may take on the whole, where the smallest takes long
_LEAST_PROBE_BYTES = 4096
_FIRST_WAIT_S = 1.0
_KEPT = 100


@dataclass(frozen=True, slots=True)
class PlanSwitch:
    """A change of plan.

    Attributes:
        at_s: seconds after the session began.
        before: number of the plan that was left.
        after: number of the plan taken up.
        link: the link as it was estimated then.
    """

    at_s: float
    before: int
    after: int
    link: Link

    def __str__(self) -> str:
        return f"plan {self.before} -> plan {self.after} ({self.link.describe()})"


class Probeable(Protocol):
    """What the pilot asks of a session with a server."""

    def probe(self, size_bytes: int) -> None:
        """Have so many bytes sent there and back; the gauge hears how long they took."""

    def waiting(self, now_s: float) -> tuple[int, float]:
        """What has been on its way for long: so many bytes at most, so many seconds at least."""


class PlanSelector:
    """Follows the link and chooses.

    Args:
        bundle: its plans.
        load: makes a plan's segments ready to run; may raise an OffloadError.
        only: the plan to follow whatever the link; None: the best.
        rule: how sure to be before changing plans.
        switched: called after each change.
    """

    def __init__(
        self,
        bundle: Bundle,
        load: Callable[[Plan], None],
        only: int | None,
        rule: SwitchPolicy,
        switched: Callable[[], None],
    ) -> None:
        chosen = bundle.only(only or 0).plan
        known = [plan.forecast for plan in bundle.plans if plan.forecast is not None]
        self.may_change = only is None and len(bundle.plans) == len(known) > 1
        largest = max((b or 0 for each in known for b in each.upload_bytes), default=0)
        self._link = chosen.link or _UNKNOWN
        self.gauge = LinkMonitor(self._link, min(max(largest, 1), _LEAST_PROBE_BYTES))
        self._plans = bundle.plans
        self._outputs = bundle.outputs
        self._forecasts = known
        self._load = load
        self._rule = rule
        self._switched = switched
        self._standing = SwitchState(only or 0)
        self._is_measured = False
        self._refused: set[int] = set()
        self._switches: deque[PlanSwitch] = deque(maxlen=_KEPT)
        self._mark = ""
        self._reviewed = 0
        self._probed = (-1, float("-inf"))
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def plan(self) -> int:
        """The number of the plan that the next inference follows."""
        return self._standing.plan

    @property
    def open_plans(self) -> tuple[Plan, ...]:
        """The plans that may be followed."""
        return self._plans if self.may_change else (self._plans[self.plan],)

    @property
    def loaded_first(self) -> tuple[Plan, ...]:
        """Plans to load before connecting: the one that is fixed, and those whose segments alone
        tell what a tensor that comes back is.
        """
        outputs = {value.name for value in self._outputs}
        return tuple(
            plan
            for plan in self.open_plans
            if not self.may_change or not outputs.issuperset(send.wire for send in plan.downloads)
        )

    @property
    def link(self) -> Link | None:
        """The link as it was last estimated; None when it never was."""
        return self._link if self._is_measured else None

    @property
    def switches(self) -> tuple[PlanSwitch, ...]:
        """The last changes, oldest first."""
        return tuple(self._switches)

    def take(self) -> tuple[int, str]:
        """The plan of an inference that begins now; and, if it is its first, what changed."""
        with self._lock:
            mark, self._mark = self._mark, ""
            return self._standing.plan, mark

    def settle(self, remote: Probeable | None) -> None:
        """Choose and load the first plan: by sounding the link, else the one for slow links.

        Raises:
            OffloadError: it cannot be loaded.
        """
        if remote is not None and self.may_change:
            until_s = time.monotonic() + _FIRST_WAIT_S
            for count in range(1, LEAST_SENDS + 1):
                remote.probe(self.gauge.large_bytes)
                if not self.gauge.wait(count, until_s - time.monotonic()):
                    break
            if self._estimated(time.monotonic()):
                self._standing = SwitchState(best_of(self._values(self._link)))
        self._load(self._plans[self.plan])

    def watch(self, remote: Callable[[], Probeable | None], every_s: float) -> None:
        """Attend to the link on a thread of its own until closed."""

        def attend() -> None:
            while not self._stopped.wait(every_s):
                self.attend(remote(), time.monotonic(), every_s)

        if self.may_change:
            self._thread = threading.Thread(target=attend, name="pilot", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop watching; may be called twice."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def attend(self, remote: Probeable | None, now_s: float, every_s: float) -> None:
        """Sound the link if nothing else tells of it; think again if something was seen."""
        if remote is not None and self._is_silent(now_s, every_s):
            self._probed = (self.gauge.seen, now_s)
            remote.probe(self._probe_bytes())
        slower = 1.0 if remote is None else self._slower(*remote.waiting(now_s))
        if self.gauge.seen != self._reviewed or slower > 1:
            self._reviewed = self.gauge.seen
            self.review(now_s, slower)

    def review(self, now_s: float, slower: float = 1.0) -> None:
        """Estimate the link, and change plans if another has been better for long enough.

        `slower`: how many times slower it must be than what has passed tells.
        """
        if not self._estimated(now_s):
            return
        link, before = replace(self._link, up_bps=self._link.up_bps / slower), self._standing
        after = step(before, self._values(link), now_s, self._rule)
        if after.plan != before.plan and not self._is_ready(after.plan):
            return
        with self._lock:
            self._standing = after
            if after.plan == before.plan:
                return
            switch = PlanSwitch(now_s - self._began_s, before.plan, after.plan, link)
            self._switches.append(switch)
            self._mark = str(switch)
        self._switched()
        fields = {"before": before.plan, "after": after.plan, "up_bps": round(link.up_bps)}
        LOG.info("plan switched", extra={"fields": fields})

    def _estimated(self, now_s: float) -> bool:
        """Estimate the link; whether enough was seen for that."""
        link = self.gauge.link(now_s)
        self._link = link or self._link
        self._is_measured = self._is_measured or link is not None
        return link is not None

    def _values(self, link: Link) -> list[float]:
        return [
            float("inf") if number in self._refused else forecast.value_s(link)
            for number, forecast in enumerate(self._forecasts)
        ]

    def _is_ready(self, plan: int) -> bool:
        """Load a plan before any inference follows it; one that cannot be is given up."""
        try:
            self._load(self._plans[plan])
        except OffloadError as error:
            self._refused.add(plan)
            LOG.warning("plan refused", extra={"fields": {"plan": plan, "error": str(error)}})
            return False
        return True

    def _slower(self, size_bytes: int, waited_s: float) -> float:
        """How many times slower the link must be for what is on its way to be as late as it is."""
        expected_s = self._link.upload_s(size_bytes)
        late = size_bytes >= self.gauge.large_bytes and waited_s > expected_s + LATE_S
        return max(1.0, waited_s / expected_s) if late else 1.0

    def _is_silent(self, now_s: float, every_s: float) -> bool:
        """Whether the link must be sounded: sooner while there are doubts about the plan."""
        off = self.gauge.surprise(self._link)
        doubts = self._standing.losses > 0 or self.gauge.seen < LEAST_SENDS
        doubts = doubts or not 1 / SURPRISING < off < SURPRISING
        takes_s = self._link.upload_s(self._probe_bytes())
        patience_s = max(self._rule.probe_s, takes_s / _MOST_OF_LINK)
        seen, probed_s = self._probed
        under_way = seen == self.gauge.seen and now_s - probed_s < _LOST_S
        silent_s = now_s - self.gauge.told_s
        return not under_way and silent_s >= (
            min(every_s / 2, patience_s) if doubts else patience_s
        )

    def _probe_bytes(self) -> int:
        wanted = int(self._link.up_bps * _PROBE_TAKES_S / 8)
        return min(max(wanted, self.gauge.large_bytes), MAX_PING_BYTES)


_UNKNOWN = Link(10e6, 10e6)
