"""Compare the ways to run a model and choose the best within the limits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from offload.costs.encodings import RAW, Encoding
from offload.errors import InputError
from offload.planning.apply_encodings import best_encoded, encoded
from offload.planning.closed_sets import articulations, neurosurgeon
from offload.planning.constraints import Constraints, Objective
from offload.planning.costs import SLOW, process_bytes
from offload.planning.cut import Cut, all_cloud, all_local, cut_at
from offload.planning.explain import explain, impossible
from offload.planning.joint import JointCut, LatencyOf, joint
from offload.planning.mincut import min_cut
from offload.planning.plan import Plan, Side
from offload.planning.program import scheduling_problem
from offload.planning.scheme import (
    PlanningProblem,
    Scheme,
    SchemeEstimate,
    candidate,
    forecast_of,
    predict,
    program_instance,
)
from offload.planning.server_pipelining import start_early
from offload.scheduling.schedule import simple_bound_s
from offload.scheduling.solve import solve

# By so much of the seconds in which two plans differ, their difference may be off: profiles and
# links are a few percent wrong (docs/planning.md).
DOUBT = 0.05
# A plan that asks the server takes so much longer than predicted: threads, messages, wake-ups.
ASKING_S = 0.002
# Each further segment may cost its side this share of its seconds more than predicted.
SEGMENT_DOUBT = 0.01
# Schemes that stand unless another gains more than predictions are off by: everything on one
# side, and a split with nothing overlapped.
SIMPLE = (Scheme.LOCAL, Scheme.CLOUD, Scheme.NEUROSURGEON, Scheme.PARTITION)


def error_margin_s(one: SchemeEstimate, other: SchemeEstimate) -> float:
    """By how much the difference between two plans' latencies may be wrong.

    What both do alike is wrong alike. The seconds in which they differ, of the device, the link
    and the server, are each `DOUBT` off; encoding and decoding may be half as fast as measured,
    and sizes such as 95 of 100 inputs keep to. Where only one of them asks the server, it may take
    `ASKING_S` more; each segment that one has more than the other adds `SEGMENT_DOUBT` of what
    its side computes.
    """
    a, b = one.costs, other.costs
    layers_s = sum(a.device_s[layer] for layer in one.cut.device ^ other.cut.device)
    server_s = sum(a.server_s[layer] for layer in one.cut.device ^ other.cut.device)
    up_s = abs(a.sending_s(one.cut) - b.sending_s(other.cut))
    down_s = abs(a.result_s(one.cut) - b.result_s(other.cut))
    asking_s = ASKING_S if bool(one.cut.downloads) != bool(other.cut.downloads) else 0.0
    return (
        DOUBT * (layers_s + server_s + up_s + down_s)
        + asking_s
        + _further_segments_s(one, other)
        + abs(_varying_s(one) - _varying_s(other))
    )


def _further_segments_s(one: SchemeEstimate, other: SchemeEstimate) -> float:
    total_s = 0.0
    for side in Side:
        counts = [sum(s.side is side for s in each.program.segments) for each in (one, other)]
        more = one if counts[0] > counts[1] else other
        cut, costs = more.cut, more.costs
        side_s = costs.compute_s(cut) if side is Side.DEVICE else costs.rest_s(cut)
        further = max(counts) - max(min(counts), 1)  # the first is no further one
        total_s += SEGMENT_DOUBT * side_s * max(further, 0)
    return total_s


def _varying_s(found: SchemeEstimate) -> float:
    return sum(
        (SLOW - 1) * (way.encode_s + way.decode_s) + way.p95_link_s - way.link_s
        for way in found.costs.taken(found.cut)
    )


def exceeds_margin(one: SchemeEstimate, other: SchemeEstimate) -> bool:
    """Whether a plan is better than another by more than the doubt, in what is asked for."""
    if other.value == float("inf"):
        return True
    gain = other.value - one.value
    return gain * other.latency_s > error_margin_s(one, other) * other.value


def simplest_within_margin(
    candidates: Sequence[SchemeEstimate], best: SchemeEstimate
) -> SchemeEstimate:
    """The plan to choose: the best simple one, unless the best of all pays against it.

    Args:
        candidates: what was compared.
        best: the one of the smallest value.
    """
    able = [c for c in candidates if c.scheme in SIMPLE and c.value < float("inf")]
    simple = min(able, key=lambda c: c.value, default=None)
    if simple is None or best.scheme in SIMPLE or exceeds_margin(best, simple):
        return best
    return simple


def keeps_to(found: SchemeEstimate, suits: Callable[[Encoding], bool]) -> bool:
    """Whether a plan uses only encodings that suit."""
    return all(suits(way.encoding) for way in found.costs.taken(found.cut))


def only(situation: PlanningProblem, suits: Callable[[Encoding], bool]) -> PlanningProblem:
    """The situation with the encodings that suit, and raw."""
    return replace(situation, costs=situation.costs.only(suits))


def is_raw(encoding: Encoding) -> bool:
    """For `keeps_to` and `only`: nothing is encoded."""
    return encoding is RAW


def is_lossless(encoding: Encoding) -> bool:
    """For `keeps_to` and `only`: nothing is lost."""
    return encoding.is_lossless


def less_said(one: SchemeEstimate, other: SchemeEstimate, words: str) -> str:
    """One sentence for a plan's reason: why it goes without; empty where nothing is lost by it."""
    gain = 1 - one.value / other.value if other.value else 0.0
    if gain <= 0:
        return ""
    return (
        f"More would be gained by encodings ({gain:.1%}), but less than predictions may be off by:"
        f" all crosses {words}."
    )


# Seconds to order one cut while many are compared; the chosen cut gets the full time.
_ORDER_BUDGET_S = 0.02
_SAME = 1 + 1e-9


def compare(
    situation: PlanningProblem, cut: Cut | None = None, solver: str = "optimal"
) -> tuple[SchemeEstimate, ...]:
    """All schemes that can run, simplest first.

    Args:
        situation: the graph, its costs and what is asked for.
        cut: replaces the cut of PO and OPSS; the others stay, to be compared with.
        solver: the scheduler of OPSS and of the joint search.
    """
    graph, costs, demand = situation.graph, situation.costs, situation.demand
    pinned = graph.ancestors(demand.pinned)
    shared = serial_cut(situation) if cut is None else cut
    cloud = None if pinned or costs.unsized.intersection(graph.inputs) else all_cloud(graph)
    chain = neurosurgeon(graph, costs, demand)
    plain = (
        (Scheme.LOCAL, all_local(graph)),
        (Scheme.CLOUD, cloud),
        (Scheme.NEUROSURGEON, chain),
        (Scheme.PARTITION, shared),
        (Scheme.OPSS, shared),
    )
    worked: dict[tuple[Cut, bool, bool], SchemeEstimate] = {}
    named = []
    for scheme, its in plain:
        if its is not None:
            key = (its, scheme.overlaps, scheme.starts_early)
            if key not in worked:
                worked[key] = _worked(situation, scheme, its, solver)
            named.append(worked[key].called(scheme))
    return (*named, *_joint(situation, search(situation, solver), named, solver))


def serial_cut(situation: PlanningProblem) -> Cut:
    """PO's cut: the best when nothing overlaps.

    The device's part is then one segment, however many tensors go up.
    """
    demand, graph = situation.demand, situation.graph
    costs = replace(situation.costs, device_segment_s=0.0)
    return min_cut(graph, costs, graph.ancestors(demand.pinned))


def _worked(situation: PlanningProblem, scheme: Scheme, cut: Cut, solver: str) -> SchemeEstimate:
    """A scheme on a cut, with the encodings that suit it, the server starting early."""
    found = candidate(situation, scheme, cut, solver)
    return start_early(situation, best_encoded(situation, found, solver))


def search(situation: PlanningProblem, solver: str = "optimal") -> JointCut:
    """The joint search for the device set, with each set's best order as its price."""
    graph, costs, demand = situation.graph, situation.costs, situation.demand
    return joint(graph, costs, _latency_of(situation, solver), demand)


def _joint(
    situation: PlanningProblem, found: JointCut, known: Sequence[SchemeEstimate], solver: str
) -> list[SchemeEstimate]:
    """The best of the search's cuts once the server may start early: one, or none."""
    if found.cut is None:
        return []
    options = [c.called(Scheme.JOINT) for c in known if c.scheme.starts_early]
    known_cuts = {option.cut for option in options}
    cuts = (cut for cut in (found.cut, *found.near) if cut not in known_cuts)
    options += [_worked(situation, Scheme.JOINT, cut, solver) for cut in cuts]
    return [min(options, key=_value)]


def _value(found: SchemeEstimate) -> float:
    return found.value


def _latency_of(situation: PlanningProblem, solver: str) -> LatencyOf:
    graph, costs, demand = situation.graph, situation.costs, situation.demand
    never = (float("inf"), float("inf"))

    def priced(cut: Cut) -> tuple[float, float]:
        problem = scheduling_problem(graph, costs, cut)
        if problem is None:
            return (costs.rest_s(cut) + costs.result_s(cut),) * 2
        schedule = solve(problem.instance, solver, _ORDER_BUDGET_S)
        if demand.memory_bytes is not None:
            layers = (problem.layers[job] for job in schedule.order)
            order = [layer for layer in layers if layer is not None]
            needed = process_bytes(graph, cut, order, situation.client_bytes)
            if needed > demand.memory_bytes:
                return never
        return schedule.makespan_s, schedule.lower_bound_s

    return priced


def choose(
    candidates: Sequence[SchemeEstimate],
    scheme: str = "auto",
    forced: bool = False,
    demand: Constraints | None = None,
) -> SchemeEstimate:
    """The best candidate, or the one asked for; a forced cut is run pipelined.

    Raises:
        InputError: no such scheme, or none that keeps the limits.
    """
    known = ("auto", *(s.value for s in Scheme))
    if scheme not in known:
        raise InputError(f"scheme {scheme!r} is not known: use one of {', '.join(known)}")
    wanted = Scheme.OPSS.value if forced and scheme == "auto" else scheme
    who = "the cut" if forced and scheme == "auto" else wanted
    able = [c for c in candidates if c.value < float("inf") and wanted in ("auto", c.scheme)]
    if not able:
        asked = [c.alternative for c in candidates if wanted in ("auto", c.scheme)]
        raise InputError(impossible(demand or Constraints(), asked, who))
    best = min(map(_value, able))
    return next(c for c in able if c.value <= best * _SAME)


def make_plan(
    situation: PlanningProblem,
    scheme: str = "auto",
    cut: Cut | None = None,
    solver: str = "optimal",
) -> Plan:
    """Compare the schemes, choose one and write it down as a plan; arguments as `decide`.

    Raises:
        InputError: no such scheme or solver, or no plan keeps the limits.
    """
    found = decide(situation, scheme, cut, solver)
    plan = plan_of(found.situation, found.candidates, found.chosen, found.doubtful)
    return replace(plan, reason=f"{plan.reason} {found.why}") if found.why else plan


@dataclass(frozen=True)
class PlanChoice:
    """What was compared and what was chosen.

    Attributes:
        situation: with the encodings that were allowed in the end.
        candidates: all schemes that can run, simplest first.
        chosen: one of them.
        compared: the candidates with all encodings of the situation asked for.
        doubtful: schemes that are predicted to be better than the chosen one, but by less than
            predictions may be off by.
        why: one sentence where encodings were left out that would gain a little; else empty.
    """

    situation: PlanningProblem
    candidates: tuple[SchemeEstimate, ...]
    chosen: SchemeEstimate
    compared: tuple[SchemeEstimate, ...]
    doubtful: tuple[str, ...] = ()
    why: str = ""


def decide(
    situation: PlanningProblem,
    scheme: str = "auto",
    cut: Cut | None = None,
    solver: str = "optimal",
) -> PlanChoice:
    """Compare the schemes and choose one.

    A plan must gain more than predictions are off by (`pays`) wherever it is more complex: an
    overlapped one against the best of LO, CO and PO, a lossy one against the best lossless plan,
    and one with encodings against the best raw plan.

    Args:
        situation: the graph, its costs and what is asked for.
        scheme: `auto` for the best, or a scheme's name.
        cut: forces the cut of PO and OPSS; with `auto`, OPSS on that cut is chosen.
        solver: the scheduler.

    Raises:
        InputError: no such scheme or solver, or no plan keeps the limits.
    """

    def found(asked: PlanningProblem) -> PlanChoice:
        candidates = compare(asked, cut, solver)
        if scheme == "auto" and cut is None and all(c.value == float("inf") for c in candidates):
            candidates = (*candidates, *_at_gates(asked))  # to say what the nearest would need
        chosen = choose(candidates, scheme, cut is not None, asked.demand)
        if scheme != "auto" or cut is not None:
            return PlanChoice(asked, candidates, chosen, candidates)
        standing = simplest_within_margin(candidates, chosen)
        better = (c for c in candidates if c.value < standing.value / _SAME)
        doubtful = tuple(dict.fromkeys(c.scheme.value for c in better))
        return PlanChoice(asked, candidates, standing, candidates, doubtful)

    kept = found(situation)
    if not (situation.costs.ways or situation.costs.answers):
        return kept
    for suits, words in ((is_lossless, "lossless"), (is_raw, "raw")):
        # A plan that only encodings make doubtful may pay without them.
        if kept.doubtful or not keeps_to(kept.chosen, suits):
            with suppress(InputError):  # only encodings keep the limits
                less = found(only(situation, suits))
                if not exceeds_margin(kept.chosen, less.chosen):
                    why = less_said(kept.chosen, less.chosen, words)
                    kept = replace(less, compared=kept.compared, why=why)
    return kept


def _at_gates(situation: PlanningProblem) -> Iterator[SchemeEstimate]:
    """All cuts at a layer that everything passes and that keep what is pinned."""
    graph = situation.graph
    pinned = graph.ancestors(situation.demand.pinned)
    for gate in articulations(graph):
        device = graph.ancestors((gate,))
        if device >= pinned:
            yield candidate(situation, Scheme.NEUROSURGEON, cut_at(graph, device))


def plan_of(
    situation: PlanningProblem,
    candidates: Sequence[SchemeEstimate],
    chosen: SchemeEstimate,
    doubtful: Sequence[str] = (),
) -> Plan:
    """One of the compared candidates as a plan; `doubtful` as in `PlanChoice`."""
    allowed = [c.alternative for c in candidates if c.value < float("inf")]
    refused = [c.alternative for c in candidates if c.value == float("inf")]
    schedule = chosen.schedule
    program = encoded(chosen.program, chosen.costs, situation.graph.outputs)
    bound_s = _bound_s(situation, chosen)
    proved = chosen.latency_s <= bound_s * _SAME
    return Plan(
        model=situation.graph.digest,
        scheme=chosen.scheme.value,
        segments=program.segments,
        uploads=program.uploads,
        downloads=program.downloads,
        steps=program.steps,
        timeline=chosen.timeline,
        latency_s=chosen.latency_s,
        latency_p95_s=_p95_s(situation, chosen),
        link=situation.link,
        forecast=forecast_of(replace(situation, costs=chosen.costs), chosen.cut, chosen.program),
        lower_bound_s=bound_s,
        status="optimal" if proved else "feasible",
        solver=schedule.solver if schedule else "none",
        instance=chosen.problem.instance.to_json() if chosen.problem else {},
        alternatives=tuple(c.alternative for c in candidates),
        reason=explain(allowed, chosen.scheme.value, situation.demand.objective, refused, doubtful),
    )


def _p95_s(situation: PlanningProblem, chosen: SchemeEstimate) -> float | None:
    """The predicted latency when what crosses compresses badly."""
    costs = chosen.costs
    if all(way.p95_link_s == way.link_s for way in costs.taken(chosen.cut)):
        return None
    up = {name: each[0].p95_link_s for name, each in costs.ways.items()}
    down = {
        name: each[0].total_s + each[0].p95_link_s - each[0].link_s
        for name, each in costs.answers.items()
    }
    costs = replace(
        costs, upload_s={**costs.upload_s, **up}, download_s={**costs.download_s, **down}
    )
    asked = replace(situation, costs=costs)
    return predict(asked, chosen.cut, chosen.program).makespan_s


def _bound_s(situation: PlanningProblem, chosen: SchemeEstimate) -> float:
    """A lower bound on the latency of the chosen cut with any order."""
    server = [s for s in chosen.program.segments if s.side is Side.SERVER]
    if len(server) > 1:
        asked = replace(situation, costs=chosen.costs)
        return simple_bound_s(program_instance(asked, chosen.cut, chosen.program))
    bound_s = chosen.schedule.lower_bound_s if chosen.schedule else chosen.latency_s
    return min(bound_s, chosen.latency_s)


def pareto(situation: PlanningProblem, solver: str = "optimal") -> tuple[SchemeEstimate, ...]:
    """The plans of which none is both faster and more frequent than another, fastest first.

    The fastest plan is found, then the fastest with a shorter period than that, and so on: one
    joint search a plan (the front has 2 to 10 in practice, at most 20 are sought).
    """
    front: list[SchemeEstimate] = []
    demand = replace(situation.demand, objective=Objective.LATENCY)
    while len(front) < 20:
        asked = replace(situation, demand=demand)
        found = [c for c in compare(asked, solver=solver) if c.value < float("inf")]
        if not found:
            break
        front.append(choose(found))
        demand = replace(demand, period_s=front[-1].alternative.period_s * (1 - 1e-6))
    return tuple(front)
