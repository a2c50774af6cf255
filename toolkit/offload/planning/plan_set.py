"""Several plans for one model, each for the bandwidths at which it wins, and when to switch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, TypeAlias

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Plan

_HALVINGS = 40
Cell: TypeAlias = tuple[Link, Plan]


@dataclass(frozen=True, slots=True)
class BandwidthRange:
    """The bandwidths up for which one plan of several is meant: [low_bps, high_bps).

    Attributes:
        low_bps: 0 in the first range: it also holds below the sweep.
        high_bps: infinite in the last: it also holds above the sweep.
        plan: the plan's number.
    """

    low_bps: float
    high_bps: float
    plan: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object, an open end as null; `from_json` reads it."""
        high_bps = self.high_bps if math.isfinite(self.high_bps) else None
        return {"low_bps": self.low_bps, "high_bps": high_bps, "plan": self.plan}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "BandwidthRange":
        """Read what `to_json` wrote."""
        high_bps = math.inf if value["high_bps"] is None else float(value["high_bps"])
        return cls(float(value["low_bps"]), high_bps, int(value["plan"]))


EVERYWHERE = (BandwidthRange(0.0, math.inf, 0),)


@dataclass(frozen=True)
class PlanSet:
    """Several plans of one model, and the ranges of bandwidth that tell when each is best.

    Attributes:
        plans: different programs, in order of the first range of each.
        ranges: they tile 0 to infinity, ascending; neighbours have different plans.
    """

    plans: tuple[Plan, ...]
    ranges: tuple[BandwidthRange, ...] = EVERYWHERE

    def at(self, rate_bps: float) -> int:
        """The number of the plan for a bandwidth."""
        return next(r.plan for r in reversed(self.ranges) if r.low_bps <= rate_bps)


def tiles(ranges: Sequence[BandwidthRange], plans: int) -> bool:
    """Whether ranges leave no gap from 0 to infinity, and each plan has one."""
    return (
        bool(ranges)
        and ranges[0].low_bps == 0
        and ranges[-1].high_bps == math.inf
        and all(r.low_bps < r.high_bps for r in ranges)
        and all(a.high_bps == b.low_bps for a, b in pairwise(ranges))
        and {r.plan for r in ranges} == set(range(plans))
    )


def plans_over(
    planned: Callable[[Link], Plan], links: Sequence[Link], worth: float = 0.0
) -> PlanSet:
    """Plan every link of a sweep and keep each program once, with the ranges where it wins.

    Neighbours with the same program are one range; each program is kept as planned for the middle
    of its longest range. The border between two is where their forecasts cross, so a plan that
    is made for one link of the sweep is the one of its range.

    Every plan takes memory where it runs. With `worth`, a program is left out where another that
    is kept takes at most this share longer, on every link that it wins: greedy set cover, O(n^3)
    forecasts of n links at worst.

    Args:
        planned: the best plan for a link.
        links: ascending in bandwidth, all else alike.
        worth: 0 keeps all.

    Raises:
        InputError: no plan keeps the limits on some link.
    """
    cells = [(link, _planned(planned, link)) for link in links]
    if worth and all(plan.forecast for _, plan in cells):
        cells = _worthwhile(cells, worth)
    groups = [list(group) for _, group in groupby(cells, lambda cell: cell[1].program)]
    borders = [0.0, *(_border(a[-1], b[0]) for a, b in pairwise(groups)), math.inf]
    longest: dict[object, list[Cell]] = {}
    for group in groups:
        program = group[0][1].program
        longest[program] = max(longest.get(program, []), group, key=len)
    number = {program: index for index, program in enumerate(longest)}
    return PlanSet(
        tuple(_middle(group) for group in longest.values()),
        tuple(
            BandwidthRange(low, high, number[group[0][1].program])
            for (low, high), group in zip(pairwise(borders), groups, strict=True)
        ),
    )


def _middle(group: Sequence[Cell]) -> Plan:
    """The plan for the middle of a range; of those made for its own links, if there are any."""
    own = [plan for link, plan in group if plan.link == link] or [plan for _, plan in group]
    return own[len(own) // 2]


def _worthwhile(cells: Sequence[Cell], worth: float) -> list[Cell]:
    """The links with the fewest programs that are nearly as good everywhere."""
    programs = {plan.program: plan for _, plan in cells}
    takes = {
        program: [_value_s(plan, link) for link, _ in cells] for program, plan in programs.items()
    }
    own = [takes[plan.program][index] for index, (_, plan) in enumerate(cells)]
    near = {
        program: {i for i, value in enumerate(values) if value <= own[i] * (1 + worth)}
        for program, values in takes.items()
    }
    kept: list[tuple[object, ...]] = []
    left = set(range(len(cells)))
    while left:
        kept.append(max(programs, key=lambda p: (len(near[p] & left), -sum(takes[p]))))
        left -= near[kept[-1]]

    def chosen(index: int, plan: Plan) -> Plan:
        if plan.program in kept:
            return plan
        return programs[min(kept, key=lambda p: takes[p][index])]

    return [(link, chosen(index, plan)) for index, (link, plan) in enumerate(cells)]


def _value_s(plan: Plan, link: Link) -> float:
    return math.inf if plan.forecast is None else plan.forecast.value_s(link)


def _planned(planned: Callable[[Link], Plan], link: Link) -> Plan:
    try:
        return planned(link)
    except InputError as error:
        raise InputError(f"on a link of {link.describe()}: {error}") from error


def _border(slower: Cell, faster: Cell) -> float:
    """The bandwidth at which the plan for the faster link overtakes the other, by bisection.

    The geometric middle where forecasts do not cross: two plans that take as long.
    """
    (low, before), (high, after) = slower, faster
    first, second = low.up_bps, high.up_bps
    if before.forecast is None or after.forecast is None:
        return math.sqrt(first * second)
    for _ in range(_HALVINGS):
        middle = math.sqrt(first * second)
        link = replace(low, up_bps=middle, down_bps=middle * low.down_bps / low.up_bps)
        if after.forecast.value_s(link) < before.forecast.value_s(link):
            second = middle
        else:
            first = middle
    return second if low.up_bps < second < high.up_bps else math.sqrt(low.up_bps * high.up_bps)


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """How sure one must be before changing plans.

    Attributes:
        margin: how much better the other plan must be, as a share of what it takes itself.
        estimates: in how many estimates in a row.
        dwell_s: seconds that a plan is kept at least.
        probe_s: seconds without a send after which the link is sounded, or nothing would tell
            when it becomes better.
    """

    margin: float = 0.1
    estimates: int = 3
    dwell_s: float = 2.0
    probe_s: float = 2.0

    def __post_init__(self) -> None:
        least = min(self.margin, self.dwell_s, self.probe_s)
        if not (least >= 0 and self.margin < math.inf and self.estimates >= 1):
            raise InputError("switching needs a margin and times not below 0, and one estimate")


@dataclass(frozen=True, slots=True)
class SwitchState:
    """The plan that is followed, and how strongly another one presses.

    Attributes:
        plan: its number.
        since_s: when it was taken up; in the endless past for the first.
        losses: estimates in a row in which another plan was better by the margin.
    """

    plan: int
    since_s: float = -math.inf
    losses: int = 0


def best_of(values: Sequence[float], plan: int = 0) -> int:
    """The number of the smallest value; `plan` itself where no other is smaller."""
    return min(range(len(values)), key=lambda number: (values[number], number != plan, number))


def step(
    standing: SwitchState, values: Sequence[float], now_s: float, rule: SwitchPolicy
) -> SwitchState:
    """The standing after one more estimate.

    Args:
        standing: before it.
        values: what each plan takes on the link as it is estimated; infinite for one that cannot
            be run.
        now_s: the time of the estimate.
        rule: how sure one must be.
    """
    best = best_of(values, standing.plan)
    if values[standing.plan] <= values[best] * (1 + rule.margin):
        return replace(standing, losses=0)
    losses = standing.losses + 1
    if losses < rule.estimates or now_s - standing.since_s < rule.dwell_s:
        return replace(standing, losses=losses)
    return SwitchState(best, now_s)
