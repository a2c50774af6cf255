"""How far two arrays of numbers are apart."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def difference(want: Array, got: Array) -> float:
    """Largest difference, relative to the largest value wanted; 0 for equal numbers.

    Infinite when shapes, dtypes or the places of NaN and infinity differ.
    """
    if want.shape != got.shape or want.dtype != got.dtype:
        return np.inf
    if np.array_equal(want, got, equal_nan=want.dtype.kind in "fc"):
        return 0.0
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    one, two = want.astype(wide), got.astype(wide)
    finite = np.isfinite(one) & np.isfinite(two)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return np.inf
    apart = float(np.abs(one[finite] - two[finite]).max(initial=0.0))
    scale = float(np.abs(one[finite]).max(initial=0.0))
    return apart / scale if scale else (np.inf if apart else 0.0)
