"""Whether an order keeps its highest peak under a limit: breadth first over closed sets."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offload.scheduling.search.space import SearchSpace, StateView, row_keys

Places = npt.NDArray[np.int16]
_SPARE = 4


@dataclass(frozen=True, slots=True)
class Feasibility:
    """The answer for one limit.

    Attributes:
        taken: bits in the order of taking, when an order was found.
        complete: no state was dropped for want of room or time, so that no order means none.
        next_s: the lowest peak that was refused: no limit below it changes a complete verdict.
    """

    taken: tuple[int, ...] | None
    complete: bool
    next_s: float


def decide(side: SearchSpace, limit_s: float, width: int, deadline_s: float) -> Feasibility:
    """Walk from nothing taken to everything with at most `width` states of one size open."""
    taken: list[int] = []
    next_s = np.inf
    while side.cuts:
        leg = Walk(side, limit_s, width, deadline_s)
        end = leg.walk()
        next_s = min(next_s, leg.next_s)
        if end is None:
            return Feasibility(None, leg.complete, float(next_s))
        order = np.argsort(end, kind="stable")[(end == 0).sum() :]
        taken += [side.cuts[column] for column in order]
        side = side.after(end > 0, leg.height_s(end))
    return Feasibility(tuple(taken), True, float(next_s))


class Walk:
    """The walk from one start to the next state that is no higher.

    A state is a row of places: 0 where a column isn't taken, else the step that took it. Open
    states are kept by how many columns they have taken.
    """

    def __init__(self, side: SearchSpace, limit_s: float, width: int, deadline_s: float) -> None:
        self.side, self.limit_s, self.width, self.deadline_s = side, limit_s, width, deadline_s
        self.complete, self.next_s = True, np.inf
        self.buckets: dict[int, list[tuple[Places, StateView]]] = {}

    def walk(self) -> Places | None:
        """The row that is no higher than the start, or has taken all; None when there is none."""
        nothing = np.zeros((1, len(self.side.cuts)), dtype=np.int16)
        places, view = self._closed(nothing, self.side.start())
        if places.any():
            row: Places = places[0]
            return row
        self.buckets = {0: [(places, view)]}
        while self.buckets:
            if time.monotonic() > self.deadline_s:
                self.complete = False
                return None
            places, view = self._narrowed(self.buckets.pop(min(self.buckets)))
            places, view = self._children(places, view)
            end = self._end(places, view)
            if end is not None:
                return end
            self._file(places, view)
        return None

    def height_s(self, end: Places) -> float:
        """The height of the state of a row."""
        taken = end[None] > 0
        return float(self.side.step(self.side.start(), taken, taken).height[0])

    def _file(self, places: Places, view: StateView) -> None:
        sizes = (places > 0).sum(axis=1)
        for size in np.unique(sizes):
            chosen = sizes == size
            self.buckets.setdefault(int(size), []).append((places[chosen], view.at(chosen)))

    def _end(self, places: Places, view: StateView) -> Places | None:
        """The lowest state on the way to the first that is no higher than the start."""
        if not len(places):
            return None
        best = int(view.height.argmin())
        if view.height[best] <= self.side.base_s:
            row = places[best]
            lowest: Places = np.where(self.side.lowest(row > 0), row, 0).astype(np.int16)
            return lowest
        whole = np.nonzero((places > 0).all(axis=1))[0]
        return places[whole[0]] if len(whole) else None

    def _narrowed(self, parts: list[tuple[Places, StateView]]) -> tuple[Places, StateView]:
        """The distinct states of one size; the lowest, when there are too many."""
        places = np.concatenate([part for part, _ in parts])
        view = StateView.joined([part for _, part in parts])
        kept = _distinct(places)
        if len(kept) > self.width:
            self.complete = False
            kept = kept[np.argsort(view.height[kept], kind="stable")[: self.width]]
        return places[kept], view.at(kept)

    def _children(self, places: Places, view: StateView) -> tuple[Places, StateView]:
        """Every allowed step from every state, closed; the lowest, when there are too many."""
        allowed = view.peak <= self.limit_s
        refused = view.peak[view.open & ~allowed]
        self.next_s = min(self.next_s, refused.min(initial=np.inf))
        rows, columns = np.nonzero(view.open & allowed)
        children = places[rows]
        children[np.arange(len(rows)), columns] = places.max(axis=1, initial=0)[rows] + 1
        kept = _distinct(children)
        if len(kept) > _SPARE * self.width:
            self.complete = False
            ends = view.end[rows[kept], columns[kept]]
            kept = kept[np.argsort(ends, kind="stable")[: _SPARE * self.width]]
        if not len(kept):
            return children[kept], view.at(kept)
        extra = np.zeros((len(kept), len(self.side.cuts)), dtype=np.bool_)
        extra[np.arange(len(kept)), columns[kept]] = True
        grown = self.side.step(view.at(rows[kept]), extra, children[kept] > 0)
        return self._closed(children[kept], grown)

    def _closed(self, places: Places, view: StateView) -> tuple[Places, StateView]:
        """Take every step that can be taken for nothing, until none is left."""
        while True:
            free = view.open & (view.end <= view.height[:, None]) & (view.peak <= self.limit_s)
            rows = np.nonzero(free.any(axis=1))[0]
            if not len(rows):
                return places, view
            step = places[rows].max(axis=1, keepdims=True) + 1
            places[rows] = np.where(free[rows], step, places[rows])
            grown = self.side.step(view.at(rows), free[rows], places[rows] > 0)
            view.put(rows, grown)


def _distinct(places: Places) -> npt.NDArray[np.intp]:
    """Indexes of one row of each set of columns, the first."""
    if len(places) < 2:
        return np.arange(len(places))
    return np.sort(np.unique(row_keys(places > 0), return_index=True)[1])
