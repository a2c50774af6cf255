"""Compare tensors: their largest relative difference, and the tolerance for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a device that repeats a proof has no onnx
    from offload.graph.load import Model

Array = np.ndarray[Any, np.dtype[Any]]


def difference(want: Array, got: Array) -> float:
    """Largest difference, relative to the largest expected value; 0 for equal numbers.

    Infinite when shapes, dtypes or the positions of NaN and infinity differ.
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


# Largest difference that rounding explains (other kernels, another order of sums), relative to the
# largest value of the tensor. Integers, text and booleans must be equal.
_LIMITS: Mapping[str, float] = {
    "double": 1e-9,
    "float": 5e-5,
    "complex64": 5e-5,
    "complex128": 1e-9,
    "float16": 5e-3,
    "bfloat16": 4e-2,
}
# A value between two steps of a quantised tensor may be rounded to either step.
_QUANTISED_LIMIT = 5e-2
# The tolerance as a multiple of the difference that optimisations cause in the uncut model, and
# its upper limit.
_OWN_TIMES = 4.0
_OWN_LIMIT = 2e-2
_QUANTISED_DTYPES = ("int8", "uint8", "int16", "uint16", "int32")
_QUANTISING = ("QuantizeLinear", "Integer", "QLinear", "QAttention", "MatMulNBits", "QGemm")


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The rounding that a model's operators and types allow.

    Attributes:
        quantised: whether the model contains quantised operators.
        half: the coarsest of its half-precision types, None without any. Engines keep more digits
            between two kernels than a cut does, with or without optimisations.
    """

    quantised: bool
    half: str | None

    @classmethod
    def of(cls, model: "Model") -> "Tolerances":
        """The tolerances of a model, from its operators and types."""
        ops = {node.op_type for node in model.proto.graph.node}
        dtypes = model.types.dtypes()
        half = next((dtype for dtype in ("bfloat16", "float16") if dtype in dtypes), None)
        return cls(any(word in op for op in ops for word in _QUANTISING), half)

    def limit(self, dtype: str | None, optimized: bool, own: float = 0.0) -> float:
        """Largest allowed `gap` of a tensor; 0 requires equal bits.

        Args:
            dtype: ONNX element type.
            optimized: whether the engine's optimisations are on.
            own: the gap that they cause in the uncut model on the same inputs; a model that
                magnifies rounding gets a multiple of it.
        """
        base = _LIMITS.get(dtype or "")
        if base is None:
            may_round = self.quantised and optimized and dtype in _QUANTISED_DTYPES
            return _QUANTISED_LIMIT if may_round else 0.0
        allowed = [_LIMITS[self.half]] if self.half else []
        if optimized:
            allowed.extend((base, min(_OWN_TIMES * own, _OWN_LIMIT)))
            allowed.extend([_QUANTISED_LIMIT] if self.quantised else [])
        return max(allowed, default=0.0)


def gap(want: Any, got: Any, dtype: str | None = None) -> float:
    """Largest difference relative to the largest expected value; 0 for equal bits.

    Infinite when dtypes, shapes, or the positions of NaN and infinity differ, and for different
    text. Sequences and maps are compared item by item.

    Args:
        want: the expected value.
        got: the value to check.
        dtype: ONNX element type; needed for `bfloat16`, which is stored as its bits.
    """
    if isinstance(want, Mapping):
        same = isinstance(got, Mapping) and want.keys() == got.keys()
        return _worst((want[key], got[key]) for key in want) if same else np.inf
    if isinstance(want, list | tuple):
        same = isinstance(got, list | tuple) and len(want) == len(got)
        return _worst(zip(want, got, strict=True)) if same else np.inf
    one, two = np.asarray(want), np.asarray(got)
    if one.dtype != two.dtype or one.shape != two.shape:
        return np.inf
    if one.dtype.kind not in "biufc":
        return 0.0 if np.array_equal(one, two) else np.inf
    return difference(_widened(one, dtype), _widened(two, dtype))


def _worst(pairs: Iterable[tuple[Any, Any]]) -> float:
    return max((gap(want, got) for want, got in pairs), default=0.0)


def _widened(array: Array, dtype: str | None) -> Array:
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
