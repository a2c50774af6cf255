"""A lower bound on the highest peak: what no order can reach under a limit.

Let P be a set of cut points, and let every cut point j outside it climb above the limit from
every state within it: min F(X + j) - G(X) over the X in P, one minimum cut, is too high. Then the
first step out of P breaks the limit, whatever came before, and no order keeps it. P is grown from
nothing by the cut points that do not climb too high; where it stops short of everything, the
lowest of these minima bounds the highest peak of any order.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offload.schedule.reduce import Reduced, bits
from offload.schedule.search.min_cut import minimiser
from offload.schedule.search.side import Floats, flags, product

_SHARE = 1 / 32


def reach_bound_s(
    reduced: Reduced, low: int, high: int, between_s: tuple[float, float], deadline_s: float
) -> float:
    """The highest limit between a bound and the peak of an order that is seen not to suffice.

    By halves, down to 1/32 of what was open. O(m) minimum cuts each.

    Args:
        reduced: the cut points.
        low: bit mask of the closed set to start from.
        high: bit mask of the closed set to reach.
        between_s: a bound known, and a peak that suffices.
        deadline_s: stop then, on the monotonic clock.
    """
    bound_s, open_s = between_s
    enough_s = _SHARE * (open_s - bound_s)
    reach, known = Reach(reduced, low, high, deadline_s), low
    while open_s - bound_s > enough_s:
        limit_s = (bound_s + open_s) / 2
        found = reach.under(limit_s, known)
        if found is None:
            break
        if found.reached == high:
            open_s = limit_s
        else:
            bound_s, known = min(found.next_s, open_s), found.reached
    return bound_s


@dataclass(frozen=True, slots=True)
class Reached:
    """All cut points that can be reached under a limit, as a mask.

    Attributes:
        reached: the mask.
        next_s: the lowest limit under which more can; infinite where this is everything.
    """

    reached: int
    next_s: float


@dataclass(frozen=True)
class Reach:
    """The states between two closed sets, of which only their union is kept."""

    reduced: Reduced
    low: int
    high: int
    deadline_s: float

    def under(self, limit_s: float, reached: int) -> Reached | None:
        """What can be reached under a limit; None when the time is up.

        Args:
            limit_s: no peak is above it.
            reached: what is known to be.
        """
        state, is_lowest = reached, False
        while reached != self.high:
            if time.monotonic() > self.deadline_s:
                return None
            peaks_s, next_s = self._peaks_s(state, reached), np.inf
            more = sum([1 << bit for bit, peak_s in peaks_s.items() if peak_s <= limit_s])
            if not more and not is_lowest:
                state, is_lowest = self._lowest(self.reduced.blocks, reached), True
                continue
            if not more:
                likely_first = sorted(peaks_s, key=peaks_s.__getitem__)
                more, next_s = self._from_any(likely_first, reached, limit_s)
            if not more:
                return Reached(reached, next_s)
            reached |= more
            state, is_lowest = min(state, state | more, key=self._height_s), False
        return Reached(reached, np.inf)

    def _peaks_s(self, state: int, reached: int) -> dict[int, float]:
        """Of each step out of what is reached, the peak from one state."""
        left_s = [0.0 if mask & state else seconds for mask, seconds in self._blocks.items()]
        climbs_s = product(self._users, np.array(left_s)[:, None])[:, 0]
        peaks_s = (climbs_s + self._height_s(state)).tolist()
        need = self.reduced.need
        return {
            bit: peak_s
            for bit, peak_s in zip(self._columns, peaks_s, strict=True)
            if not reached >> bit & 1 and not need[bit] & ~reached
        }

    def _from_any(self, steps: Iterable[int], reached: int, limit_s: float) -> tuple[int, float]:
        """One step that some state within what is reached allows, 0 for none; the lowest peak."""
        next_s = np.inf
        for bit in steps:
            least_s = self._least_s(bit, reached)
            if least_s <= limit_s:
                return 1 << bit, least_s
            next_s = min(next_s, least_s)
        return 0, next_s

    def _least_s(self, bit: int, reached: int) -> float:
        """The lowest peak of a step over all states within what is reached."""
        blocks, upload_s = self.reduced.blocks, self.reduced.upload_s
        others = {mask: seconds for mask, seconds in blocks.items() if not mask >> bit & 1}
        return self._height_s(self._lowest(others, reached) | 1 << bit) + upload_s[bit]

    def _lowest(self, blocks: Mapping[int, float], reached: int) -> int:
        """The lowest state within what is reached."""
        return minimiser(blocks, self.reduced.upload_s, self.low, reached)

    def _height_s(self, state: int) -> float:
        """F - G of a state; no lower than that of its closure."""
        sent_s = sum([self.reduced.upload_s[bit] for bit in bits(state)])
        return self.reduced.set_compute_s(state) - sent_s

    @cached_property
    def _blocks(self) -> dict[int, float]:
        """What is not computed at the start and can be."""
        free = self.high & ~self.low
        blocks = self.reduced.blocks.items()
        return {mask: s for mask, s in blocks if not mask & self.low and mask & free}

    @cached_property
    def _columns(self) -> tuple[int, ...]:
        return tuple(bits(self.high & ~self.low))

    @cached_property
    def _users(self) -> Floats:
        """Which cut point needs which block: 1 where it does (m x B)."""
        member = flags(list(self._blocks), self._columns)
        return np.ascontiguousarray(member.T, dtype=np.float64)
