"""Compare outputs whose length depends on data: their rows are matched, not their places.

A detector's boxes, or the places where something was found, come in any number and order. What
one answer has and the other lacks is a change; what both have is compared row with row.
"""

import math
from collections import Counter
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Pairs of rows whose distances are held at once; longer outputs are matched in sorted order.
_MOST_PAIRS = 1 << 20


def varying_axis(*arrays: Array) -> int | None:
    """The one axis along which arrays of equal rank differ in length; None if there isn't one."""
    if len({array.ndim for array in arrays}) != 1:
        return None
    lengths = zip(*(array.shape for array in arrays), strict=True)
    axes = [axis for axis, sizes in enumerate(lengths) if len(set(sizes)) > 1]
    return axes[0] if len(axes) == 1 else None


def matched_change(want: Array, got: Array, axis: int) -> tuple[float, float]:
    """Largest and mean change of an output whose length along an axis depends on data.

    Each row of one is matched with the nearest row of the other that is still free. Matched
    floats change by their difference relative to the range of the wanted output. Rows without a
    partner, and rows of whole numbers, truth values or text that have no equal, change entirely:
    the largest change is at least their share of all rows, the mean counts each of them as 1.

    O(n m) for n and m rows of floats, at most a million pairs; O(n log n) else.
    """
    one, two = _rows(want, axis), _rows(got, axis)
    count = max(len(one), len(two))
    if not count:
        return 0.0, 0.0
    if want.dtype.kind != "f":
        common = Counter(map(tuple, one.tolist())) & Counter(map(tuple, two.tolist()))
        share = 1 - sum(common.values()) / count
        return share, share
    wide, other = one.astype(np.float64), two.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    spread = spread or (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0
    apart = _apart(wide, other) / spread
    lonely = count - len(apart)
    worst = max(float(apart.max(initial=0.0)), lonely / count)
    mean = (float(apart.mean(axis=1).sum()) if apart.size else 0.0) + lonely
    return worst, mean / count


def _rows(array: Array, axis: int) -> Array:
    """One row for each place along an axis."""
    moved: Array = np.moveaxis(array, axis, 0)
    rows: Array = moved.reshape(moved.shape[0], math.prod(moved.shape[1:]))
    return rows


def _apart(one: Array, two: Array) -> Array:
    """Differences of matched rows, as many as the shorter has; infinite where only one is NaN."""
    places, partners = _pairs(one, two)
    first, second = one[places], two[partners]
    with np.errstate(invalid="ignore"):
        apart: Array = np.abs(first - second)
    apart[first == second] = 0.0
    apart[np.isnan(first) & np.isnan(second)] = 0.0
    apart[np.isnan(apart)] = np.inf
    return apart


def _pairs(one: Array, two: Array) -> tuple[Array, Array]:
    """Places of matched rows: the nearest pair first, then the nearest of those left."""
    count = min(len(one), len(two))
    if len(one) * len(two) > _MOST_PAIRS:
        return _sorted(one)[:count], _sorted(two)[:count]
    far = np.zeros((len(one), len(two)))
    for column in range(one.shape[1]):
        with np.errstate(invalid="ignore"):
            far = np.fmax(far, np.abs(one[:, column, None] - two[None, :, column]))
    free_rows, free_others = np.ones(len(one), bool), np.ones(len(two), bool)
    found = []
    for flat in np.argsort(far, axis=None, kind="stable"):
        row, other = divmod(int(flat), len(two))
        if free_rows[row] and free_others[other]:
            free_rows[row] = free_others[other] = False
            found.append((row, other))
            if len(found) == count:
                break
    places = np.array(found, np.int64).reshape(-1, 2)
    return places[:, 0], places[:, 1]


def _sorted(rows: Array) -> Array:
    """Places in lexicographic order, the first column first."""
    order: Array = np.lexsort(rows.T[::-1])
    return order
