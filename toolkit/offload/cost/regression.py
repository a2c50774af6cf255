"""Fit the link model to samples: seconds = c + bytes * 8 / b."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.cost.link import MIN_R2, Link, unsteady
from offload.errors import InputError

MIN_SIZES = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One message that was timed.

    Attributes:
        size_bytes: its payload.
        up_s: seconds to reach the server.
        down_s: seconds for a message of the same size to come back.
    """

    size_bytes: int
    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line: start-up seconds, bits per second, coefficient of determination."""

    start_s: float
    rate_bps: float
    r2: float


def fit_line(sizes_bytes: Sequence[float], seconds: Sequence[float]) -> Line:
    """Least squares on the medians of each size, c not below zero.

    Repeats of a size are first reduced to their median, so one stalled message does not bend
    the line; where the free intercept is negative, the line is refitted through the origin.
    O(n log n) in the number of samples.

    Raises:
        InputError: fewer than three sizes, a rate that isn't positive, or r2 below 0.9.
    """
    sizes, medians = _medians(sizes_bytes, seconds)
    if len(sizes) < MIN_SIZES:
        raise InputError(f"link fit needs at least {MIN_SIZES} message sizes, got {len(sizes)}")
    slope, start_s = _least_squares(sizes, medians)
    if slope <= 0:
        raise InputError("link fit failed: larger messages were not slower; probe again, larger")
    residual = float(np.sum((medians - start_s - slope * sizes) ** 2))
    spread = float(np.sum((medians - medians.mean()) ** 2))
    r2 = 1.0 - residual / spread if spread > 0 else 0.0
    if r2 < MIN_R2:
        raise InputError(unsteady(r2))
    return Line(start_s, 8 / slope, r2)


def fit_link(samples: Sequence[Sample]) -> Link:
    """A link from timed messages, both directions fitted apart.

    Raises:
        InputError: as `fit_line`.
    """
    sizes = [sample.size_bytes for sample in samples]
    up = fit_line(sizes, [sample.up_s for sample in samples])
    down = fit_line(sizes, [sample.down_s for sample in samples])
    return Link(
        up.rate_bps,
        down.rate_bps,
        up.start_s,
        down.start_s,
        up_r2=up.r2,
        down_r2=down.r2,
    )


def _medians(
    sizes_bytes: Sequence[float], seconds: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    by_size: dict[float, list[float]] = {}
    for size, second in zip(sizes_bytes, seconds, strict=True):
        by_size.setdefault(float(size), []).append(second)
    sizes = sorted(by_size)
    return np.array(sizes), np.array([float(np.median(by_size[size])) for size in sizes])


def _least_squares(
    sizes: NDArray[np.float64],
    seconds: NDArray[np.float64],
) -> tuple[float, float]:
    slope, start_s = (float(value) for value in np.polyfit(sizes, seconds, 1))
    if start_s < 0:
        return float(sizes @ seconds / (sizes @ sizes)), 0.0
    return slope, start_s
