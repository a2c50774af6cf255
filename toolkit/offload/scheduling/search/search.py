"""Certified search for many cut points: raise a lower bound and improve an order until they meet.

The closed set of smallest D = F - G splits the problem: some optimal order runs through it. Each
half is searched by decisions at a limit (`feasibility`), from the front and from the back. A
complete "no" raises the proved bound, a "yes" is a better order. The width of the search grows
until the two meet or the time is up.
"""

import time
from dataclasses import dataclass

from offload.scheduling.cut_point_reduction import ReducedInstance
from offload.scheduling.search.bounds import reachability_bound_s
from offload.scheduling.search.feasibility import decide
from offload.scheduling.search.minimum_cut import lowest_closed_set
from offload.scheduling.search.space import SearchSpace, search_space

WIDTHS = (2, 8, 64, 512, 4096, 32768)
_NARROW = 0.1


@dataclass
class Subproblem:
    """The cut points between two closed sets, with the best order and bound so far.

    Attributes:
        low: bit mask of the closed set at the start.
        high: bit mask of the closed set at the end.
        spaces: the walks from the front and from the back, the more successful first.
        order: bits in the best order found.
        best_s: the highest peak of that order.
        bound_s: a proved lower bound on the highest peak.
    """

    low: int
    high: int
    spaces: tuple[SearchSpace, ...]
    order: list[int]
    best_s: float
    bound_s: float

    @classmethod
    def of(cls, reduced: ReducedInstance, low: int, high: int) -> "Subproblem":
        """Start with a greedy order and the bound of the first and last steps."""
        spaces = [search_space(reduced, low, high, forward) for forward in (True, False)]
        ends_s = max(space.base_s for space in spaces)
        if low == high:
            return cls(low, high, (), [], ends_s, ends_s)
        bound_s = max(ends_s, *[space.first_peak_s() for space in spaces])
        orders = [space.greedy() for space in spaces]
        peaks = [space.peak_s(order) for space, order in zip(spaces, orders, strict=True)]
        best = peaks.index(min(peaks))
        best_s = max(peaks[best], ends_s)
        order = spaces[best].in_order(orders[best])
        return cls(low, high, tuple(spaces), order, best_s, min(bound_s, best_s))

    def decide(self, limit_s: float, width: int, deadline_s: float) -> bool:
        """Look for an order under a limit; False if neither walk could say yes or no."""
        for space in self.spaces:
            result = decide(space, limit_s, width, deadline_s)
            if result.taken is not None:
                self.order = space.in_order(result.taken)
                self.best_s = space.peak_s(result.taken)
            elif result.complete:
                self.bound_s = max(self.bound_s, min(result.next_s, self.best_s))
            else:
                continue
            if space is not self.spaces[0]:
                self.spaces = self.spaces[::-1]
            return True
        return False

    def bisect(self, floor_s: float, width: int, tolerance_s: float, deadline_s: float) -> None:
        """Bisect until the best peak meets the floor or the bound, or this width decides no more.

        The limits are halfway between the best peak and the bound, or the highest limit that this
        width could not decide. The last tenth of the gap is left to a larger width, which gains
        more there.
        """
        undecided_s = limit_s = max(self.bound_s, floor_s)
        while self.best_s > max(self.bound_s, floor_s) + tolerance_s:
            if not self.decide(limit_s, width, deadline_s):
                undecided_s = max(undecided_s, limit_s)
            decided_s = max(self.bound_s, floor_s)
            undecided_s = max(undecided_s, decided_s)
            is_narrow = self.best_s - undecided_s <= _NARROW * (self.best_s - decided_s)
            if is_narrow or time.monotonic() > deadline_s:
                return
            limit_s = (undecided_s + self.best_s) / 2


def search(reduced: ReducedInstance, deadline_s: float) -> tuple[list[int], float]:
    """The best order of cut points found, and a lower bound in seconds on the highest peak.

    The makespan is the peak plus all uploads. Stops when the peak of the order meets the bound.
    """
    everything = (1 << len(reduced.cuts)) - 1
    middle = lowest_closed_set(reduced.blocks, reduced.upload_s, 0, everything)
    halves = [Subproblem.of(reduced, 0, middle), Subproblem.of(reduced, middle, everything)]
    tolerance_s = 1e-11 * (reduced.compute_s + sum(reduced.upload_s))
    bound_s = max(half.bound_s for half in halves)

    def highest_first() -> list[Subproblem]:
        return sorted(halves, key=lambda half: half.best_s, reverse=True)

    # The reachability bound may take half of the time.
    now_s = time.monotonic()
    half_time_s = now_s + max(0.0, deadline_s - now_s) / 2
    for half in highest_first():
        between_s = bound_s, half.best_s
        bound_s = reachability_bound_s(reduced, half.low, half.high, between_s, half_time_s)
    for width in WIDTHS:
        gap_s = max(half.best_s for half in halves) - bound_s
        if gap_s <= tolerance_s or time.monotonic() > deadline_s:
            break
        # The half with the lower peak only has to get below the bound of the other.
        for half in highest_first():
            floor_s = max(bound_s, *[other.bound_s for other in halves])
            half.bisect(floor_s, width, tolerance_s, deadline_s)
        bound_s = max(bound_s, *[half.bound_s for half in halves])
    return [bit for half in halves for bit in half.order], bound_s
