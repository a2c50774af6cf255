"""Several plans for one model, each for links and device speeds at which it wins; switching."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, TypeAlias

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Plan, Speeds

_BISECTIONS = 40
_MOST_SLOWDOWNS = 7
PlannedLink: TypeAlias = tuple[Link, Plan]


@dataclass(frozen=True, slots=True)
class BandwidthRange:
    """The upload bandwidths for which one plan of several is made: [low_bps, high_bps).

    Attributes:
        low_bps: 0 in the first range, which also holds below the sweep.
        high_bps: infinite in the last range, which also holds above the sweep.
        plan: the plan's index.
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


@dataclass(frozen=True, slots=True)
class SlowdownRanges:
    """Which plan is best at which bandwidth, while the device is slower than planned.

    Attributes:
        slowdown: factor on the device's planned seconds.
        ranges: as those of `PlanSet`.
    """

    slowdown: float
    ranges: tuple[BandwidthRange, ...]


@dataclass(frozen=True)
class PlanSet:
    """Several plans of one model, and the range of bandwidth in which each is best.

    Attributes:
        plans: different programs, in order of the first range of each; then those without a range,
            which are for slower devices or only take frames of a stream or rows of a batch.
        ranges: they cover 0 to infinity without gaps, ascending; neighbours have different plans.
            They are for the device as planned.
        shares: the planned share of a stream's frames of each plan, on the planned link (for a
            range, the mean over its links); empty: one plan takes all frames.
        slower: the ranges for each further slow-down of the device for which plans were made,
            ascending; empty: the plans are for the device as planned only.
        rows: rows of the batch that the plans were made for, if plans may share the rows of a
            batch; 0: one plan computes all rows.
    """

    plans: tuple[Plan, ...]
    ranges: tuple[BandwidthRange, ...] = EVERYWHERE
    shares: tuple[float, ...] = ()
    slower: tuple[SlowdownRanges, ...] = ()
    rows: int = 0

    def at(self, rate_bps: float) -> int:
        """The index of the plan for a bandwidth."""
        return next(r.plan for r in reversed(self.ranges) if r.low_bps <= rate_bps)

    def with_note(self, note: str) -> "PlanSet":
        """The same plans; the sentence is added to the first plan's reason."""
        if not note:
            return self
        first, *others = self.plans
        return replace(self, plans=(replace(first, reason=f"{first.reason} {note}"), *others))


def covers_all(
    ranges: Sequence[BandwidthRange],
    plans: int,
    shares: Sequence[float] = (),
    slower: Sequence[SlowdownRanges] = (),
    rows: int = 0,
) -> bool:
    """Whether all ranges are without a gap, and each plan has one or shares the work."""
    if shares and not (len(shares) == plans and min(shares) >= 0 and math.isclose(sum(shares), 1)):
        return False
    slowdowns = [1.0, *(each.slowdown for each in slower), math.inf]
    every = [ranges, *(each.ranges for each in slower)]
    used = {each.plan for row in every for each in row}
    return (
        all(map(_tiles, every))
        and all(a < b for a, b in pairwise(slowdowns))
        and used <= set(range(plans))
        and (bool(shares) or rows > 0 or len(used) == plans)
    )


def _tiles(ranges: Sequence[BandwidthRange]) -> bool:
    """Whether ranges leave no gap from 0 to infinity."""
    return (
        bool(ranges)
        and ranges[0].low_bps == 0
        and ranges[-1].high_bps == math.inf
        and all(r.low_bps < r.high_bps for r in ranges)
        and all(a.high_bps == b.low_bps for a, b in pairwise(ranges))
    )


def slowdowns_between(least: float, most: float) -> tuple[float, ...]:
    """At most seven slow-downs, evenly spaced by ratio, if possible at most 2x apart."""
    steps = min(math.ceil(math.log2(most / least)), _MOST_SLOWDOWNS - 1)
    between = (least * (most / least) ** (index / steps) for index in range(1, steps))
    return (least, *between, most)


def plans_over(
    make_plan: Callable[[Link, float], Plan],
    links: Sequence[Link],
    worth: float = 0.0,
    slowdowns: Sequence[float] = (1.0,),
) -> PlanSet:
    """Plan every link of a sweep and keep each program once, with the ranges where it wins.

    Neighbours with the same program are one range; each program is kept as planned for the middle
    of its longest range. The border between two is where their forecasts cross, so a plan that
    is made for one link of the sweep is the one of its range.

    With several slow-downs of the device, every link is planned with each of them, and each
    slow-down has its ranges.

    Every plan takes memory where it runs. With `worth`, programs are left out: at every point, one
    that is kept takes at most this share longer than the best of all. Greedy set cover (Chvatal
    1979), O(n^2) forecasts of n planned points.

    Args:
        make_plan: the best plan for a link and a slow-down of the device. Its forecast is for the
            device as planned, that is, without the slow-down.
        links: ascending in bandwidth, all else alike.
        worth: 0 keeps all.
        slowdowns: factors on the device's seconds, ascending, 1 first.

    Raises:
        InputError: no plan keeps the limits on some link.
    """
    points = [(link, Speeds(device=factor)) for factor in slowdowns for link in links]
    planned: list[Plan] = []
    for link, speeds in points:
        try:
            planned.append(make_plan(link, speeds.device))
        except InputError as error:
            slower = f" with the device {speeds.device:.3g}x slower" if speeds.device != 1 else ""
            raise InputError(f"on a link of {link.describe()}{slower}: {error}") from error
    if worth:
        planned = _fewest_programs(points, planned, worth)
    number: dict[object, int] = {}
    plans: list[Plan] = []
    rows: list[SlowdownRanges] = []
    for index, factor in enumerate(slowdowns):
        row = zip(links, planned[index * len(links) : (index + 1) * len(links)], strict=True)
        groups = [list(group) for _, group in groupby(row, lambda pair: pair[1].program)]
        longest: dict[object, list[PlannedLink]] = {}
        for group in groups:
            key = group[0][1].program
            longest[key] = max(longest.get(key, []), group, key=len)
        for program, group in longest.items():
            if program not in number:
                number[program] = len(plans)
                plans.append(_middle(group, factor))
        crossings = (_border_bps(a[-1], b[0], factor) for a, b in pairwise(groups))
        ranges = (
            BandwidthRange(low, high, number[group[0][1].program])
            for (low, high), group in zip(
                pairwise([0.0, *crossings, math.inf]), groups, strict=True
            )
        )
        rows.append(SlowdownRanges(factor, tuple(ranges)))
    return PlanSet(tuple(plans), rows[0].ranges, slower=tuple(rows[1:]))


def _middle(group: Sequence[PlannedLink], slowdown: float) -> Plan:
    """The plan of the middle link, if possible of those that were made for a link of the group."""
    own = [plan for link, plan in group if (plan.link, plan.slowdown) == (link, slowdown)]
    plans = own or [plan for _, plan in group]
    return plans[len(plans) // 2]


def _fewest_programs(
    points: Sequence[tuple[Link, Speeds]], planned: Sequence[Plan], worth: float
) -> list[Plan]:
    """The plan of each point, with the fewest programs that are nearly as good everywhere."""
    programs: dict[tuple[object, ...], Plan] = {}
    for plan in planned:
        programs.setdefault(plan.program, plan)  # as made for the smallest slow-down
    values = {
        program: [plan.forecast.value_s(*point) for point in points]
        for program, plan in programs.items()
    }
    best = [min(column) for column in zip(*values.values(), strict=True)]
    near = {
        program: {i for i, value in enumerate(row) if value <= best[i] * (1 + worth)}
        for program, row in values.items()
    }
    chosen: list[tuple[object, ...]] = []
    uncovered = set(range(len(planned)))
    while uncovered:
        chosen.append(max(programs, key=lambda p: (len(near[p] & uncovered), -sum(values[p]))))
        uncovered -= near[chosen[-1]]
    result = []
    for index, plan in enumerate(planned):
        if plan.program in chosen:
            result.append(plan)
        else:
            result.append(programs[min(chosen, key=lambda p: values[p][index])])
    return result


def _border_bps(slower: PlannedLink, faster: PlannedLink, slowdown: float) -> float:
    """The bandwidth at which the plan for the faster link overtakes the other, by bisection.

    The geometric middle where the forecasts do not cross: two plans that take the same time.
    """
    (low, before), (high, after) = slower, faster
    speeds = Speeds(device=slowdown)
    first, second = low.up_bps, high.up_bps
    for _ in range(_BISECTIONS):
        middle = math.sqrt(first * second)
        link = replace(low, up_bps=middle, down_bps=middle * low.down_bps / low.up_bps)
        if after.forecast.value_s(link, speeds) < before.forecast.value_s(link, speeds):
            second = middle
        else:
            first = middle
    return second if low.up_bps < second < high.up_bps else math.sqrt(low.up_bps * high.up_bps)


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """When to change from one plan to another.

    Attributes:
        margin: how much better the other plan must be, as a share of its own time.
        estimates: in how many estimates in a row.
        dwell_s: the least seconds between two changes.
        probe_s: seconds without a send after which the link is probed, so that an improvement is
            noticed.
    """

    margin: float = 0.1
    estimates: int = 3
    dwell_s: float = 2.0
    probe_s: float = 2.0

    def __post_init__(self) -> None:
        least = min(self.margin, self.dwell_s, self.probe_s)
        if not (least >= 0 and self.margin < math.inf and self.estimates >= 1):
            raise InputError(
                "cannot switch plans like this: margin and times must be ≥ 0, estimates ≥ 1"
            )


@dataclass(frozen=True, slots=True)
class SwitchState:
    """The plan in use, and how often in a row another one was better.

    Attributes:
        plan: its index.
        since_s: when it was chosen; minus infinity for the first.
        losses: estimates in a row in which another plan was better by the margin.
    """

    plan: int
    since_s: float = -math.inf
    losses: int = 0


def best_of(values: Sequence[float], plan: int = 0) -> int:
    """The index of the smallest value; `plan` itself where no other is smaller."""
    return min(range(len(values)), key=lambda number: (values[number], number != plan, number))


def step(
    state: SwitchState, values: Sequence[float], now_s: float, policy: SwitchPolicy
) -> SwitchState:
    """The state after one more estimate of the link.

    Args:
        state: before the estimate.
        values: seconds that each plan takes on the estimated link; infinite for one that cannot
            be run.
        now_s: the time of the estimate.
        policy: when to change.
    """
    best = best_of(values, state.plan)
    if values[state.plan] <= values[best] * (1 + policy.margin):
        return replace(state, losses=0)
    losses = state.losses + 1
    if losses < policy.estimates or now_s - state.since_s < policy.dwell_s:
        return replace(state, losses=losses)
    return SwitchState(best, now_s)
