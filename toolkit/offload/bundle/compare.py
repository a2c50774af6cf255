"""How far two answers differ, and how far they may."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a device that repeats a proof has no onnx
    from offload.graph.load import Model

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


# Largest difference that an engine's own freedom explains (other kernels, other order of sums),
# relative to the largest value of the tensor. Whole numbers, text and truth values have none.
_LIMITS: Mapping[str, float] = {
    "double": 1e-9,
    "float": 5e-5,
    "complex64": 5e-5,
    "complex128": 1e-9,
    "float16": 5e-3,
    "bfloat16": 4e-2,
}
# A value on the edge between two steps of a quantised tensor may fall to either side.
_QUANTISED_LIMIT = 5e-2
# How many times what optimisation moves in the uncut model a cut may move, and the end of that.
_OWN_TIMES = 4.0
_OWN_LIMIT = 2e-2
_QUANTISING = ("QuantizeLinear", "Integer", "QLinear", "QAttention", "MatMulNBits", "QGemm")


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What a model lets an engine round.

    Attributes:
        quantised: it rounds to few steps inside.
        half: the coarsest of its half-precision types, None without any. Engines keep more
            digits between two kernels than a cut there does, whatever the optimisation.
    """

    quantised: bool
    half: str | None

    @classmethod
    def of(cls, model: "Model") -> "Tolerances":
        """Look at a model's operators and types."""
        ops = {node.op_type for node in model.proto.graph.node}
        found = model.types.dtypes()
        halves = [kind for kind in ("bfloat16", "float16") if kind in found]
        quantised = any(word in op for op in ops for word in _QUANTISING)
        return cls(quantised, halves[0] if halves else None)

    def limit(self, dtype: str | None, optimized: bool, own: float = 0.0) -> float:
        """Largest allowed `gap` of a tensor; 0 asks for equal bits.

        Args:
            dtype: ONNX element type.
            optimized: whether the engine's optimisations are on.
            own: how far they move this tensor in the uncut model on the same inputs; a model
                that magnifies rounding (say by a sigmoid far out) is granted a few times that.
        """
        base = _LIMITS.get(dtype or "")
        if base is None:
            return _QUANTISED_LIMIT if self.quantised and optimized and _is_small(dtype) else 0.0
        allowed = [_LIMITS[self.half]] if self.half else []
        if optimized:
            allowed.extend((base, min(_OWN_TIMES * own, _OWN_LIMIT)))
            allowed.extend([_QUANTISED_LIMIT] if self.quantised else [])
        return max(allowed, default=0.0)


def _is_small(dtype: str | None) -> bool:
    return dtype in ("int8", "uint8", "int16", "uint16", "int32")


def gap(want: Any, got: Any, dtype: str | None = None) -> float:
    """Largest difference relative to the largest value wanted; 0 for equal bits.

    Infinite when dtypes, shapes, or the places of NaN and infinity differ, and for different
    text. Sequences and maps are compared item by item.

    Args:
        want: the right answer.
        got: the answer in question.
        dtype: ONNX element type, for `bfloat16` carried as its bits.
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
