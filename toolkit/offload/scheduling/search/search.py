"""Order many cut points: close in on the smallest peak from both sides, for as long as allowed.

The set of smallest D = F - G splits the problem: some optimal order runs through it. Each half is
searched by decisions at a limit (`decision`), from the front and from the back: a complete "no"
raises the proved bound, a "yes" is a better order, and the width of the frontier grows until the
two meet or the time is up.
"""

import time
from dataclasses import dataclass

from offload.scheduling.cut_point_reduction import ReducedInstance
from offload.scheduling.search.bounds import reachability_bound_s
from offload.scheduling.search.feasibility import decide
from offload.scheduling.search.space import SearchSpace, minimiser, search_space


@dataclass
class Subproblem:
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
    sides: tuple[SearchSpace, ...]
    order: list[int]
    best_s: float
    bound_s: float

    @classmethod
    def of(cls, reduced: ReducedInstance, low: int, high: int) -> "Subproblem":
        """With a greedy order and the bound of the first and last steps."""
        front, back = (
            search_space(reduced, low, high, True),
            search_space(reduced, low, high, False),
        )
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


WIDTHS = (2, 8, 64, 512, 4096, 32768)
_LEFT = 0.1


def search(reduced: ReducedInstance, deadline_s: float) -> tuple[list[int], float]:
    """The best order of cut points found, and a lower bound in seconds on the highest peak.

    The makespan is the peak plus all uploads. Stops when the order's peak is the bound.
    """
    everything = (1 << len(reduced.cuts)) - 1
    middle = minimiser(reduced.blocks, reduced.upload_s, 0, everything)
    halves = Subproblem.of(reduced, 0, middle), Subproblem.of(reduced, middle, everything)
    tolerance_s = 1e-11 * (reduced.compute_s + sum(reduced.upload_s))
    bound_s = max(half.bound_s for half in halves)
    bound_s = _reach_bound_s(reduced, halves, bound_s, deadline_s)
    for width in WIDTHS:
        if _open_s(halves, bound_s) <= tolerance_s or time.monotonic() > deadline_s:
            break
        _close_in(halves, bound_s, SearchBudget(width, tolerance_s, deadline_s))
        bound_s = max(bound_s, *(half.bound_s for half in halves))
    return _order(halves), bound_s


def _reach_bound_s(
    reduced: ReducedInstance,
    halves: tuple[Subproblem, Subproblem],
    bound_s: float,
    deadline_s: float,
) -> float:
    """A better bound, within half of the time left, from the half with the higher peak first."""
    now_s = time.monotonic()
    until_s = now_s + max(0.0, deadline_s - now_s) / 2
    for half in sorted(halves, key=lambda half: half.best_s, reverse=True):
        between_s = bound_s, half.best_s
        bound_s = reachability_bound_s(reduced, half.low, half.high, between_s, until_s)
    return bound_s


def _open_s(halves: tuple[Subproblem, Subproblem], bound_s: float) -> float:
    """Seconds between the best peak and the bound."""
    return max(half.best_s for half in halves) - bound_s


def _order(halves: tuple[Subproblem, Subproblem]) -> list[int]:
    return [bit for half in halves for bit in half.order]


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """How hard to look: states kept open, peaks that count as equal, and until when."""

    width: int
    tolerance_s: float
    deadline_s: float


def _close_in(halves: tuple[Subproblem, Subproblem], bound_s: float, effort: SearchBudget) -> None:
    """Work on the half with the higher peak first: the other need only get below its bound."""
    for half in sorted(halves, key=lambda half: half.best_s, reverse=True):
        bisect(half, max(bound_s, *(half.bound_s for half in halves)), effort)


def bisect(half: Subproblem, floor_s: float, effort: SearchBudget) -> None:
    """Until the best peak is at most the floor or the bound, or this width says no more.

    By halves between the bound, or the highest limit this width couldn't settle, and the best
    peak. The last tenth of what is open is left to a wider look, which gains more there.
    """
    unsure_s = limit_s = max(half.bound_s, floor_s)
    while half.best_s > max(half.bound_s, floor_s) + effort.tolerance_s:
        if not half.decide(limit_s, effort.width, effort.deadline_s):
            unsure_s = max(unsure_s, limit_s)
        settled_s = max(half.bound_s, floor_s)
        unsure_s = max(unsure_s, settled_s)
        is_narrow = half.best_s - unsure_s <= _LEFT * (half.best_s - settled_s)
        if is_narrow or time.monotonic() > effort.deadline_s:
            return
        limit_s = (unsure_s + half.best_s) / 2
