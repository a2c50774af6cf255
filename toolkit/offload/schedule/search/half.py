"""One half of the split problem: its best order and its bound so far."""

from dataclasses import dataclass

from offload.schedule.reduce import Reduced
from offload.schedule.search.decision import decide
from offload.schedule.search.side import Side, side


@dataclass
class Half:
    """The cut points between two closed sets, to be walked from either end.

    Attributes:
        low: bit mask of the closed set where it starts.
        high: bit mask of the closed set where it ends.
        sides: the walks from the front and from the back, the more promising first.
        order: bits in the best order found.
        best_s: its highest peak.
        bound_s: no order has a lower one.
    """

    low: int
    high: int
    sides: tuple[Side, ...]
    order: list[int]
    best_s: float
    bound_s: float

    @classmethod
    def of(cls, reduced: Reduced, low: int, high: int) -> "Half":
        """With a greedy order and the bound of the first and last steps."""
        front, back = side(reduced, low, high, True), side(reduced, low, high, False)
        ends_s = max(front.base_s, back.base_s)
        if low == high:
            return cls(low, high, (), [], ends_s, ends_s)
        bound_s = max(ends_s, front.first_peak_s(), back.first_peak_s())
        greedy = [(walk, walk.greedy()) for walk in (front, back)]
        peaks = [walk.peak_s(taken) for walk, taken in greedy]
        walk, taken = greedy[peaks.index(min(peaks))]
        best_s = max(min(peaks), ends_s)
        return cls(low, high, (front, back), walk.in_order(taken), best_s, min(bound_s, best_s))

    def decide(self, limit_s: float, width: int, deadline_s: float) -> bool:
        """Look for an order below a limit; False when neither walk could say yes or no."""
        for walk in self.sides:
            verdict = decide(walk, limit_s, width, deadline_s)
            if verdict.taken is not None:
                self.order = walk.in_order(verdict.taken)
                self.best_s = walk.peak_s(verdict.taken)
            elif verdict.complete:
                self.bound_s = max(self.bound_s, min(verdict.next_s, self.best_s))
            else:
                continue
            if walk is not self.sides[0]:
                self.sides = self.sides[::-1]
            return True
        return False
