"""Emulate a slower device: sleep after each piece of work for as long as it would still compute."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from offload.bundle.bundle import Bundle
from offload.errors import InputError
from offload.planning.plan import Segment, Send

from offload_runtimes.device.segment_executor import (
    FrameTensors,
    SegmentExecutor,
    WarmRunTimes,
)
from offload_runtimes.engine import Array, Call, EngineOptions
from offload_runtimes.protocol.messages import PackedTensor


class Pacer(WarmRunTimes):
    """Makes this machine behave like one that is `slowdown` times slower.

    Each run of a piece of work takes `slowdown` times its median warm duration, or its own
    duration if that is longer. Pacing to the duration just measured would amplify cold starts and
    noise. Sessions that share a pacer are paced alike: its keys are digests of the work's content.
    """

    def __init__(
        self,
        slowdown: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not slowdown >= 1:
            raise InputError(f"slow-down must be at least 1, not {slowdown:g}")
        super().__init__()
        self.slowdown = slowdown
        self._clock = clock
        self._sleep = sleep
        self._is_settled = False

    def add(self, key: str, duration_s: float) -> None:
        """Record how long a warm run took on this machine; nothing more after `settle`."""
        if not self._is_settled:
            super().add(key, duration_s)

    def settle(self, factor: float = 1.0) -> Mapping[str, float]:
        """Use the shortest duration of each key from now on, so that all runs take equally long.

        Other load on the machine only ever makes work take longer. All durations are multiplied
        by `factor`, to correct for a machine that is slower now than when it was measured. They are
        returned by key: a pacer of another process that adds and settles them paces alike.
        """
        with self._lock:
            self._is_settled = True
            self._durations = {
                key: [factor * min(durations)] for key, durations in self._durations.items()
            }
            return {key: duration_s for key, (duration_s,) in self._durations.items()}

    def pace(self, key: str, start_s: float | None = None) -> None:
        """Sleep until a slower machine that began at `start_s` would be done.

        None: this machine has just done the work, or is about to, in its median time.
        """
        if self.slowdown > 1 and (warm_s := self.median_s(key)) is not None:
            began_s = self._clock() - warm_s if start_s is None else start_s
            sleep_until(began_s + self.slowdown * warm_s, self._clock, self._sleep)


def as_pacer(slowdown: float | WarmRunTimes) -> Pacer:
    """The pacer for a session's `slowdown` option: a factor, or a pacer that sessions share."""
    if isinstance(slowdown, Pacer):
        return slowdown
    if isinstance(slowdown, WarmRunTimes):
        raise InputError("slowdown must be a number or a Pacer")
    return Pacer(slowdown)


class PacedExecutor(SegmentExecutor):
    """A SegmentExecutor that computes and encodes at the speed of a slower device."""

    def __init__(self, bundle: Bundle, options: EngineOptions, pacer: Pacer) -> None:
        super().__init__(bundle, options, pacer)
        self._pacer = pacer

    def run(
        self,
        segment: Segment,
        frame: FrameTensors,
        until_s: float | None = None,
        unless: Iterable[str] = (),
    ) -> float:
        """Run a segment; learn its run time first if loading could not (dynamic shapes)."""
        key = self._key(segment, frame.rows)
        if self._pacer.slowdown > 1 and self._pacer.median_s(key) is None:
            self.warm_up(segment, self._feeds(segment, frame, until_s), frame.rows)
        return super().run(segment, frame, until_s, unless)

    def compute(
        self, segment: Segment, call: Call, feeds: Mapping[str, Array], rows: int
    ) -> list[Array]:
        """Run a segment at the slower speed."""
        start_s = time.monotonic()
        arrays = super().compute(segment, call, feeds, rows)
        self._pacer.pace(self._key(segment, rows), start_s)
        return arrays

    def encode(self, send: Send, array: Any) -> PackedTensor:
        """Encode a tensor at the slower speed."""
        key = f"encode {send.wire}"
        start_s, thread_s = time.monotonic(), time.thread_time()
        packed = super().encode(send, array)
        self._pacer.add(key, time.thread_time() - thread_s)
        self._pacer.pace(key, start_s)
        return packed

    def estimate_s(self, segments: Iterable[Segment], rows: int = 0) -> float | None:
        """Usual time of several segments on the slower device."""
        total_s = super().estimate_s(segments, rows)
        return None if total_s is None else self._pacer.slowdown * total_s


def sleep_until(
    due_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sleep until a point in time; continue if a sleep ends early."""
    while (left_s := due_s - clock()) > 0:
        sleep(left_s)
