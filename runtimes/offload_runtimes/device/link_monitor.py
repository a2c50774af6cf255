"""Monitor the link to the server from the session's own messages: costs, lost server, clock."""

import threading
import time
from collections import deque
from copy import copy, deepcopy

from offload.costs.link import Link
from offload.costs.link_fit import LEAST_SENDS, TimedMessage, refit
from offload.scheduling.timeline import Lane

WINDOW = 24
HALF_LIFE_S = 2.0
SURPRISING = 1.5  # a late message took this many times as long as expected
LATE_S = 0.3  # two late messages in a row mean a slower link if together this much too late
_OBSOLETE_S = 10 * HALF_LIFE_S  # added to the age of messages from before the link changed
_SLOWEST_BPS = 1e6  # assumed rate before a large tensor has passed
_LARGE_BYTES = 16_384  # smaller tensors do not show a link's rate
_LANES = (Lane.UPLINK, Lane.DOWNLINK)


class _Direction:
    """What was seen of one direction of the link.

    Attributes:
        messages: small and large messages that passed: bytes, seconds, when.
        slower_since_s: when the direction became slower for good.
        first_late_s: when the current run of late messages began.
        late_s: how much too late the messages of that run were, in all.
        rate_bps: rate at which the last large tensor passed.
    """

    def __init__(self) -> None:
        self.messages = {
            is_large: deque[tuple[int, float, float]](maxlen=WINDOW) for is_large in (False, True)
        }
        self.slower_since_s = float("-inf")
        self.first_late_s = 0.0
        self.late_s = 0.0
        self.rate_bps = _SLOWEST_BPS

    def notice_change(self, seconds: float, expected_s: float, when_s: float) -> None:
        """Two late messages in a row, late enough together, make earlier ones obsolete."""
        if seconds <= SURPRISING * expected_s:
            self.late_s = 0.0
            return
        is_first = not self.late_s
        if is_first:
            self.first_late_s = when_s
        self.late_s += seconds - expected_s
        if not is_first and self.late_s > LATE_S:
            self.slower_since_s = self.first_late_s

    def timed_messages(self, now_s: float) -> list[TimedMessage]:
        """All messages of the window with their age."""
        return [
            TimedMessage(
                size_bytes,
                seconds,
                max(now_s - when_s, 0.0) + (_OBSOLETE_S if when_s < self.slower_since_s else 0.0),
            )
            for messages in self.messages.values()
            for size_bytes, seconds, when_s in messages
        ]


class LinkMonitor:
    """Measures the link, and detects a lost server, from the messages of a connection.

    The link's costs are refitted from a window of messages in each direction. Small messages show
    the cost of a message of any size, large ones the cost of a byte; they are kept apart, so that
    many of one kind do not displace the few of the other.

    The server counts as lost if it is silent for too long after a ping. A message waits behind
    the tensors before it, so the allowed silence depends on the bytes under way and on the rate at
    which the last large tensor passed. Any thread may call it.

    Attributes:
        large_bytes: from this size on, a message is large.
        uploads: number of uploaded messages that were timed since the last `reset`.
        last_large_s: when the last large upload was timed, by `time.monotonic`; -inf: never.
    """

    def __init__(self, base: Link, large_bytes: int = 4096) -> None:
        """`base` is the link that the plans were made for: the fit starts from it."""
        self.large_bytes = large_bytes
        self._base = base
        self._changed = threading.Condition()
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new connection may take another route."""
        with self._changed:
            self._directions = {lane: _Direction() for lane in _LANES}
            self._estimate = self._base
            self.uploads = 0
            self.last_large_s = float("-inf")
            self._heard_s = time.monotonic()
            self._silent_since_s: float | None = None
            self._sent_bytes = 0
            self._passed_bytes = 0
            self._pings: dict[int, tuple[int, float]] = {}  # bytes sent before it, when

    def copy(self) -> "LinkMonitor":
        """Another monitor that has seen the same messages so far."""
        with self._changed:
            other = copy(self)
            vars(other).update(
                _changed=threading.Condition(),
                _directions=deepcopy(self._directions),
                _pings=dict(self._pings),
            )
        return other

    def passed(
        self, lane: Lane, size_bytes: int, seconds: float, now_s: float | None = None
    ) -> None:
        """Record how long a message took; `now_s`: when that became known, None: now.

        Messages that seem to have taken no time are ignored: the clocks are not that exact.
        """
        if seconds <= 0:
            return
        is_large = size_bytes >= self.large_bytes
        with self._changed:
            when_s = time.monotonic() if now_s is None else now_s
            direction = self._directions[lane]
            direction.messages[is_large].append((size_bytes, seconds, when_s))
            if is_large:
                link = self._estimate
                cost_s = link.upload_s if lane is Lane.UPLINK else link.download_s
                direction.notice_change(seconds, cost_s(size_bytes), when_s)
            if lane is Lane.UPLINK:
                self.uploads += 1
                if is_large:
                    self.last_large_s = when_s
                self._changed.notify_all()

    def tensor_passed(self, lane: Lane, size_bytes: int, seconds: float) -> None:
        """Record the rate of a tensor; it bounds how long the server may be silent."""
        if size_bytes >= _LARGE_BYTES and seconds > 0:
            with self._changed:
                self._directions[lane].rate_bps = size_bytes * 8 / seconds

    def wait(self, uploads: int, timeout_s: float) -> bool:
        """Wait until this many uploads were timed; whether they were in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.uploads >= uploads, timeout_s)

    def link(self, now_s: float) -> Link | None:
        """Estimate of the link now; None before three uploads were timed."""
        with self._changed:
            up, down = (self._directions[lane].timed_messages(now_s) for lane in _LANES)
        if len(up) < LEAST_SENDS:
            return None
        newest_s, *ages_s = sorted(send.age_s for send in up)[:LEAST_SENDS]
        # Where little is sent, the last three count: no single one decides.
        spread_s = max((s - newest_s for s in ages_s if s - newest_s < _OBSOLETE_S), default=0.0)
        self._estimate = refit(self._base, up, down, max(HALF_LIFE_S, spread_s))
        return self._estimate

    def surprise(self, link: Link) -> float:
        """Time of the last large upload, relative to the time on `link`; 1 if there was none."""
        with self._changed:
            uploads = self._directions[Lane.UPLINK].messages[True]
            last = uploads[-1] if uploads else None
        return 1.0 if last is None else last[1] / link.upload_s(last[0])

    def sent(self, size_bytes: int) -> None:
        """A message was handed to the link."""
        with self._changed:
            self._sent_bytes += size_bytes

    def pinged(self, number: int, now_s: float) -> None:
        """A ping was handed to the link, behind everything sent before it."""
        with self._changed:
            self._pings[number] = self._sent_bytes, now_s
            if self._silent_since_s is None:
                self._silent_since_s = now_s

    def ponged(self, number: int) -> None:
        """A ping was answered: everything sent before it has passed."""
        with self._changed:
            before_bytes, _ = self._pings.pop(number, (0, 0.0))
            self._passed_bytes = max(self._passed_bytes, before_bytes)

    def waiting(self, now_s: float) -> tuple[int, float]:
        """Bytes before the oldest unanswered ping that have not passed, and the ping's age."""
        with self._changed:
            if not self._pings:
                return 0, 0.0
            before_bytes, pinged_s = next(iter(self._pings.values()))
            return before_bytes - self._passed_bytes, now_s - pinged_s

    def heard(self, now_s: float) -> None:
        """A message came from the server."""
        with self._changed:
            self._heard_s = now_s
            self._silent_since_s = None

    def is_lost(self, now_s: float, expected_bytes: int, patience_s: float) -> bool:
        """Whether a ping has been unanswered for longer than a live server would take.

        Args:
            now_s: the time, by `time.monotonic`.
            expected_bytes: bytes of answers that may be on their way.
            patience_s: silence allowed in addition to the time of all bytes under way.
        """
        with self._changed:
            if self._silent_since_s is None:
                return False
            up_bytes = self._sent_bytes - self._passed_bytes
            up_s = up_bytes * 8 / self._directions[Lane.UPLINK].rate_bps
            down_s = expected_bytes * 8 / self._directions[Lane.DOWNLINK].rate_bps
            silent_s = now_s - max(self._silent_since_s, self._heard_s)
            return silent_s > patience_s + 2 * (up_s + down_s)


class ServerClock:
    """The server's clock relative to this machine's, from the ping with the smallest round trip."""

    def __init__(self) -> None:
        self._round_trip_s = float("inf")
        self._ahead_s = 0.0

    def learn(self, sent_s: float, server_s: float, received_s: float) -> None:
        """Use a ping; the error is at most half of its round trip."""
        if received_s - sent_s <= self._round_trip_s:
            self._round_trip_s = received_s - sent_s
            self._ahead_s = server_s - (sent_s + received_s) / 2

    def here_s(self, server_s: float) -> float:
        """Convert a time of the server's clock to this machine's."""
        return server_s - self._ahead_s
