"""A time axis: the unit a reader would choose, and round ticks in it."""

import math
from dataclasses import dataclass

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


@dataclass(frozen=True, slots=True)
class Axis:
    """A time axis from 0.

    Attributes:
        end_s: where it ends, in seconds; > 0.
        ticks_s: round times from 0 to at most the end.
        unit: name of the unit of the labels.
        unit_s: that unit in seconds.
    """

    end_s: float
    ticks_s: tuple[float, ...]
    unit: str
    unit_s: float

    @classmethod
    def over(cls, end_s: float, most_ticks: int) -> "Axis":
        """The axis that ends at a time, with ticks 1, 2 or 5 times a power of ten apart."""
        end_s = end_s if end_s > 0 else 1.0
        unit_s, unit = next((u for u in _UNITS if end_s >= u[0]), _UNITS[-1])
        power = 10.0 ** math.floor(math.log10(end_s / max(most_ticks, 1)))
        steps = (power * factor for factor in (1, 2, 5, 10, 20))
        step = next(s for s in steps if end_s / s <= max(most_ticks, 1))
        ticks = tuple(k * step for k in range(math.floor(end_s / step * (1 + 1e-9)) + 1))
        return cls(end_s, ticks, unit, unit_s)

    def label(self, time_s: float) -> str:
        """A time in the axis's unit, without it."""
        return f"{time_s / self.unit_s:.6g}"
