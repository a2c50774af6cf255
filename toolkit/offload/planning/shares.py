"""Shares of a stream's frames for given plans: the best ones, and the plan of the next frame."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offload.planning.plan import ResourceUse

# Relative differences of rates below this are rounding errors.
ROUNDING = 1e-6
_LEAST_PIVOT = 1e-9
DEFAULT_WINDOW = 4
"""Frames under way at once in a stream that follows one plan."""
_LARGEST_WINDOW = 64
# A frame is under way for longer than its latency alone: it also waits for resources.
_WAITING = 1.5
_SPARE = 4 / 3  # of the window, where a resource is faster than estimated


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
        """The smallest ratio of these plans' rate to `best_hz` over all links."""
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


def shares_within(
    uses: Sequence[ResourceUse], latencies_s: Sequence[float], window: int
) -> tuple[tuple[float, ...], float]:
    """The share of the frames of each plan, if at most `window` frames are under way at once.

    Answers come in order, so a frame with a long latency holds up the window: while it is under
    way, `window` frames can be answered at most. The plans with the longest latencies are left
    out one after the other, and the set with the most frames per second is taken.
    O(plans) linear programs.

    Args:
        uses: the seconds that one frame of each plan keeps each resource busy; at least one plan.
        latencies_s: the seconds from a frame to its answer, by plan.
        window: frames under way at once.

    Returns:
        Shares that add up to 1, and the frames per second.
    """
    by_latency = sorted(range(len(uses)), key=lambda plan: latencies_s[plan])
    best, best_hz = (0.0,) * len(uses), 0.0
    for count in range(len(uses), 0, -1):
        allowed = by_latency[:count]
        shared = share_frames([uses[plan] for plan in allowed])
        share_of = dict(zip(allowed, shared.shares, strict=True))
        members = [plan for plan, share in share_of.items() if share]
        longest_s = max(latencies_s[plan] for plan in members)
        reachable_hz = shared.rate_hz
        if len(members) > 1:
            reachable_hz = min(reachable_hz, window / (_WAITING * longest_s))
        if reachable_hz > best_hz:
            best_hz = reachable_hz
            best = tuple(share_of.get(plan, 0.0) for plan in range(len(uses)))
    return best, best_hz


def window_for(uses: Sequence[ResourceUse], latencies_s: Sequence[float]) -> int:
    """The frames that must be under way at once to keep the best mix of plans busy.

    Little's law (Little 1961) for the plan with the longest latency, as answers come in order.
    """
    shared = share_frames(uses)
    members = [s for s, share in zip(latencies_s, shared.shares, strict=True) if share]
    needed = _SPARE * _WAITING * shared.rate_hz * max(members) if len(members) > 1 else 0.0
    return DEFAULT_WINDOW + math.ceil(min(needed, _LARGEST_WINDOW - DEFAULT_WINDOW))


def take_turn(
    credit: Sequence[float], shares: Sequence[float], waiting: Sequence[int]
) -> tuple[int, tuple[float, ...]]:
    """The plan of the next frame, and the credits after it.

    Each plan earns its share of every frame and pays for each frame that it gets; the plan with
    the most credit is next. A greedy rule for the chairman assignment problem (Tijdeman 1980).

    A plan is passed over while it has more waiting frames than its share of them plus one: one of
    its resources is slower than estimated, and by shares alone the other plans would wait for it.

    Args:
        credit: of each plan so far; 0 at the start.
        shares: of each plan; at least one is positive. They may change from frame to frame.
        waiting: the frames of each plan that are not computed yet.
    """
    earned = [earlier + share for earlier, share in zip(credit, shares, strict=True)]
    able = [plan for plan, share in enumerate(shares) if share > 0]
    most = [share * sum(waiting) + 1 for share in shares]
    punctual = [plan for plan in able if waiting[plan] <= most[plan]]
    plan = max(punctual or able, key=earned.__getitem__)
    earned[plan] -= 1
    # Limited, so that a plan that was passed over does not catch up with a burst of frames.
    return plan, tuple(min(max(each, -1.0), 1.0) for each in earned)
