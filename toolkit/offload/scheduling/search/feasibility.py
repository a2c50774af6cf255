"""Decide whether an order keeps its highest peak under a limit: breadth-first over closed sets."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offload.scheduling.search.space import SearchSpace, StateView, row_keys

Places = npt.NDArray[np.int16]
_EXPANSION = 4


@dataclass(frozen=True, slots=True)
class Feasibility:
    """The result for one limit.

    Attributes:
        taken: bits in the order of taking, if an order was found.
        complete: no state was dropped for lack of width or time, so without an order none exists.
        next_s: the lowest peak that was refused: below this limit a complete result is the same.
    """

    taken: tuple[int, ...] | None
    complete: bool
    next_s: float


def decide(space: SearchSpace, limit_s: float, width: int, deadline_s: float) -> Feasibility:
    """Look for an order under a limit with at most `width` open states of each size."""
    taken: list[int] = []
    next_s = np.inf
    while space.cuts:
        walk = Walk(space, limit_s, width, deadline_s)
        end = walk.walk()
        next_s = min(next_s, walk.next_s)
        if end is None:
            return Feasibility(None, walk.complete, float(next_s))
        order = np.argsort(end, kind="stable")[(end == 0).sum() :]
        taken += [space.cuts[column] for column in order]
        chosen = end[None] > 0
        height_s = float(space.step(space.start(), chosen, chosen).height[0])
        space = space.after(end > 0, height_s)
    return Feasibility(tuple(taken), True, float(next_s))


class Walk:
    """Walk from the start state to the next state that is at most as high.

    A state is a row of places: 0 for a column that is not taken, else the step that took it. Open
    states are stored by the number of columns taken.
    """

    def __init__(self, space: SearchSpace, limit_s: float, width: int, deadline_s: float) -> None:
        self.space, self.limit_s, self.width, self.deadline_s = space, limit_s, width, deadline_s
        self.complete, self.next_s = True, np.inf

    def walk(self) -> Places | None:
        """The row of a state no higher than the start, or of the full set; None if none exists."""
        start = np.zeros((1, len(self.space.cuts)), dtype=np.int16)
        places, view = self._take_free_steps(start, self.space.start())
        if places.any():
            row: Places = places[0]
            return row
        open_states = {0: [(places, view)]}
        while open_states:
            if time.monotonic() > self.deadline_s:
                self.complete = False
                return None
            places, view = self._narrow(open_states.pop(min(open_states)))
            places, view = self._expand(places, view)
            if not len(places):
                continue
            best = int(view.height.argmin())
            if view.height[best] <= self.space.base_s:
                row = places[best]
                lowest: Places = np.where(self.space.lowest(row > 0), row, 0).astype(np.int16)
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

    def _expand(self, places: Places, view: StateView) -> tuple[Places, StateView]:
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
        extra = np.zeros((len(chosen), len(self.space.cuts)), dtype=np.bool_)
        extra[np.arange(len(chosen)), columns[chosen]] = True
        grown = self.space.step(view.at(rows[chosen]), extra, children[chosen] > 0)
        return self._take_free_steps(children[chosen], grown)

    def _take_free_steps(self, places: Places, view: StateView) -> tuple[Places, StateView]:
        """Take every step that ends no higher than it starts, until none is left; in place."""
        while True:
            free = view.open & (view.end <= view.height[:, None]) & (view.peak <= self.limit_s)
            rows = np.nonzero(free.any(axis=1))[0]
            if not len(rows):
                return places, view
            step = places[rows].max(axis=1, keepdims=True) + 1
            places[rows] = np.where(free[rows], step, places[rows])
            view.put(rows, self.space.step(view.at(rows), free[rows], places[rows] > 0))


def _distinct(places: Places) -> npt.NDArray[np.intp]:
    """Indexes of the first row of each distinct set of columns."""
    if len(places) < 2:
        return np.arange(len(places))
    return np.sort(np.unique(row_keys(places > 0), return_index=True)[1])
