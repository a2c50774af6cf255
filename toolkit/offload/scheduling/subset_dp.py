"""Exact order of few cut points: dynamic programming over closed sets of them.

The makespan is G + max_k (F(x_1..x_k) - G(x_1..x_{k-1})): minimise the highest peak. With Y the
set of cut points still to come, R(Y) = min_{j in Y} max(peak of j now, R(Y - j)); O(2^m m) time
and 2^m numbers, whatever the size of the graph.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Masks = npt.NDArray[np.intp]


def subset_order(
    upload_s: Sequence[float], blocks: Mapping[int, float], need: Sequence[int]
) -> tuple[list[int], float]:
    """An optimal order, the smallest in the order of bits, and its highest peak in seconds."""
    count = len(upload_s)
    # By the set Y of cut points left: the compute time of all others, F(not Y).
    within = np.zeros(1 << count)  # seconds of the blocks whose signature is inside Y
    within[list(blocks)] = list(blocks.values())
    for bit in range(count):
        halves = within.reshape(-1, 2, 1 << bit)
        halves[:, 1] += halves[:, 0]
    done_compute = within[-1] - within
    # By the set left: the upload time of all others, G(not Y).
    left_upload = np.zeros(1)
    for seconds in upload_s:
        left_upload = np.concatenate([left_upload, left_upload + seconds])
    sent = left_upload[-1] - left_upload
    # By the set left: whether precedence is broken, one that is done needs one that is left.
    broken = np.zeros(1 << count, dtype=np.bool_)
    left_sets = np.arange(1 << count, dtype=np.int32)
    for bit, before in enumerate(need):
        if before:
            broken |= ((left_sets >> bit) & 1 == 0) & (left_sets & before != 0)

    peaks = np.full(1 << count, np.inf)
    peaks[0] = 0.0
    for masks, without in _layers(count):
        best = np.maximum(done_compute[without] - sent[masks], peaks[without]).min(axis=0)
        best[broken[masks]] = np.inf
        peaks[masks] = best

    # Follow the table from all left to none: take the first cut point that keeps the peak.
    left, order = (1 << count) - 1, []
    while left:
        for bit in range(count):
            after = left & ~(1 << bit)
            if after != left and max(done_compute[after] - sent[left], peaks[after]) <= peaks[-1]:
                order.append(bit)
                left = after
                break
    return order, float(peaks[-1])


@lru_cache(maxsize=24)
def _layers(count: int) -> tuple[tuple[Masks, Masks], ...]:
    """For each size k >= 1: the C masks of k bits, and each with one bit less (k x C)."""
    masks = np.arange(1 << count)
    sizes = np.zeros(1, dtype=np.int8)
    for _ in range(count):
        sizes = np.concatenate([sizes, sizes + 1])
    layers = []
    for size in range(1, count + 1):
        chosen = masks[sizes == size]
        has = (chosen[:, None] >> np.arange(count)) & 1 == 1
        without = chosen[:, None] & ~(1 << np.arange(count))
        layers.append((chosen, np.ascontiguousarray(without[has].reshape(-1, size).T)))
    return tuple(layers)
