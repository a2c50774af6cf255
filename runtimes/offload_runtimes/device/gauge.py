"""What the link has carried lately, and what that says of its speed."""

import threading
import time
from collections import deque

from offload.costs.link import Link
from offload.costs.refit import LEAST_SENDS, Sent, refit
from offload.scheduling.timeline import Lane

KEPT = 24
HALF_LIFE_S = 2.0
SURPRISING = 1.5  # a message that took so many times what it should
LATE_S = 0.3  # and so much longer: no mere hiccup
_PAST_S = 10 * HALF_LIFE_S  # added to the age of what was seen before the link changed


class Gauge:
    """A window of passages each way; threads of the session put them in.

    Small messages tell what a message costs whatever its size, large ones what a byte costs.
    Each kind is kept apart, so that many of one do not push out the few of the other.

    Args:
        base: the link that plans were made for: what the window leaves open is as there.
        large_bytes: from this size on a message is large.
    """

    def __init__(self, base: Link, large_bytes: int = 4096) -> None:
        self.large_bytes = large_bytes
        self._base = base
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._passages: dict[tuple[Lane, bool], deque[tuple[int, float, float]]] = {}
        self._changes: dict[Lane, _Change] = {}
        self.forget()

    @property
    def seen(self) -> int:
        """How many messages were seen to go up, those of the past included."""
        return self._seen

    @property
    def told_s(self) -> float:
        """When the last large one was, by `time.monotonic`; in the endless past before that."""
        return self._told_s

    def forget(self) -> None:
        """Begin anew: the next connection may take another way."""
        with self._lock:
            kinds = [(lane, large) for lane in _LANES for large in (False, True)]
            self._passages = {kind: deque(maxlen=KEPT) for kind in kinds}
            self._changes = {lane: _Change() for lane in _LANES}
            self._estimate = self._base
            self._seen = 0
            self._told_s = float("-inf")

    def passed(
        self, lane: Lane, size_bytes: int, seconds: float, now_s: float | None = None
    ) -> None:
        """Note that a message passed; `now_s` is when, None: now.

        One that seems to have taken no time tells nothing: clocks are not told apart so well.
        """
        if seconds <= 0:
            return
        is_large = size_bytes >= self.large_bytes
        with self._lock:
            when_s = time.monotonic() if now_s is None else now_s
            self._passages[lane, is_large].append((size_bytes, seconds, when_s))
            if is_large:
                self._changes[lane].passed(seconds, self._expected_s(lane, size_bytes), when_s)
            if lane is Lane.UPLINK:
                self._seen += 1
                self._told_s = when_s if is_large else self._told_s
                self._changed.notify_all()

    def wait(self, count: int, timeout_s: float) -> bool:
        """Wait until so many messages were seen to go up; whether they were before the time."""
        with self._lock:
            return self._changed.wait_for(lambda: self._seen >= count, timeout_s)

    def link(self, now_s: float) -> Link | None:
        """The link as it is now; None before three messages have gone up."""
        with self._lock:
            up, down = (self._sent(lane, now_s) for lane in _LANES)
        if len(up) < LEAST_SENDS:
            return None
        newest_s, *ages_s = sorted(send.age_s for send in up)[:LEAST_SENDS]
        # Where little is sent, the last three count: no single one decides.
        spread_s = max((s - newest_s for s in ages_s if s - newest_s < _PAST_S), default=0.0)
        self._estimate = refit(self._base, up, down, max(HALF_LIFE_S, spread_s))
        return self._estimate

    def surprise(self, link: Link) -> float:
        """How far off the last large message was: 1 where it took as long as the link says."""
        with self._lock:
            kept = self._passages[Lane.UPLINK, True]
            last = kept[-1] if kept else None
        return 1.0 if last is None else last[1] / link.upload_s(last[0])

    def _sent(self, lane: Lane, now_s: float) -> list[Sent]:
        kept = (*self._passages[lane, False], *self._passages[lane, True])
        since_s = self._changes[lane].since_s
        return [
            Sent(size, seconds, max(now_s - when_s, 0.0) + (_PAST_S if when_s < since_s else 0.0))
            for size, seconds, when_s in kept
        ]

    def _expected_s(self, lane: Lane, size_bytes: int) -> float:
        link = self._estimate
        cost_s = link.upload_s if lane is Lane.UPLINK else link.download_s
        return cost_s(size_bytes)


class _Change:
    """Notices that one way of the link has become slower for good, not for one message.

    Attributes:
        since_s: when it did; in the endless past at first.
    """

    def __init__(self) -> None:
        self.since_s = float("-inf")
        self._first_s = 0.0
        self._late_s = 0.0

    def passed(self, seconds: float, expected_s: float, when_s: float) -> None:
        """Two late messages in a row, late enough together, make what came before the past."""
        if seconds <= SURPRISING * expected_s:
            self._late_s = 0.0
            return
        is_first = not self._late_s
        self._first_s = when_s if is_first else self._first_s
        self._late_s += seconds - expected_s
        if not is_first and self._late_s > LATE_S:
            self.since_s = self._first_s


_LANES = (Lane.UPLINK, Lane.DOWNLINK)
