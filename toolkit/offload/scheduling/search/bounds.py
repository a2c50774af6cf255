"""A lower bound on the highest peak that any order can reach."""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offload.scheduling.cut_point_reduction import ReducedInstance, bits
from offload.scheduling.search.space import Floats, drain, flags, minimiser, product

_SHARE = 1 / 32


def reachability_bound_s(
    reduced: ReducedInstance, low: int, high: int, between_s: tuple[float, float], deadline_s: float
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
    reach, known = ReachableStates(reduced, low, high, deadline_s), low
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
class ReachablePoints:
    """All cut points that can be reached under a limit, as a mask.

    Attributes:
        reached: the mask.
        next_s: the lowest limit under which more can; infinite where this is everything.
    """

    reached: int
    next_s: float


@dataclass(frozen=True)
class ReachableStates:
    """The states between two closed sets, of which only their union is kept."""

    reduced: ReducedInstance
    low: int
    high: int
    deadline_s: float

    def under(self, limit_s: float, reached: int) -> ReachablePoints | None:
        """What can be reached under a limit; None when the time is up.

        Args:
            limit_s: no peak is above it.
            reached: what is known to be.
        """
        state = reached
        while reached != self.high:
            if time.monotonic() > self.deadline_s:
                return None
            peaks_s = self._peaks_s(state, reached)
            more = sum([1 << bit for bit, peak_s in peaks_s.items() if peak_s <= limit_s])
            if more:
                state = min(state, state | more, key=self._height_s)
            else:
                state, peak_s = self._from_lowest(min(peaks_s, key=peaks_s.__getitem__), reached)
                if peak_s > limit_s:
                    state, peak_s = self._lowest_step(reached)
                if peak_s > limit_s:
                    return ReachablePoints(reached, peak_s)
                more = state & ~reached
            reached |= more
        return ReachablePoints(reached, np.inf)

    def _peaks_s(self, state: int, reached: int) -> dict[int, float]:
        """Of each step out of what is reached, the peak from one state."""
        left_s = [0.0 if mask & state else seconds for mask, seconds in self._blocks.items()]
        return self._steps_s(left_s, self._height_s(state), reached)

    def _steps_s(self, left_s: list[float], height_s: float, reached: int) -> dict[int, float]:
        """Of each step out of what is reached, a height and what is left of its blocks."""
        climbs_s = product(self._users, np.array(left_s)[:, None])[:, 0]
        need, peaks_s = self.reduced.need, (climbs_s + height_s).tolist()
        return {
            bit: peak_s
            for bit, peak_s in zip(self._columns, peaks_s, strict=True)
            if not reached >> bit & 1 and not need[bit] & ~reached
        }

    def _lowest_step(self, reached: int) -> tuple[int, float]:
        """The end of the step of lowest peak from any state within what is reached; the peak.

        A flow that drowns as much as it can bounds all of these peaks at once; few are so close
        that they take a minimum cut of their own.
        """
        lowest, left = drain(self._blocks, self.reduced.upload_s, reached & ~self.low)
        least_s = self._height_s(lowest | self.low)
        bounds_s = self._steps_s([left[mask] for mask in self._blocks], least_s, reached)
        end, next_s = reached, np.inf
        for bit in sorted(bounds_s, key=bounds_s.__getitem__):
            if bounds_s[bit] >= next_s:
                break
            state, peak_s = self._from_lowest(bit, reached)
            if peak_s < next_s:
                end, next_s = state, peak_s
        return end, next_s

    def _from_lowest(self, bit: int, reached: int) -> tuple[int, float]:
        """The end of a step from the state within what is reached where its peak is lowest."""
        others = {mask: s for mask, s in self._blocks.items() if not mask >> bit & 1}
        state = minimiser(others, self.reduced.upload_s, self.low, reached) | 1 << bit
        return state, self._height_s(state) + self.reduced.upload_s[bit]

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
