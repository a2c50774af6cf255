"""A logarithmic axis: round ticks 1, 2, 5 times powers of ten."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogAxis:
    """From a value to a greater one, both positive, onto a stretch of pixels.

    Attributes:
        low: the value at the start.
        high: the value at the end.
        start: the pixel of `low`.
        end: the pixel of `high`, which may be the smaller pixel.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values within the axis; more of them where it spans less than two decades."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        values = (step * 10.0**power for power in decades for step in steps)
        slack = 1 + 1e-9
        return tuple(v for v in values if self.low / slack <= v <= self.high * slack)
