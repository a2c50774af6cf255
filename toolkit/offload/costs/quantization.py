"""The affine map of quantization: real = (step - zero point) * scale."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.costs.encodings import TensorFormat

Floats = npt.NDArray[np.float32]
STEPS = 255
# Below it the scale would be no normal number, and one over it infinite.
_LEAST_SCALE = np.float32(1e-30)
# A sum of finite values this small is finite: what is not tells NaN and infinity.
_MOST = 1e30
CHANNEL_AXIS = 1


@dataclass(frozen=True, slots=True)
class Affine:
    """Scale and zero point, of a tensor (one each) or of each channel.

    Attributes:
        scales: positive float32 values.
        zeros: zero points, 0 to 255.
    """

    scales: tuple[float, ...]
    zeros: tuple[int, ...]

    def quantised(self, array: Floats) -> npt.NDArray[np.uint8]:
        """As ONNX's QuantizeLinear: to the nearest step, halves to even, ends saturate."""
        scales, zeros = self._beside(array)
        steps = np.rint(array / scales) + zeros
        found: npt.NDArray[np.uint8] = np.clip(steps, 0, STEPS).astype(np.uint8)
        return found

    def restored(self, steps: npt.NDArray[np.uint8]) -> Floats:
        """As ONNX's DequantizeLinear."""
        scales, zeros = self._beside(steps)
        return (steps.astype(np.float32) - zeros) * scales

    def _beside(self, array: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Scales and zero points in a shape that broadcasts along the channels."""
        shape = [1] * array.ndim
        if len(self.scales) > 1:
            shape[CHANNEL_AXIS] = len(self.scales)
        scales = np.asarray(self.scales, np.float32).reshape(shape)
        return scales, np.asarray(self.zeros, np.float32).reshape(shape)


@dataclass(frozen=True)
class Bounds:
    """The least and greatest value of a tensor over inputs, whole and by channel.

    Attributes:
        low: least of each channel (one entry where the tensor has no channels).
        high: greatest of each.
        finite: whether no NaN, infinity or value near the type's end was seen.
    """

    low: Floats
    high: Floats
    finite: bool = True

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "Bounds":
        """Those of one float array; an empty one is bounded by 0."""
        if not array.size:
            return cls(np.zeros(1, np.float32), np.zeros(1, np.float32))
        others = tuple(axis for axis in range(array.ndim) if axis != CHANNEL_AXIS)
        # Of three axes the second is often time, and its size varies.
        keep = others if array.ndim > 3 else None
        low = np.atleast_1d(array.min(axis=keep)).astype(np.float32)
        high = np.atleast_1d(array.max(axis=keep)).astype(np.float32)
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        worst = float(np.maximum(-low, high).max()) if finite else np.inf
        return cls(low, high, worst < _MOST)

    def joined(self, other: "Bounds") -> "Bounds":
        """Those of both."""
        if self.low.shape != other.low.shape:  # a dynamic number of channels: as one
            return Bounds(
                np.minimum(self.low.min(), other.low.min()).reshape(1),
                np.maximum(self.high.max(), other.high.max()).reshape(1),
                self.finite and other.finite,
            )
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Bounds(low, high, self.finite and other.finite)

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return float(np.maximum(-self.low, self.high).max()) if self.finite else np.inf

    def affine(self, form: TensorFormat) -> Affine | None:
        """The map for a form; None where the values are not finite or have no channels."""
        if not self.finite or (form is TensorFormat.CHANNELS and len(self.low) < 2):
            return None
        apart = form is TensorFormat.CHANNELS
        low = self.low if apart else self.low.min().reshape(1)
        high = self.high if apart else self.high.max().reshape(1)
        # The range must hold 0, so that what ReLU and padding made stays exactly that.
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        scales = ((high - low) / np.float32(form.steps)).astype(np.float32)
        scales = np.where(high > low, np.maximum(scales, _LEAST_SCALE), np.float32(1))
        # Few steps leave room in a byte for values beyond the calibrated ones, on both sides.
        below = np.where(low < 0, (STEPS - form.steps) // 2, 0)
        zeros = np.clip(np.rint(-low / scales) + below, 0, STEPS)
        return Affine(tuple(map(float, scales)), tuple(map(int, zeros)))
