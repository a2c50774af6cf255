"""What the device knows of the server from a distance: its clock and its signs of life."""

import time

from offload.scheduling.timeline import Lane

_SLOWEST_BPS = 1e6  # assumed of a link until something large was seen to pass
_LARGE_BYTES = 16_384  # smaller tensors say little about a link's rate


class Clock:
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


class Pulse:
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
