"""The best shares of a stream's frames for given plans, and the fewest plans that are enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offload.planning.plan import ResourceUse

# Share of the rate that counts as nothing.
ROUNDING = 1e-6
_LEAST_PIVOT = 1e-9


@dataclass(frozen=True, slots=True)
class SharedRate:
    """The largest rate of a stream whose frames several plans share.

    Attributes:
        rate_hz: frames per second; infinite if a plan uses no time of any resource.
        shares: the share of frames of each plan.
        prices: by device, uplink, server and downlink, the frames per second that the stream would
            gain with one more of them. At these prices no plan uses less than 1, and the prices
            add up to the rate: this proves that no other shares give more.
    """

    rate_hz: float
    shares: tuple[float, ...]
    prices: tuple[float, float, float, float]


def share_frames(uses: Sequence[ResourceUse]) -> SharedRate:
    """The best shares of given plans: maximise the frames per second, no resource above 100 %.

    A linear program, maximise sum x_p subject to sum_p x_p use_{p,r} <= 1 for the four resources
    r, by the primal simplex method (Dantzig 1951) with the smallest-index rule against cycles
    (Bland 1977). At most four plans have a share. O(plans) a pivot; a few pivots in practice.
    """
    shortest_s = min(use.period_s for use in uses)
    if shortest_s == 0.0:
        free = next(number for number, use in enumerate(uses) if use.period_s == 0.0)
        alone = tuple(float(number == free) for number in range(len(uses)))
        return SharedRate(float("inf"), alone, (0.0, 0.0, 0.0, 0.0))
    # A variable is the share of the time in which a plan keeps its busiest resource busy.
    periods_s = np.array([use.period_s for use in uses])
    resources, plans = 4, len(uses)
    tableau = np.zeros((resources + 1, plans + resources + 1))
    tableau[:-1, :plans] = np.array([use.seconds for use in uses]).T / periods_s
    tableau[:-1, plans:-1] = np.eye(resources)
    tableau[:-1, -1] = 1.0
    tableau[-1, :plans] = -shortest_s / periods_s
    basis = list(range(plans, plans + resources))
    while (improving := np.flatnonzero(tableau[-1, :-1] < -_LEAST_PIVOT)).size:
        entering = int(improving[0])
        rows = np.flatnonzero(tableau[:-1, entering] > _LEAST_PIVOT)
        ratios = tableau[rows, -1] / tableau[rows, entering]
        ties = rows[ratios <= ratios.min() + _LEAST_PIVOT]
        leaving = min(ties, key=lambda row: basis[row])
        tableau[leaving] /= tableau[leaving, entering]
        others = np.arange(resources + 1) != leaving
        tableau[others] -= np.outer(tableau[others, entering], tableau[leaving])
        basis[leaving] = entering
    busy = np.zeros(plans + resources)
    busy[basis] = np.maximum(tableau[:-1, -1], 0.0)
    rates_hz = busy[:plans] / periods_s
    rate_hz = float(rates_hz.sum())
    device, uplink, server, downlink = (
        np.maximum(tableau[-1, plans:-1], 0.0) / shortest_s
    ).tolist()
    return SharedRate(
        rate_hz, tuple((rates_hz / rate_hz).tolist()), (device, uplink, server, downlink)
    )


def fewest_members(
    uses: Sequence[Sequence[ResourceUse]],
    best_hz: Sequence[float],
    fixed: int,
    worth: float,
    fits: Callable[[Sequence[int]], bool] = lambda _: True,
) -> list[int]:
    """Leave out plans one by one while the others are nearly as fast on every link.

    Greedy: each time the plan whose loss is smallest. O(n^2) linear programs for n plans on each
    link.

    Args:
        uses: by link, the use of each plan.
        best_hz: by link, the frames per second to compare with.
        fixed: this many of the first plans stay.
        worth: the share of `best_hz` that may be lost on each link.
        fits: whether plans may be loaded together; while they may not, plans are left out
            whatever that loses.

    Returns:
        The numbers of the plans that stay.
    """

    def smallest_part(numbers: Sequence[int]) -> float:
        """The part of `best_hz` that these plans reach, on the link where it is smallest."""
        parts = (
            share_frames([row[number] for number in numbers]).rate_hz / rate_hz
            for row, rate_hz in zip(uses, best_hz, strict=True)
            if rate_hz < float("inf")
        )
        return min(parts, default=1.0)

    kept = list(range(len(uses[0])))
    while len(kept) > max(fixed, 1):
        fewer = max(
            ([n for n in kept if n != left_out] for left_out in kept[fixed:]), key=smallest_part
        )
        if smallest_part(fewer) < (1 - worth) * (1 - ROUNDING) and fits(kept):
            break
        kept = fewer
    return kept
