"""Exact order of few cut points: dynamic programming over closed sets of them.

The makespan is G + max_k (F(x_1..x_k) - G(x_1..x_{k-1})): minimise the highest peak. With Y the
set of cut points still to come, R(Y) = min_{j in Y} max(peak of j now, R(Y - j)); O(2^m m) time
and 2^m numbers, whatever the size of the graph.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.intp]


def subset_order(
    upload_s: Sequence[float], blocks: Mapping[int, float], need: Sequence[int]
) -> tuple[list[int], float]:
    """An optimal order, the smallest in the order of bits, and its highest peak in seconds."""
    count = len(upload_s)
    done_compute = _compute_when_left(count, blocks)
    left_upload = _sums(upload_s)
    peaks = np.full(1 << count, np.inf)
    peaks[0] = 0.0
    open_sets = _not_closed(count, need)
    total = left_upload[-1]
    for masks, without in _layers(count):
        now = done_compute[without] - (total - left_upload[masks])
        best = np.maximum(now, peaks[without]).min(axis=0)
        if open_sets is not None:
            best[open_sets[masks]] = np.inf
        peaks[masks] = best
    return _walk(count, done_compute, total - left_upload, peaks), float(peaks[-1])


def _walk(count: int, done_compute: Floats, sent: Floats, peaks: Floats) -> list[int]:
    """Follow the table from all left to none, always taking the first cut point that is good."""
    left, limit, order = (1 << count) - 1, peaks[-1], []
    while left:
        for bit in range(count):
            after = left & ~(1 << bit)
            if after != left and max(done_compute[after] - sent[left], peaks[after]) <= limit:
                order.append(bit)
                left = after
                break
    return order


def _compute_when_left(count: int, blocks: Mapping[int, float]) -> Floats:
    """By the set Y of cut points left: seconds of compute of all the others, F(not Y)."""
    inside = np.zeros(1 << count)
    inside[list(blocks)] = list(blocks.values())
    for bit in range(count):
        halves = inside.reshape(-1, 2, 1 << bit)
        halves[:, 1] += halves[:, 0]
    outside: Floats = inside[-1] - inside
    return outside


def _sums(values: Sequence[float]) -> Floats:
    """Sum of the values of every subset, by mask."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def _not_closed(count: int, need: Sequence[int]) -> npt.NDArray[np.bool_] | None:
    """By the set left: whether a cut point is done before one that it needs."""
    if not any(need):
        return None
    left = np.arange(1 << count, dtype=np.int32)
    broken = np.zeros(1 << count, dtype=np.bool_)
    for bit, before in enumerate(need):
        if before:
            broken |= ((left >> bit) & 1 == 0) & (left & before != 0)
    return broken


@lru_cache(maxsize=24)
def _layers(count: int) -> tuple[tuple[Masks, Masks], ...]:
    """For each size k >= 1: the C masks of k bits, and each with one bit less (k x C)."""
    masks = np.arange(1 << count)
    sizes = np.zeros(1, dtype=np.int8)
    for _ in range(count):
        sizes = np.concatenate([sizes, sizes + 1])
    found = []
    for size in range(1, count + 1):
        chosen = masks[sizes == size]
        has = (chosen[:, None] >> np.arange(count)) & 1 == 1
        without = chosen[:, None] & ~(1 << np.arange(count))
        found.append((chosen, np.ascontiguousarray(without[has].reshape(-1, size).T)))
    return tuple(found)
