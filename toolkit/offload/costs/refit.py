"""Keep a link's numbers up to date from the messages that are sent anyway."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offload.costs.link import LineFit, Link
from offload.errors import InputError

LEAST_SENDS = 3
HALF_LIFE_S = 30.0
_ROUNDS = 20
_TUNED = 1.345  # Huber's constant: 95 % as good as least squares where there are no outliers
_EVEN = 0.02  # what no link keeps to anyhow: less scatter than that makes no send an outlier
_OLD_SIZES = (1e3, 1e5, 1e6)
_OLD_WEIGHT = 0.03  # of all old points together, in fresh sends

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TimedMessage:
    """One message that was sent while nothing else was on its way.

    Attributes:
        size_bytes: bytes on the wire, headers left out.
        seconds_s: from the first byte out to the last byte in.
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
    """The link after a window of real sends; a direction with fewer than three stays as it was.

    Weighted least squares on relative errors: beside the newest a send counts half after each
    half-life, one that is far off, stalled or seemingly sent in no time, counts less (Huber 1964,
    by repeated reweighting). A plan sends few sizes, which cannot tell start-up and rate apart, so
    the old line, moved to the median send, takes part as a few points of small weight: it decides
    what the window leaves open. O(n log n).

    Raises:
        InputError: a size, time or age that isn't positive and finite, or a half-life that isn't
            positive.
    """
    if not half_life_s > 0:
        raise InputError("the half-life of a window must be positive")
    overhead = link.overhead
    fresh = link
    if len(up) >= LEAST_SENDS:
        line = _refit(LineFit(link.up_start_s, link.up_bps / overhead, 1.0), up, half_life_s)
        fresh = replace(
            fresh, up_bps=line.rate_bps * overhead, up_start_s=line.start_s, up_r2=line.r2
        )
    if len(down) >= LEAST_SENDS:
        line = _refit(LineFit(link.down_start_s, link.down_bps / overhead, 1.0), down, half_life_s)
        fresh = replace(
            fresh, down_bps=line.rate_bps * overhead, down_start_s=line.start_s, down_r2=line.r2
        )
    return fresh


def _refit(old: LineFit, sends: Sequence[TimedMessage], half_life_s: float) -> LineFit:
    sizes = np.array([send.size_bytes for send in sends], dtype=np.float64)
    seconds = np.array([send.seconds_s for send in sends])
    ages = np.array([send.age_s for send in sends])
    if not (np.isfinite(seconds).all() and (seconds > 0).all() and (sizes >= 0).all()):
        raise InputError("a send must have a size and a positive time")
    if not (np.isfinite(ages).all() and (ages >= 0).all()):
        raise InputError("the age of a send must be finite and not negative")
    weights = 0.5 ** ((ages - ages.min()) / half_life_s)
    old_sizes = np.array(_OLD_SIZES)
    moved = _moved(old, sizes, seconds, weights)
    old_seconds = moved.start_s + old_sizes * 8 / moved.rate_bps
    old_weights = np.full(len(old_sizes), _OLD_WEIGHT / len(old_sizes))
    start_s, slope = _robust(
        np.concatenate([sizes, old_sizes]),
        np.concatenate([seconds, old_seconds]),
        np.concatenate([moved.start_s + sizes * 8 / moved.rate_bps, old_seconds]),
        np.concatenate([weights, old_weights]),
        len(sends),
    )
    return LineFit(start_s, 8 / slope, _r2(sizes, seconds, weights, start_s, slope))


def _moved(old: LineFit, sizes: Floats, seconds: Floats, weights: Floats) -> LineFit:
    """The old line through the median send: mostly by what makes up most of its time.

    Of start-up c and transfer d, each changes by its share, step by small step, which keeps
    1/c - 1/d as it is. So a send of many bytes that takes ten times as long tells of a slower
    rate and leaves the start-up alone, and the other way round.
    """
    size = max(_median(sizes, weights), 1.0)
    start_s, transfer_s = max(old.start_s, 1e-9), size * 8 / old.rate_bps
    expected_s = start_s + sizes * 8 / old.rate_bps
    total_s = (start_s + transfer_s) * _median(seconds / expected_s, weights)
    apart = 1 / start_s - 1 / transfer_s
    # start_s = transfer_s / (1 + apart * transfer_s), and both make the total.
    half = 1 - apart * total_s / 2
    root = float(np.sqrt(half**2 + apart * total_s))
    transfer_s = total_s / (half + root) if half > 0 else (root - half) / apart
    return LineFit(total_s - transfer_s, size * 8 / transfer_s, 1.0)


def _robust(
    sizes: Floats, seconds: Floats, scale: Floats, weights: Floats, fresh: int
) -> tuple[float, float]:
    """Start-up and seconds a byte by reweighted least squares on errors relative to a scale."""
    trust = np.ones_like(seconds)
    start_s, slope = 0.0, 1.0
    for _ in range(_ROUNDS):
        start_s, slope = _line(sizes, seconds, weights * trust / scale**2)
        off = np.abs(start_s + slope * sizes - seconds) / scale
        scatter = max(1.4826 * _median(off[:fresh], weights[:fresh]), _EVEN)
        # The old points stand for what is not known better: they are never outliers.
        trust[:fresh] = np.minimum(1.0, _TUNED * scatter / np.maximum(off[:fresh], 1e-12))
    return start_s, slope


def _median(values: Floats, weights: Floats) -> float:
    """The value below and above which half of the weight is."""
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])


def _line(sizes: Floats, seconds: Floats, weights: Floats) -> tuple[float, float]:
    """Weighted least squares; neither the start-up nor the slope below zero."""
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


def _r2(sizes: Floats, seconds: Floats, weights: Floats, start_s: float, slope: float) -> float:
    """How much of the times' variance the line explains; 1 where there is none to explain."""
    middle = (weights @ seconds) / weights.sum()
    spread = float(weights @ (seconds - middle) ** 2)
    left = float(weights @ (seconds - start_s - slope * sizes) ** 2)
    if spread <= 1e-3 * float(weights @ seconds**2):
        return 1.0 if left <= spread * 2 + 1e-12 else 0.0
    return max(0.0, 1 - left / spread)
