"""Share the frames of a stream among the plans of a bundle."""

import contextlib
import heapq
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from offload.costs.link import Link
from offload.planning.plan import PLANNED_SPEEDS, Plan, Speeds
from offload.planning.shares import shares_within, take_turn, window_for

# Rules for the plans that share frames; among these the shares follow every measurement.
_MARGIN = 0.1  # of the frames per second that other plans must gain
_ESTIMATES = 3  # in so many estimates in a row
_DWELL_S = 10.0  # the least seconds between two changes of the plans


class FrameSharing:
    """Chooses the plan of each frame, so that device, link and server are busy at once.

    The shares follow from the plans' use of each resource on the link and at the speeds as they
    are now. While there is no server, all frames go to plans that need none.
    """

    def __init__(self, plans: Sequence[Plan], link: Link) -> None:
        """`link`: the link to share for, until `update`."""
        self._forecasts = [plan.forecast for plan in plans]
        self._needs_server = [not plan.is_local for plan in plans]
        self._lock = threading.Lock()
        self._setting: tuple[int, bool] | None = None
        self._is_new = True  # whether the estimate is newer than the shares
        self._members: tuple[int, ...] = ()
        self._losses = 0
        self._since_s = float("-inf")
        self._shares: tuple[float, ...] = ()
        self._credits: tuple[float, ...] = ()
        self.update(link)

    def update(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> None:
        """Use another estimate of the link and the speeds."""
        with self._lock:
            self._uses = [forecast.use(link, speeds) for forecast in self._forecasts]
            self._latencies_s = [f.latency_s(link, speeds) for f in self._forecasts]
            self._window = window_for(self._uses, self._latencies_s)
            self._is_new = True

    @property
    def window(self) -> int:
        """The frames that must be under way at once to keep all resources busy."""
        return self._window

    def take(
        self, window: int, waiting: Sequence[int], *, has_server: bool, now_s: float
    ) -> int | None:
        """Index of the plan of the next frame.

        Args:
            window: the largest number of frames under way at once.
            waiting: by plan, the frames that are not computed yet.
            has_server: whether there is a server now.
            now_s: the time, by `time.monotonic`.

        Returns:
            None if every plan needs a server and there is none.
        """
        with self._lock:
            if self._is_new or self._setting != (window, has_server):
                able = [n for n, needs in enumerate(self._needs_server) if has_server or not needs]
                if not able:
                    self._setting = None
                    return None
                is_same = self._setting is not None and self._setting[1] == has_server
                self._setting, self._is_new = (window, has_server), False
                self._choose(window, able, now_s, is_same)
            plan, self._credits = take_turn(self._credits, self._shares, waiting)
            return plan

    def _choose(self, window: int, able: Sequence[int], now_s: float, is_same: bool) -> None:
        """Set the shares; keep the current plans while other plans gain little."""
        shares, rate_hz = self._shared(able, window)
        if is_same and self._members:
            kept, kept_hz = self._shared(self._members, window)
            self._losses = self._losses + 1 if rate_hz > kept_hz * (1 + _MARGIN) else 0
            if self._losses < _ESTIMATES or now_s - self._since_s < _DWELL_S:
                self._shares = kept
                return
            self._since_s = now_s
        self._members = tuple(plan for plan in able if shares[plan] > 0)
        self._shares, self._losses = shares, 0
        # A plan that got no frames must not have earned any.
        self._credits = (0.0,) * len(shares)

    def _shared(self, plans: Sequence[int], window: int) -> tuple[tuple[float, ...], float]:
        """The best shares of some plans, by index of all plans, and the frames per second."""
        uses = [self._uses[plan] for plan in plans]
        latencies_s = [self._latencies_s[plan] for plan in plans]
        shares, rate_hz = shares_within(uses, latencies_s, window)
        by_plan = dict(zip(plans, shares, strict=True))
        return tuple(by_plan.get(plan, 0.0) for plan in range(len(self._uses))), rate_hz


class ComputeOrder:
    """Lets one frame at a time compute on the device.

    Frames that use the link go first, so that the link does not wait for a frame that needs only
    the device; then the earlier frame.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[tuple[bool, int]] = []
        self._is_busy = False
        self._changed = threading.Condition()

    def new_place(self, *, uses_link: bool) -> tuple[bool, int]:
        """The place of a new frame in the order."""
        return not uses_link, next(self._numbers)

    def computing(self, place: tuple[bool, int] | None) -> AbstractContextManager[None]:
        """Wait for the device, and keep it for the block; without a place, do not wait."""
        return contextlib.nullcontext() if place is None else self._turn(place)

    @contextlib.contextmanager
    def _turn(self, place: tuple[bool, int]) -> Iterator[None]:
        with self._changed:
            heapq.heappush(self._waiting, place)
            while self._is_busy or self._waiting[0] != place:
                self._changed.wait()
            heapq.heappop(self._waiting)
            self._is_busy = True
        try:
            yield
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
