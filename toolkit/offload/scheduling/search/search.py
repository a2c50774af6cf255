"""Certified search for many cut points: raise a lower bound and improve an order until they meet.

The closed set of smallest D = F - G splits the problem: some optimal order runs through it. Each
half is searched by decisions at a limit (`FeasibilitySearch`), from the front and from the back. A
complete "no" raises the proved bound, a "yes" is a better order. The width of the search grows
until the two meet or the time is up.
"""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offload.scheduling.cut_point_reduction import ReducedInstance
from offload.scheduling.search.bounds import reachability_bound_s
from offload.scheduling.search.minimum_cut import lowest_closed_set
from offload.scheduling.search.space import SearchSpace, StateView, row_keys, search_space

WIDTHS = (2, 8, 64, 512, 4096, 32768)
_NARROW = 0.1
_EXPANSION = 4
Places = npt.NDArray[np.int16]


class FeasibilitySearch:
    """Look for an order whose peaks all stay under a limit: breadth-first over closed sets.

    A state is a row of places: 0 for a column that is not taken, else the step that took it. Open
    states are stored by the number of columns taken, at most `width` of each number.

    Attributes:
        complete: no state was dropped for lack of width or time, so without an order none exists.
        next_s: the lowest peak that was refused: below this limit a complete result is the same.
    """

    def __init__(self, limit_s: float, width: int, deadline_s: float) -> None:
        self.limit_s, self.width, self.deadline_s = limit_s, width, deadline_s
        self.complete, self.next_s = True, np.inf

    def order(self, space: SearchSpace) -> tuple[int, ...] | None:
        """Bits in the order of taking; None if no order was found."""
        taken: list[int] = []
        while space.cuts:
            self.complete = True
            end = self._walk(space)
            if end is None:
                return None
            steps = np.argsort(end, kind="stable")[(end == 0).sum() :]
            taken += [space.cuts[column] for column in steps]
            chosen = end[None] > 0
            height_s = float(space.step(space.start(), chosen, chosen).height[0])
            space = space.after(end > 0, height_s)
        return tuple(taken)

    def _walk(self, space: SearchSpace) -> Places | None:
        """The row of a state no higher than the start, or of the full set; None if none exists."""
        start = np.zeros((1, len(space.cuts)), dtype=np.int16)
        places, view = self._take_free_steps(space, start, space.start())
        if places.any():
            row: Places = places[0]
            return row
        open_states = {0: [(places, view)]}
        while open_states:
            if time.monotonic() > self.deadline_s:
                self.complete = False
                return None
            places, view = self._narrow(open_states.pop(min(open_states)))
            places, view = self._expand(space, places, view)
            if not len(places):
                continue
            best = int(view.height.argmin())
            if view.height[best] <= space.base_s:
                row = places[best]
                lowest: Places = np.where(space.lowest(row > 0), row, 0).astype(np.int16)
                return lowest
            complete = np.nonzero((places > 0).all(axis=1))[0]
            if len(complete):
                full: Places = places[complete[0]]
                return full
            sizes = (places > 0).sum(axis=1)
            for size in np.unique(sizes):
                same = sizes == size
                open_states.setdefault(int(size), []).append((places[same], view.at(same)))
        return None

    def _narrow(self, groups: list[tuple[Places, StateView]]) -> tuple[Places, StateView]:
        """The distinct states of one size; the lowest `width` of them if there are more."""
        places = np.concatenate([group for group, _ in groups])
        view = StateView.joined([part for _, part in groups])
        rows = _distinct(places)
        if len(rows) > self.width:
            self.complete = False
            rows = rows[np.argsort(view.height[rows], kind="stable")[: self.width]]
        return places[rows], view.at(rows)

    def _expand(
        self, space: SearchSpace, places: Places, view: StateView
    ) -> tuple[Places, StateView]:
        """Take every allowed step from every state; drop the highest ends if there are too many."""
        allowed = view.peak <= self.limit_s
        refused = view.peak[view.open & ~allowed]
        self.next_s = min(self.next_s, refused.min(initial=np.inf))
        rows, columns = np.nonzero(view.open & allowed)
        children = places[rows]
        children[np.arange(len(rows)), columns] = places.max(axis=1, initial=0)[rows] + 1
        chosen = _distinct(children)
        if len(chosen) > _EXPANSION * self.width:
            self.complete = False
            ends = view.end[rows[chosen], columns[chosen]]
            chosen = chosen[np.argsort(ends, kind="stable")[: _EXPANSION * self.width]]
        if not len(chosen):
            return children[chosen], view.at(chosen)
        extra = np.zeros((len(chosen), len(space.cuts)), dtype=np.bool_)
        extra[np.arange(len(chosen)), columns[chosen]] = True
        grown = space.step(view.at(rows[chosen]), extra, children[chosen] > 0)
        return self._take_free_steps(space, children[chosen], grown)

    def _take_free_steps(
        self, space: SearchSpace, places: Places, view: StateView
    ) -> tuple[Places, StateView]:
        """Take steps that do not raise the height, in place, until there are none."""
        while True:
            free = view.open & (view.end <= view.height[:, None]) & (view.peak <= self.limit_s)
            rows = np.nonzero(free.any(axis=1))[0]
            if not len(rows):
                return places, view
            step = places[rows].max(axis=1, keepdims=True) + 1
            places[rows] = np.where(free[rows], step, places[rows])
            view.put(rows, space.step(view.at(rows), free[rows], places[rows] > 0))


def _distinct(places: Places) -> npt.NDArray[np.intp]:
    """Indexes of the first row of each distinct set of columns."""
    if len(places) < 2:
        return np.arange(len(places))
    return np.sort(np.unique(row_keys(places > 0), return_index=True)[1])


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
            attempt = FeasibilitySearch(limit_s, width, deadline_s)
            taken = attempt.order(space)
            if taken is not None:
                self.order = space.in_order(taken)
                self.best_s = space.peak_s(taken)
            elif attempt.complete:
                self.bound_s = max(self.bound_s, float(min(attempt.next_s, self.best_s)))
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
