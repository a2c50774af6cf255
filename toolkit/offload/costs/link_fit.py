"""Fit a link to measured messages: once after a probe, again and again during inference."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offload.costs.link import Link, check_steady
from offload.errors import InputError

MIN_SIZES = 3
LEAST_SENDS = 3
HALF_LIFE_S = 30.0
_ROUNDS = 20
_HUBER = 1.345  # 95 % as efficient as least squares when there are no outliers
_MIN_SCATTER = 0.02  # relative; every link varies this much, so less is not an outlier
_OLD_SIZES = (1e3, 1e5, 1e6)
_OLD_WEIGHT = 0.03  # of all old points together; one recent message weighs 1

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed message.

    Attributes:
        size_bytes: its payload.
        up_s: seconds to reach the server.
        down_s: seconds for a message of the same size to come back.
    """

    size_bytes: int
    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class LineFit:
    """A fitted line: start-up seconds, bits per second, coefficient of determination."""

    start_s: float
    rate_bps: float
    r2: float


def fit_line(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> LineFit:
    """Fit c + w / b by least squares to the median time of each size, with c >= 0.

    The median makes one stalled message harmless. If the free intercept is negative, the line is
    refitted through the origin. O(n log n) in the number of samples.

    Raises:
        InputError: fewer than three sizes, a rate that isn't positive, or r2 below 0.9.
    """
    by_size: dict[float, list[float]] = {}
    for size, second in zip(sizes_bytes, seconds, strict=True):
        by_size.setdefault(float(size), []).append(second)
    if len(by_size) < MIN_SIZES:
        raise InputError(f"link fit needs at least {MIN_SIZES} message sizes, got {len(by_size)}")
    sizes = np.array(sorted(by_size))
    medians = np.array([float(np.median(by_size[size])) for size in sizes.tolist()])
    slope, start_s = (float(value) for value in np.polyfit(sizes, medians, 1))
    if start_s < 0:
        slope, start_s = float(sizes @ medians / (sizes @ sizes)), 0.0
    if slope <= 0:
        raise InputError("link fit failed: larger messages were not slower; probe again, larger")
    residual = float(np.sum((medians - start_s - slope * sizes) ** 2))
    spread = float(np.sum((medians - medians.mean()) ** 2))
    r2 = 1.0 - residual / spread if spread > 0 else 0.0
    check_steady(r2)
    return LineFit(start_s, 8 / slope, r2)


def fit_link(samples: Sequence[Sample]) -> Link:
    """Fit a link to timed messages, each direction separately.

    Raises:
        InputError: as `fit_line`.
    """
    sizes = [sample.size_bytes for sample in samples]
    up = fit_line(sizes, [sample.up_s for sample in samples])
    down = fit_line(sizes, [sample.down_s for sample in samples])
    rates, starts = (up.rate_bps, down.rate_bps), (up.start_s, down.start_s)
    return Link(*rates, *starts, up_r2=up.r2, down_r2=down.r2)


@dataclass(frozen=True, slots=True)
class TimedMessage:
    """One message that was sent while no other message was in flight.

    Attributes:
        size_bytes: bytes on the wire, without headers.
        seconds_s: from the first byte sent to the last byte received.
        age_s: seconds since then.
    """

    size_bytes: int
    seconds_s: float
    age_s: float = 0.0


def refit(
    link: Link,
    up: Sequence[TimedMessage],
    down: Sequence[TimedMessage] = (),
    half_life_s: float = HALF_LIFE_S,
) -> Link:
    """Refit a link to recent messages; a direction with fewer than three stays unchanged.

    Weighted least squares on relative errors. The weight of a message halves with each half-life
    that it is older than the newest; outliers, such as stalled messages or those that seem to take
    no time, weigh less (Huber 1964, by repeated reweighting). A plan sends messages of few sizes,
    which cannot separate start-up time and rate. So the old line, moved to the median message,
    takes part as a few points of small weight: it decides what the messages leave open.
    O(n log n).

    Raises:
        InputError: a size, time or age that isn't positive and finite, or a half-life that isn't
            positive.
    """
    if not half_life_s > 0:
        raise InputError("the half-life of a window must be positive")
    overhead = link.overhead
    if len(up) >= LEAST_SENDS:
        old = LineFit(link.up_start_s, link.up_bps / overhead, 1.0)
        fit = _refit_line(old, up, half_life_s)
        link = replace(link, up_bps=fit.rate_bps * overhead, up_start_s=fit.start_s, up_r2=fit.r2)
    if len(down) >= LEAST_SENDS:
        old = LineFit(link.down_start_s, link.down_bps / overhead, 1.0)
        fit = _refit_line(old, down, half_life_s)
        rate_bps = fit.rate_bps * overhead
        link = replace(link, down_bps=rate_bps, down_start_s=fit.start_s, down_r2=fit.r2)
    return link


def _refit_line(old: LineFit, messages: Sequence[TimedMessage], half_life_s: float) -> LineFit:
    sizes = np.array([message.size_bytes for message in messages], dtype=np.float64)
    seconds = np.array([message.seconds_s for message in messages])
    ages = np.array([message.age_s for message in messages])
    if not (np.isfinite(seconds).all() and (seconds > 0).all() and (sizes >= 0).all()):
        raise InputError("a message must have a size and a positive time")
    if not (np.isfinite(ages).all() and (ages >= 0).all()):
        raise InputError("the age of a message must be finite and not negative")
    weights = 0.5 ** ((ages - ages.min()) / half_life_s)
    moved = _move_to_median(old, sizes, seconds, weights)

    # The messages, then the points of the old line.
    count, old_sizes = len(messages), np.array(_OLD_SIZES)
    old_weights = np.full(len(old_sizes), _OLD_WEIGHT / len(old_sizes))
    all_sizes = np.concatenate([sizes, old_sizes])
    scale = moved.start_s + all_sizes * 8 / moved.rate_bps
    all_seconds = np.concatenate([seconds, scale[count:]])
    all_weights = np.concatenate([weights, old_weights])
    trust = np.ones_like(all_seconds)
    for _ in range(_ROUNDS):
        start_s, slope = _fit_weighted(all_sizes, all_seconds, all_weights * trust / scale**2)
        error = np.abs(start_s + slope * all_sizes - all_seconds)[:count] / scale[:count]
        scatter = max(1.4826 * _weighted_median(error, weights), _MIN_SCATTER)
        # The old points stand for missing knowledge: they are never outliers.
        trust[:count] = np.minimum(1.0, _HUBER * scatter / np.maximum(error, 1e-12))

    middle = (weights @ seconds) / weights.sum()
    spread = float(weights @ (seconds - middle) ** 2)
    residual = float(weights @ (seconds - start_s - slope * sizes) ** 2)
    if spread > 1e-3 * float(weights @ seconds**2):
        r2 = max(0.0, 1 - residual / spread)
    else:  # there is no variance to explain
        r2 = 1.0 if residual <= spread * 2 + 1e-12 else 0.0
    return LineFit(start_s, 8 / slope, r2)


def _move_to_median(old: LineFit, sizes: Floats, seconds: Floats, weights: Floats) -> LineFit:
    """Move the old line through the median message, mainly by the larger part of its time.

    Start-up time c and transfer time d each change in proportion to their share, in infinitely
    small steps, which keeps 1/c - 1/d constant. So a large message that takes ten times as long
    lowers the rate and leaves the start-up time alone; a small one does the opposite.
    """
    size = max(_weighted_median(sizes, weights), 1.0)
    start_s, transfer_s = max(old.start_s, 1e-9), size * 8 / old.rate_bps
    expected_s = start_s + sizes * 8 / old.rate_bps
    total_s = (start_s + transfer_s) * _weighted_median(seconds / expected_s, weights)
    apart = 1 / start_s - 1 / transfer_s
    # start_s = transfer_s / (1 + apart * transfer_s), and their sum is total_s.
    half = 1 - apart * total_s / 2
    root = float(np.sqrt(half**2 + apart * total_s))
    transfer_s = total_s / (half + root) if half > 0 else (root - half) / apart
    return LineFit(total_s - transfer_s, size * 8 / transfer_s, 1.0)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _fit_weighted(sizes: Floats, seconds: Floats, weights: Floats) -> tuple[float, float]:
    """Start-up time and seconds per byte by weighted least squares, both at least 0."""
    total = weights.sum()
    size, second = (weights @ sizes) / total, (weights @ seconds) / total
    spread = weights @ (sizes - size) ** 2
    slope = float(weights @ ((sizes - size) * (seconds - second)) / spread)
    start_s = float(second - slope * size)
    if start_s < 0:
        return 0.0, float(weights @ (sizes * seconds) / (weights @ sizes**2))
    if slope <= 0:
        return float(second), 1e-12
    return start_s, slope


_RANGE_LINKS = 9  # of the range that plans are made for
_RANGE_MARGIN = 2.0  # the range goes from half of the slow rate to twice the fast rate


@dataclass(frozen=True)
class ProbedLink:
    """The link between device and server, as probed.

    Attributes:
        link: fitted to the median of the timed messages.
        slow_bps: 10th percentile of the upload rate of large messages.
        fast_bps: 90th percentile.
        round_trip_s: of a small message.
    """

    link: Link
    slow_bps: float
    fast_bps: float
    round_trip_s: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "ProbedLink":
        """Summarise a probe.

        Raises:
            InputError: the link is too unsteady to be modelled.
        """
        link = fit_link(samples)
        largest = max(sample.size_bytes for sample in samples)
        rates = [
            8 * sample.size_bytes / max(sample.up_s - link.up_start_s, 1e-9)
            for sample in samples
            if sample.size_bytes >= largest / 8
        ]
        smallest = min(sample.size_bytes for sample in samples)
        small = [s.up_s + s.down_s for s in samples if s.size_bytes == smallest]
        slow, fast = (float(np.quantile(rates, share)) for share in (0.1, 0.9))
        return cls(link, min(slow, link.up_bps), max(fast, link.up_bps), statistics.median(small))

    def range(self) -> tuple[Link, ...]:
        """Links around the probed one, ascending; it is one of them."""
        low, high = self.slow_bps / _RANGE_MARGIN, self.fast_bps * _RANGE_MARGIN
        rates = {*np.geomspace(low, high, _RANGE_LINKS).tolist(), self.link.up_bps}
        down = self.link.down_bps / self.link.up_bps
        return tuple(
            replace(self.link, up_bps=rate, down_bps=rate * down, up_r2=None, down_r2=None)
            if rate != self.link.up_bps
            else self.link
            for rate in sorted(rates)
        )
