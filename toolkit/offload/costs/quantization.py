"""The affine map of quantization: real = (step - zero point) * scale."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.costs.encodings import TensorFormat

Floats = npt.NDArray[np.float32]
STEPS = 255
# A smaller scale would be subnormal, and its reciprocal infinite.
_MIN_SCALE = np.float32(1e-30)
# The sum of values up to this is finite, so that an infinite or NaN sum reveals such a value.
_MAX_VALUE = 1e30
CHANNEL_AXIS = 1


@dataclass(frozen=True, slots=True)
class Affine:
    """Scale and zero point of a tensor (one each) or of each channel.

    Attributes:
        scales: positive float32 values.
        zeros: zero points, 0 to 255.
    """

    scales: tuple[float, ...]
    zeros: tuple[int, ...]

    def quantised(self, array: Floats) -> npt.NDArray[np.uint8]:
        """As ONNX's QuantizeLinear: round half to even, saturate at both ends."""
        scales, zeros = self._broadcast(array)
        steps = np.rint(array / scales) + zeros
        quantised: npt.NDArray[np.uint8] = np.clip(steps, 0, STEPS).astype(np.uint8)
        return quantised

    def restored(self, steps: npt.NDArray[np.uint8]) -> Floats:
        """As ONNX's DequantizeLinear."""
        scales, zeros = self._broadcast(steps)
        return (steps.astype(np.float32) - zeros) * scales

    def _broadcast(self, array: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Scales and zero points in a shape that broadcasts with the array's channels."""
        shape = [1] * array.ndim
        if len(self.scales) > 1:
            shape[CHANNEL_AXIS] = len(self.scales)
        scales = np.asarray(self.scales, np.float32).reshape(shape)
        return scales, np.asarray(self.zeros, np.float32).reshape(shape)


@dataclass(frozen=True)
class Bounds:
    """The smallest and largest value of a tensor over calibration inputs, by channel.

    Attributes:
        low: smallest value of each channel (one entry if the tensor has no channels).
        high: largest value of each channel.
        finite: whether all values are finite and below 1e30.
    """

    low: Floats
    high: Floats
    finite: bool = True

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "Bounds":
        """The bounds of one float array; 0 for an empty one."""
        if not array.size:
            return cls(np.zeros(1, np.float32), np.zeros(1, np.float32))
        # With three axes, axis 1 is often time, whose size varies.
        axes = (0, *range(2, array.ndim)) if array.ndim > 3 else None
        low = np.atleast_1d(array.min(axis=axes)).astype(np.float32)
        high = np.atleast_1d(array.max(axis=axes)).astype(np.float32)
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        worst = float(np.maximum(-low, high).max()) if finite else np.inf
        return cls(low, high, worst < _MAX_VALUE)

    def joined(self, other: "Bounds") -> "Bounds":
        """The bounds of both."""
        if self.low.shape != other.low.shape:  # the number of channels varies: treat them as one
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
        """The affine map for a form; None if values are not finite or channels are missing."""
        per_channel = form is TensorFormat.CHANNELS
        if not self.finite or (per_channel and len(self.low) < 2):
            return None
        low = self.low if per_channel else self.low.min().reshape(1)
        high = self.high if per_channel else self.high.max().reshape(1)
        # The range must include 0, so that zeros from ReLU and padding are exact.
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        scales = ((high - low) / np.float32(form.steps)).astype(np.float32)
        scales = np.where(high > low, np.maximum(scales, _MIN_SCALE), np.float32(1))
        # With fewer steps than a byte has, leave room for values outside the calibrated range.
        below = np.where(low < 0, (STEPS - form.steps) // 2, 0)
        zeros = np.clip(np.rint(-low / scales) + below, 0, STEPS)
        return Affine(tuple(map(float, scales)), tuple(map(int, zeros)))
