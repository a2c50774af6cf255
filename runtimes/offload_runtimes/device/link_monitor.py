"""What the device knows of its server and the link: speed, clock, signs of life."""

import threading
import time
from collections import deque

from offload.costs.link import Link
from offload.costs.refit import LEAST_SENDS, TimedMessage, refit
from offload.scheduling.timeline import Lane

KEPT = 24
HALF_LIFE_S = 2.0
SURPRISING = 1.5  # a message that took so many times what it should
LATE_S = 0.3  # and so much longer: no mere hiccup
_PAST_S = 10 * HALF_LIFE_S  # added to the age of what was seen before the link changed


class LinkMonitor:
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

    def _sent(self, lane: Lane, now_s: float) -> list[TimedMessage]:
        kept = (*self._passages[lane, False], *self._passages[lane, True])
        since_s = self._changes[lane].since_s
        return [
            TimedMessage(
                size, seconds, max(now_s - when_s, 0.0) + (_PAST_S if when_s < since_s else 0.0)
            )
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


_SLOWEST_BPS = 1e6  # assumed of a link until something large was seen to pass
_LARGE_BYTES = 16_384  # smaller tensors say little about a link's rate


class ServerClock:
    """The server's clock as seen from here: of all pings, the quickest tells best."""

    def __init__(self) -> None:
        self._rtt_s = float("inf")
        self._ahead_s = 0.0

    def learn(self, sent_s: float, server_s: float, received_s: float) -> None:
        """Take a ping into account; half of its round trip is the error at most."""
        if received_s - sent_s <= self._rtt_s:
            self._rtt_s = received_s - sent_s
            self._ahead_s = server_s - (sent_s + received_s) / 2

    def here_s(self, server_s: float) -> float:
        """A time of the server's clock in seconds of this machine's."""
        return server_s - self._ahead_s


class Liveness:
    """Whether the server still lives: its silence, measured against what the link carries.

    A message waits behind the tensors before it, so silence is judged by the bytes on the way
    and the rate the link was last seen to have.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._heard_s = time.monotonic()
        self._asked_s: float | None = None
        self._sent_bytes = 0
        self._passed_bytes = 0
        self._marks: dict[int, tuple[int, float]] = {}
        self._rate_bps = {Lane.UPLINK: _SLOWEST_BPS, Lane.DOWNLINK: _SLOWEST_BPS}

    def sent(self, size_bytes: int) -> None:
        """A message went to the link."""
        self._sent_bytes += size_bytes

    def asked(self, number: int, now_s: float) -> None:
        """A ping went to the link, behind all that was sent before it."""
        self._marks[number] = self._sent_bytes, now_s
        if self._asked_s is None:
            self._asked_s = now_s

    def answered(self, number: int) -> None:
        """A ping came back: all before it has passed."""
        before_bytes, _ = self._marks.pop(number, (0, 0.0))
        self._passed_bytes = max(self._passed_bytes, before_bytes)

    def waiting(self, now_s: float) -> tuple[int, float]:
        """What the oldest unanswered ping waits behind: so many bytes at most, so long at least."""
        if not self._marks:
            return 0, 0.0
        before_bytes, asked_s = next(iter(self._marks.values()))
        return before_bytes - self._passed_bytes, now_s - asked_s

    def heard(self, now_s: float) -> None:
        """Something came from the server."""
        self._heard_s = now_s
        self._asked_s = None

    def passed(self, lane: Lane, size_bytes: int, seconds: float) -> None:
        """A tensor is known to have passed in so many seconds."""
        if size_bytes >= _LARGE_BYTES and seconds > 0:
            self._rate_bps[lane] = size_bytes * 8 / seconds

    def is_gone(self, now_s: float, coming_bytes: int) -> bool:
        """Whether a ping has waited for longer than any live server would let it.

        Args:
            now_s: the time, by `time.monotonic`.
            coming_bytes: bytes of answers that may be on their way.
        """
        if self._asked_s is None:
            return False
        up_s = (self._sent_bytes - self._passed_bytes) * 8 / self._rate_bps[Lane.UPLINK]
        down_s = coming_bytes * 8 / self._rate_bps[Lane.DOWNLINK]
        silent_s = now_s - max(self._asked_s, self._heard_s)
        return silent_s > self._patience_s + 2 * (up_s + down_s)
