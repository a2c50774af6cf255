"""Find the plans that share the frames of a stream, or the rows of a batch, best."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

import numpy as np

from offload.costs.link import Link
from offload.planning.batch import share_batch
from offload.planning.closed_sets import articulations
from offload.planning.cut import Cut, all_cloud, all_local, cut_at
from offload.planning.cut_costs import SPARE_BYTES, WEIGHT_COPIES
from offload.planning.mincut import ResourceWeights, min_set
from offload.planning.plan import Plan, ResourceUse, Segment, Side, Speeds
from offload.planning.plan_set import PlanSet, plans_over
from offload.planning.planner import (
    SIMPLER_ENCODINGS,
    chosen_plan,
    decide,
    error_margin_s,
    plan_of,
)
from offload.planning.problem import PlanningProblem
from offload.planning.program import with_encodings
from offload.planning.scheme import Scheme, SchemeEstimate, estimate, start_early
from offload.planning.shares import ROUNDING, fewest_members, share_frames
from offload.units import format_bytes, format_s

# A gain of this share is mentioned where it is refused.
_MENTIONED = 0.005
# Under a memory limit, pairs of this many plans are tried beside the best single plan.
_MOST_PAIRED = 30


@dataclass(frozen=True)
class Mix:
    """Plans that share the frames of a stream, the best single plan first.

    Attributes:
        members: the plans. The first one may have no share: it then only serves single inferences.
        shares: the share of frames of each.
        rate_hz: frames per second of the stream.
        bound_hz: no mix of any plans gives more frames per second.
        found_hz: frames per second before plans were left out that gain little; 0: none were.
        refused_bytes: memory that the plans of a faster mix would need together, where that is
            more than the limit.
    """

    members: tuple[SchemeEstimate, ...]
    shares: tuple[float, ...]
    rate_hz: float
    bound_hz: float
    found_hz: float = 0.0
    refused_bytes: int | None = None

    @classmethod
    def of(cls, members: Sequence[SchemeEstimate], bound_hz: float = float("inf")) -> "Mix":
        """The mix of some plans with their best shares."""
        shared = share_frames(_uses(members))
        return cls(tuple(members), shared.shares, shared.rate_hz, bound_hz)

    @property
    def is_optimal(self) -> bool:
        """Whether it is proved that no mix gives more frames per second."""
        return self.rate_hz >= self.bound_hz * (1 - ROUNDING)


def _uses(members: Iterable[SchemeEstimate]) -> list[ResourceUse]:
    return [ResourceUse.of(member.instance) for member in members]


def _priced(prices: Sequence[float], member: SchemeEstimate) -> float:
    return float(np.dot(prices, ResourceUse.of(member.instance).seconds))


def best_mix(problem: PlanningProblem, single: SchemeEstimate, worth: float = 0.0) -> Mix:
    """The mix of plans with the most frames per second, within the limits.

    Column generation (Gilmore & Gomory 1961; Dantzig & Wolfe 1960): the best shares of the plans
    known so far give each resource a price; the plan that uses least at these prices is a minimum
    cut (`least_use`), and it joins if it uses less than 1. If no plan does, no mix is better. At
    any prices, their sum divided by the least use is a bound on the rate (Farley 1990).

    A deadline, a limit on memory or on energy restricts which plans may take part, which a minimum
    cut cannot express: the known plans then begin with the cuts at single layers, and the search
    ends when a minimum cut breaks a limit. The bound also holds then, but may not be reached.
    A memory limit holds for all plans together: of the plans found, the best one or two that fit
    beside the single plan are added.

    Args:
        problem: the graph, its costs, all encodings allowed, and the constraints.
        single: the best single plan, which always is a member.
        worth: leave out a plan if the others give all but this share of the frames per second.

    One minimum cut and one small linear program for each plan found: 2 to 20 in practice.
    """
    found = [single]
    if _is_limited(problem):
        cuts = (cut_at(problem.graph, problem.graph.ancestors((a,))) for a in _gates(problem))
        usable = (cut for cut in cuts if not problem.costs.unsized.intersection(cut.uploads))
        tried = (_within_limits(problem, _serial(problem, cut)) for cut in usable)
        found += [member for member in tried if member is not None]
    bound_hz = float("inf")
    while (shared := share_frames(_uses(found))).rate_hz < float("inf"):
        cheapest = least_use(problem, shared.prices)
        least = _priced(shared.prices, cheapest)
        bound_hz = min(bound_hz, shared.rate_hz / min(least, 1.0) if least else float("inf"))
        able = _within_limits(problem, cheapest)
        if able is None or _priced(shared.prices, able) >= 1 - ROUNDING:
            break
        if _uses([able])[0] in _uses(found):
            break  # known, and so much slower than the others that rounding hides its gain
        found.append(able)
    members = [
        member
        for number, (member, share) in enumerate(zip(found, shared.shares, strict=True))
        if number == 0 or share > ROUNDING
    ]
    refused_bytes = None
    if not _fits(problem, members):
        refused_bytes = together_bytes(problem, _memory(problem, members))
        members = _best_that_fit(problem, found)
    uses = _uses(members)
    found_hz = share_frames(uses).rate_hz
    kept = fewest_members([uses], [found_hz], 1, worth)
    mix = Mix.of([members[number] for number in kept], bound_hz)
    return replace(mix, found_hz=found_hz, refused_bytes=refused_bytes)


def _is_limited(problem: PlanningProblem) -> bool:
    """Whether a limit other than pinned layers excludes plans."""
    c = problem.constraints
    limits = (c.memory_bytes, c.deadline_s, c.period_s, c.energy_j)
    return any(limit is not None for limit in limits)


def least_use(problem: PlanningProblem, prices: Sequence[float]) -> SchemeEstimate:
    """The plan that uses least at given prices of device, uplink, server and downlink.

    Each tensor is sent with the encoding that is cheapest at these prices. The plan with one
    segment on each side uses least of all that have the same cut; a minimum cut finds it among all
    cuts that split the model, where the two segments cost the same, and it is compared with
    computing all on one side. Of the limits only the pinned layers are kept.
    """
    graph, (device, uplink, server, downlink) = problem.graph, prices
    costs = problem.costs.with_cheapest_uploads(
        lambda o: device * o.encode_s + uplink * o.link_s + server * o.decode_s
    )
    priced = replace(problem, costs=costs)
    weights = ResourceWeights(device, uplink, server, downlink)
    in_one_segment = replace(costs, device_segment_s=0.0)
    cuts = [
        cut_at(graph, min_set(graph, in_one_segment, problem.pinned, weights=weights)),
        all_local(graph),
    ]
    if not (problem.pinned or costs.unsized.intersection(graph.inputs)):
        cuts.append(all_cloud(graph))
    estimates = [_serial(priced, cut) for cut in dict.fromkeys(cuts)]
    return min(estimates, key=lambda member: _priced(prices, member))


def _gates(problem: PlanningProblem) -> Iterable[int]:
    """The layers that everything passes, behind which the pinned layers allow a cut."""
    graph = problem.graph
    return (a for a in articulations(graph) if graph.ancestors((a,)) >= problem.pinned)


def _serial(problem: PlanningProblem, cut: Cut) -> SchemeEstimate:
    """A cut with one segment on each side, named by its simplest scheme."""
    serial = estimate(problem, Scheme.PARTITION, cut)
    if len(cut.device) == len(problem.graph.layers):
        return serial.renamed(Scheme.LOCAL)
    if not cut.device:
        return serial.renamed(Scheme.CLOUD)
    return serial.renamed(Scheme.NEUROSURGEON) if len(cut.uploads) == 1 else serial


def _within_limits(problem: PlanningProblem, member: SchemeEstimate) -> SchemeEstimate | None:
    """A plan that keeps the limits: it, or the same cut with uploads overlapped; None: neither."""
    if member.value < float("inf"):
        return member
    same_encodings = replace(problem, costs=member.costs)
    overlapped = start_early(same_encodings, estimate(same_encodings, Scheme.OPSS, member.cut))
    return overlapped if overlapped.value < float("inf") else None


PlanMemory: TypeAlias = tuple[int, Sequence[Segment]]
"""The memory of the device's process with one plan, and the plan's segments on the device."""


def together_bytes(problem: PlanningProblem, plans: Iterable[PlanMemory]) -> int:
    """Memory of a device's process that has all plans loaded, rounded up.

    As `process_bytes` for each plan; the process itself and the weights of segments that several
    plans share count once.
    """
    shared_bytes = problem.client_bytes + SPARE_BYTES
    weights = {layer.name: layer.weight_bytes for layer in problem.graph.layers}
    total_bytes = float(shared_bytes)
    loaded: set[Segment] = set()
    for memory_bytes, segments in plans:
        total_bytes += memory_bytes - shared_bytes
        for segment in segments:
            content = replace(segment, id="")
            if content in loaded:
                total_bytes -= WEIGHT_COPIES * sum(weights[name] for name in segment.layers)
            loaded.add(content)
    return round(total_bytes)


def _memory(problem: PlanningProblem, members: Iterable[SchemeEstimate]) -> Iterator[PlanMemory]:
    for member in members:
        program = with_encodings(member.program, member.costs, problem.graph.outputs)
        yield member.alternative.memory_bytes, program.on(Side.DEVICE)


def _fits(problem: PlanningProblem, members: Sequence[SchemeEstimate]) -> bool:
    """Whether plans may be loaded together; a single plan keeps the limit already."""
    limit_bytes = problem.constraints.memory_bytes
    if limit_bytes is None or len(members) == 1:
        return True
    return together_bytes(problem, _memory(problem, members)) <= limit_bytes


def _best_that_fit(
    problem: PlanningProblem, found: Sequence[SchemeEstimate]
) -> list[SchemeEstimate]:
    """The first plan and the one or two others that fit into memory with it and gain most."""
    first = found[0]

    def rate_hz(members: Sequence[SchemeEstimate]) -> float:
        return share_frames(_uses(members)).rate_hz

    pairs = [[first, other] for other in found[1:] if _fits(problem, [first, other])]
    pairs = sorted(pairs, key=rate_hz, reverse=True)[:_MOST_PAIRED]
    triples = (
        [first, a[1], b[1]]
        for a, b in combinations(pairs, 2)
        if _fits(problem, [first, a[1], b[1]])
    )
    return max(([first], *pairs, *triples), key=rate_hz)


def gain_is_certain(better: Mix, other: Mix) -> bool:
    """Whether a mix gains more frames per second than its prediction may be wrong.

    The rule by which plans are compared (`exceeds_margin`), on the mean of the frames: each frame
    is compared with the most similar plan of the other mix.
    """
    if other.rate_hz == float("inf"):
        return False
    gain = 1 - other.rate_hz / better.rate_hz
    margin_s = sum(
        share * min(error_margin_s(member, similar) for similar in other.members)
        for member, share in zip(better.members, better.shares, strict=True)
        if share
    )
    latency_s = sum(
        share * member.latency_s for member, share in zip(other.members, other.shares, strict=True)
    )
    return gain * latency_s > margin_s


def certain_mix(
    problem: PlanningProblem, single: SchemeEstimate, worth: float = 0.0
) -> tuple[Mix, str]:
    """The best mix whose gain is certain, else the single plan, and one sentence about it.

    A mix with lossy encodings must gain more than the prediction error against one with lossless
    encodings, that against one without, and each against the single plan (`gain_is_certain`).
    Arguments as for `best_mix`.
    """
    alone = Mix.of([single])
    mix = best_mix(problem, single, worth)
    for is_allowed in SIMPLER_ENCODINGS.values():
        options = (o for member in mix.members for o in member.costs.options_of(member.cut))
        if not all(is_allowed(option.encoding) for option in options):
            simpler = replace(problem, costs=problem.costs.allowing(is_allowed))
            less = replace(best_mix(simpler, single, worth), bound_hz=mix.bound_hz)
            if not gain_is_certain(mix, less):
                mix = less
    active = sum(share > ROUNDING for share in mix.shares)
    if active > 1 and gain_is_certain(mix, alone):
        return mix, _accepted(problem, mix, alone.rate_hz)
    return alone, _refused(problem, mix, alone.rate_hz, active)


def _accepted(problem: PlanningProblem, mix: Mix, single_hz: float) -> str:
    members = zip(mix.members, mix.shares, strict=True)
    first, *others = (
        (f"{share:.0%}", f"plan {number} ({member.scheme})")
        for number, (member, share) in enumerate(members)
        if share > ROUNDING
    )
    frames = ", ".join((" of the frames take ".join(first), *map(" ".join, others)))
    proof = "no mix of plans gives more"
    if not mix.is_optimal:
        proof += f" than {mix.bound_hz:.3g}"
        if mix.refused_bytes is not None:
            proof = f"a faster mix would need {format_bytes(mix.refused_bytes)} of memory; {proof}"
        elif _is_limited(problem):
            proof = f"this is the best mix found within the limits; {proof}"
    return (
        f"In a stream, {frames}: {mix.rate_hz:.3g} frames/s,"
        f" {mix.rate_hz / single_hz:.2f}x this plan alone ({single_hz:.3g}); {proof}."
    )


def _refused(problem: PlanningProblem, mix: Mix, single_hz: float, active: int) -> str:
    """Why this plan takes all frames; empty where no mix is better."""
    gain = mix.found_hz / single_hz if single_hz < float("inf") else 1.0
    if gain > 1 + _MENTIONED:
        why = "within the prediction error" if active > 1 else "too little for another plan"
        return (
            f"A mix of plans would give {mix.found_hz:.3g} frames/s, {gain:.2f}x this plan alone,"
            f" which is {why}: this plan takes all frames."
        )
    limit_bytes = problem.constraints.memory_bytes
    if mix.refused_bytes is not None and limit_bytes is not None:
        return (
            f"The plans of a faster mix need {format_bytes(mix.refused_bytes)} of memory together,"
            f" more than the limit {format_bytes(limit_bytes)}: this plan takes all frames."
        )
    if _is_limited(problem) and not mix.is_optimal:
        return "No mix of plans was found that keeps the limits and gives more frames/s."
    return ""


def make_mix(
    problem: PlanningProblem, solver: str = "optimal", worth: float = 0.0
) -> tuple[PlanSet, str]:
    """The best single plan, and the plans that share a stream's frames with it where that pays.

    Args:
        problem: the graph, its costs and the constraints.
        solver: the scheduler of the single plan.
        worth: leave out a plan if the others give all but this share of the frames per second.

    Returns:
        The plans, the best single one first, and a sentence: what sharing gains, or why it is
        left out; empty where no mix is faster.

    Raises:
        InputError: no plan keeps the limits.
    """
    choice = decide(problem, solver=solver)
    mix, why = certain_mix(problem, choice.chosen, worth)
    plan = chosen_plan(choice)
    if len(mix.members) == 1:
        return PlanSet((plan,)), why
    others = (
        replace(plan_of(problem, (member,), member), reason=_reason(member, share))
        for member, share in zip(mix.members[1:], mix.shares[1:], strict=True)
    )
    return PlanSet((plan, *others), shares=mix.shares), why


def _reason(member: SchemeEstimate, share: float) -> str:
    names = ("device", "uplink", "server", "downlink")
    use = zip(names, ResourceUse.of(member.instance).seconds, strict=True)
    busy = ", ".join(f"{name} {format_s(seconds)}" for name, seconds in use if seconds)
    return f"Takes {share:.0%} of a stream's frames; one frame uses {busy}."


def mix_over(
    problem: PlanningProblem,
    singles: PlanSet,
    mixes: Mapping[tuple[Link, float], PlanSet],
    worth: float,
) -> PlanSet:
    """The few plans that share a stream's frames over a range of links nearly as well as any.

    Of all plans of the links' mixes, one is left out if the others give all but `worth` of the
    frames per second on every link, at every slow-down of the device. Each plan gets the range of
    links on which it is the best of those that stay, where there is one. The shares are means over
    the links, with the device as planned.

    Args:
        problem: with the memory limit.
        singles: the best single plans for the links; the result where no mix pays, or where no
            plans fit the memory together that are as fast.
        mixes: by link and slow-down, as `plans_over` takes them, the result of `make_mix`, with
            forecasts for the device as planned.
        worth: as a share of the frames per second.
    """
    if not any(mix.shares for mix in mixes.values()):
        return singles
    by_program = {plan.program: plan for plan in singles.plans}
    for mix in mixes.values():
        for plan in mix.plans:
            by_program.setdefault(plan.program, plan)
    pool = tuple(by_program.values())
    limit_bytes = problem.constraints.memory_bytes

    def fits(numbers: Sequence[int]) -> bool:
        memory = (_plan_memory(pool[number]) for number in numbers)
        return limit_bytes is None or together_bytes(problem, memory) <= limit_bytes

    points = [(link, Speeds(device=slowdown)) for link, slowdown in mixes]

    def uses_of(plans: Iterable[Plan], point: tuple[Link, Speeds]) -> list[ResourceUse]:
        return [plan.forecast.use(*point) for plan in plans]

    uses = [uses_of(pool, point) for point in points]
    best_hz = [
        share_frames(uses_of(mix.plans, point)).rate_hz
        for point, mix in zip(points, mixes.values(), strict=True)
    ]
    kept = fewest_members(uses, best_hz, 0, worth, fits)
    shared = [share_frames([row[number] for number in kept]) for row in uses]
    for rates, point, mix in zip(shared, points, mixes.values(), strict=True):
        single_hz = share_frames(uses_of(mix.plans[:1], point)).rate_hz
        if rates.rate_hz < single_hz * (1 - worth) * (1 - ROUNDING):
            return singles.with_note(
                "One plan takes all frames of a stream: plans that share them do not fit the"
                " memory limit together."
            )
    plans = [pool[number] for number in kept]

    def best_plan(link: Link, slowdown: float) -> Plan:
        speeds = Speeds(device=slowdown)
        return min(plans, key=lambda plan: plan.forecast.value_s(link, speeds))

    links = list(dict.fromkeys(link for link, _ in mixes))
    slowdowns = list(dict.fromkeys(slowdown for _, slowdown in mixes))
    ranged = plans_over(best_plan, links, slowdowns=slowdowns)
    if len(plans) == 1:
        return ranged
    means = np.mean([rates.shares for rates in shared[: len(links)]], axis=0).tolist()
    share_of = {plan.program: share for plan, share in zip(plans, means, strict=True)}
    with_range = {plan.program for plan in ranged.plans}
    members = (*ranged.plans, *(plan for plan in plans if plan.program not in with_range))
    shares = tuple(share_of[plan.program] for plan in members)
    return replace(ranged, plans=members, shares=shares)


def _plan_memory(plan: Plan) -> PlanMemory:
    figures = next(figures for figures in plan.alternatives if figures.scheme == plan.scheme)
    return figures.memory_bytes, plan.on(Side.DEVICE)


def batch_plans(
    problem: PlanningProblem, link: Link, plan: Plan, rows: int, worth: float = 0.0
) -> PlanSet:
    """A plan, and those that share the rows of a batch with it where that is certain to pay.

    Tried are the plans that would share a stream of such batches best (`best_mix`), and those
    that compute everything on one side, where the limits allow them.

    Args:
        problem: made for a batch of these rows, with lossless encodings only.
        link: of the problem.
        plan: the best plan for the whole batch.
        rows: of the batch; they must be independent.
        worth: as for `best_mix`.
    """
    graph, costs = problem.graph, problem.costs
    sides = [_serial(problem, all_local(graph))]
    if not (problem.pinned or costs.unsized.intersection(graph.inputs)):
        sides.append(_serial(problem, all_cloud(graph)))
    mates = (*sides, *best_mix(problem, sides[0], worth).members)
    by_program = {plan.program: plan}
    for mate in mates:
        if mate.value < float("inf"):
            made = plan_of(problem, (mate,), mate)
            by_program.setdefault(made.program, made)
    pool = list(by_program.values())
    shared = share_batch(pool, rows, rows, link)
    used = [each for each, count in zip(pool, shared.rows_by_plan(len(pool)), strict=True) if count]
    plans = (plan, *(each for each in used if each is not plan))
    limit_bytes = problem.constraints.memory_bytes
    is_small = (
        limit_bytes is None or together_bytes(problem, map(_plan_memory, plans)) <= limit_bytes
    )
    if not (shared.is_certain and is_small):
        return PlanSet((plan,), rows=rows)
    computes = "Takes rows of a batch from plan 0."
    return PlanSet((plan, *(replace(each, reason=computes) for each in plans[1:])), rows=rows)
