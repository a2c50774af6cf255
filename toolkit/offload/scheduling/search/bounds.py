"""A lower bound on the highest peak, from the cut points reachable under a limit."""

import time

import numpy as np

from offload.scheduling.cut_point_reduction import ReducedInstance, bits
from offload.scheduling.search.minimum_cut import lowest_closed_set, maximum_flow
from offload.scheduling.search.space import flags, product

_PRECISION = 1 / 32


def reachability_bound_s(
    reduced: ReducedInstance, low: int, high: int, between_s: tuple[float, float], deadline_s: float
) -> float:
    """The highest limit under which not all cut points are reachable: a lower bound on the peak.

    Bisects between a known bound and a known peak, down to 1/32 of their distance. Each decision
    takes O(m) minimum cuts.

    Args:
        reduced: the cut points.
        low: bit mask of the closed set to start from.
        high: bit mask of the closed set to reach.
        between_s: a known lower bound, and a peak that suffices.
        deadline_s: time limit on the monotonic clock.
    """
    bound_s, enough_s = between_s
    precision_s = _PRECISION * (enough_s - bound_s)
    states, reached = ReachableStates(reduced, low, high, deadline_s), low
    while enough_s - bound_s > precision_s:
        limit_s = (bound_s + enough_s) / 2
        result = states.under(limit_s, reached)
        if result is None:
            break
        union, next_s = result
        if union == high:
            enough_s = limit_s
        else:
            bound_s, reached = min(next_s, enough_s), union
    return bound_s


class ReachableStates:
    """The states reachable between two closed sets, represented by their union."""

    def __init__(self, reduced: ReducedInstance, low: int, high: int, deadline_s: float) -> None:
        self.reduced, self.low, self.high, self.deadline_s = reduced, low, high, deadline_s
        free = high & ~low
        blocks = reduced.blocks.items()
        self._blocks = {mask: s for mask, s in blocks if not mask & low and mask & free}
        self._columns = tuple(bits(free))
        member = flags(list(self._blocks), self._columns)
        # 1 where a cut point needs a block (m x B)
        self._users = np.ascontiguousarray(member.T, dtype=np.float64)

    def under(self, limit_s: float, reached: int) -> tuple[int, float] | None:
        """The cut points that can be reached under a limit; None if the time is up.

        Args:
            limit_s: no peak may be above it.
            reached: mask of cut points known to be reachable.

        Returns:
            Their mask, and the lowest limit that reaches more (infinite if all are reached).
        """
        state = reached
        while reached != self.high:
            if time.monotonic() > self.deadline_s:
                return None
            left_s = [0.0 if mask & state else seconds for mask, seconds in self._blocks.items()]
            peaks_s = self._peaks_s(left_s, self._height_s(state), reached)
            more = sum([1 << bit for bit, peak_s in peaks_s.items() if peak_s <= limit_s])
            if more:
                state = min(state, state | more, key=self._height_s)
            else:
                state, peak_s = self._lowest_peak(min(peaks_s, key=peaks_s.__getitem__), reached)
                if peak_s > limit_s:
                    state, peak_s = self._lowest_step(reached)
                if peak_s > limit_s:
                    return reached, peak_s
                more = state & ~reached
            reached |= more
        return reached, np.inf

    def _peaks_s(self, left_s: list[float], height_s: float, reached: int) -> dict[int, float]:
        """By next cut point, the peak from a height with the given seconds left of each block."""
        climbs_s = product(self._users, np.array(left_s)[:, None])[:, 0]
        need, peaks_s = self.reduced.need, (climbs_s + height_s).tolist()
        return {
            bit: peak_s
            for bit, peak_s in zip(self._columns, peaks_s, strict=True)
            if not reached >> bit & 1 and not need[bit] & ~reached
        }

    def _lowest_step(self, reached: int) -> tuple[int, float]:
        """The step with the lowest peak from any state within the reached set: its end and peak.

        One maximum flow bounds the peaks of all steps; only few steps come so close to the lowest
        that they need a minimum cut of their own.
        """
        upload_s = self.reduced.upload_s
        lowest, left = maximum_flow(self._blocks, upload_s, reached & ~self.low)
        lowest_s = self._height_s(lowest | self.low)
        bounds_s = self._peaks_s([left[mask] for mask in self._blocks], lowest_s, reached)
        end, next_s = reached, np.inf
        for bit in sorted(bounds_s, key=bounds_s.__getitem__):
            if bounds_s[bit] >= next_s:
                break
            state, peak_s = self._lowest_peak(bit, reached)
            if peak_s < next_s:
                end, next_s = state, peak_s
        return end, next_s

    def _lowest_peak(self, bit: int, reached: int) -> tuple[int, float]:
        """The end and the peak of taking a cut point from the best state within the reached set."""
        others = {mask: s for mask, s in self._blocks.items() if not mask >> bit & 1}
        state = lowest_closed_set(others, self.reduced.upload_s, self.low, reached) | 1 << bit
        return state, self._height_s(state) + self.reduced.upload_s[bit]

    def _height_s(self, state: int) -> float:
        """F - G of a state; at least that of its closure."""
        sent_s = sum([self.reduced.upload_s[bit] for bit in bits(state)])
        return self.reduced.set_compute_s(state) - sent_s
