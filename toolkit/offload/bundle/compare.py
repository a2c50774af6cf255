"""Compare tensors: their largest relative difference, and the tolerance for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a device that repeats a proof has no onnx
    from offload.graph.load import Model

Array = np.ndarray[Any, np.dtype[Any]]


def difference(expected: Any, actual: Any, dtype: str | None = None) -> float:
    """Largest difference, relative to the largest expected value; 0 for equal numbers.

    Infinite when shapes, dtypes or the positions of NaN and infinity differ, and for different
    text. Sequences and maps are compared item by item.

    Args:
        expected: the expected value.
        actual: the value to check.
        dtype: ONNX element type; needed for `bfloat16`, which is stored as its bits.
    """
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or expected.keys() != actual.keys():
            return np.inf
        keys = list(expected)
        expected, actual = [expected[key] for key in keys], [actual[key] for key in keys]
    if isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(expected) != len(actual):
            return np.inf
        return max(map(difference, expected, actual), default=0.0)
    first, second = np.asarray(expected), np.asarray(actual)
    if first.dtype != second.dtype or first.shape != second.shape:
        return np.inf
    if np.array_equal(first, second, equal_nan=first.dtype.kind in "fc"):
        return 0.0
    if first.dtype.kind not in "biufc":
        return np.inf
    if dtype == "bfloat16" and first.dtype == np.uint16:
        first, second = (
            (bits.astype(np.uint32) << 16).view(np.float32) for bits in (first, second)
        )
    wide = np.complex128 if first.dtype.kind == "c" else np.float64
    first, second = first.astype(wide), second.astype(wide)
    finite = np.isfinite(first) & np.isfinite(second)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return np.inf
    apart = float(np.abs(first[finite] - second[finite]).max(initial=0.0))
    scale = float(np.abs(first[finite]).max(initial=0.0))
    return apart / scale if scale else (np.inf if apart else 0.0)


def same_class(expected: Any, actual: Any) -> bool | None:
    """Whether every row of class scores has the same largest class; None: these are no scores.

    Scores are floats with an axis of rows and an axis of at least two classes.
    """
    first, second = np.asarray(expected), np.asarray(actual)
    if first.dtype.kind != "f" or first.ndim != 2 or first.shape[1] < 2:
        return None
    return first.shape == second.shape and bool((first.argmax(1) == second.argmax(1)).all())


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
        """Largest allowed `difference` of a tensor; 0 requires equal bits.

        Args:
            dtype: ONNX element type.
            optimized: whether the engine's optimisations are on.
            own: the difference that they cause in the uncut model on the same inputs; a model that
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
