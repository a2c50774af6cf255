"""Share the frames of a stream among the plans of a bundle."""

import contextlib
import heapq
import itertools
import threading
from collections.abc import Iterator, Sequence

from offload.costs.link import Link
from offload.planning.plan import PLANNED_SPEEDS, Plan, Speeds
from offload.planning.shares import shares_within, take_turn, window_for


class FrameSharing:
    """Chooses the plan of each frame, so that device, link and server are busy at once.

    The shares follow from the plans' use of each resource on the link as it is now. While there
    is no server, all frames go to plans that need none.
    """

    def __init__(self, plans: Sequence[Plan], link: Link) -> None:
        """`link`: where the plans are used, until `update`."""
        self._forecasts = [plan.forecast for plan in plans]
        self._needs_server = [not plan.is_local for plan in plans]
        self._lock = threading.Lock()
        self._setting: tuple[int, bool] | None = None
        self._shares: tuple[float, ...] = ()
        self._credits: tuple[float, ...] = ()
        self.update(link)

    def update(self, link: Link, speeds: Speeds = PLANNED_SPEEDS) -> None:
        """Compute the shares for another link and other speeds."""
        with self._lock:
            self._uses = [forecast.use(link, speeds) for forecast in self._forecasts]
            self._latencies_s = [f.latency_s(link, speeds) for f in self._forecasts]
            self._setting = None

    @property
    def window(self) -> int:
        """The frames that must be under way at once to keep all resources busy."""
        with self._lock:
            return window_for(self._uses, self._latencies_s)

    def take(self, window: int, *, has_server: bool) -> int | None:
        """Index of the plan of the next frame.

        Args:
            window: the largest number of frames under way at once.
            has_server: whether there is a server now.

        Returns:
            None if every plan needs a server and there is none.
        """
        with self._lock:
            if self._setting != (window, has_server):
                self._setting = window, has_server
                self._set_shares(window, has_server)
            if not any(self._shares):
                return None
            plan, self._credits = take_turn(self._credits, self._shares)
            return plan

    def _set_shares(self, window: int, has_server: bool) -> None:
        able = [n for n, needs in enumerate(self._needs_server) if has_server or not needs]
        shares = [0.0] * len(self._uses)
        if able:
            uses = [self._uses[number] for number in able]
            latencies_s = [self._latencies_s[number] for number in able]
            for number, share in zip(able, shares_within(uses, latencies_s, window), strict=True):
                shares[number] = share
        if [share > 0 for share in shares] != [share > 0 for share in self._shares]:
            # A plan that gets no frames must not earn any for later.
            self._credits = (0.0,) * len(shares)
        self._shares = tuple(shares)


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

    @contextlib.contextmanager
    def computing(self, place: tuple[bool, int] | None) -> Iterator[None]:
        """Wait for the device, and keep it for the block; without a place, do not wait."""
        if place is None:
            yield
            return
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
