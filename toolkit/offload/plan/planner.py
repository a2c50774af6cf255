"""Compare the ways to run a model and choose the best that keeps the limits."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from offload.errors import InputError
from offload.partition.chain import articulations, neurosurgeon
from offload.partition.cut import Cut, all_cloud, all_local, cut_at
from offload.partition.demand import Demand, Objective
from offload.partition.incumbent import LatencyOf
from offload.partition.joint import Joint, joint
from offload.partition.memory import process_bytes
from offload.partition.mincut import min_cut
from offload.plan.candidate import (
    Candidate,
    Scheme,
    Situation,
    candidate,
    forecast_of,
    predict,
    program_instance,
)
from offload.plan.early import start_early
from offload.plan.encoded import best_encoded, encoded
from offload.plan.paying import (
    is_lossless,
    is_raw,
    keeps_to,
    less_said,
    only,
    pays,
    simplest_standing,
)
from offload.plan.plan import Plan, Side
from offload.plan.program import problem_of
from offload.plan.reason import impossible, reason_for
from offload.schedule.bounds import simple_bound_s
from offload.schedule.solve import solve

# Seconds to order one cut while many are compared; the chosen cut gets the full time.
_ORDER_BUDGET_S = 0.02
_SAME = 1 + 1e-9


def compare(
    situation: Situation, cut: Cut | None = None, solver: str = "optimal"
) -> tuple[Candidate, ...]:
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
    worked: dict[tuple[Cut, bool, bool], Candidate] = {}
    named = []
    for scheme, its in plain:
        if its is not None:
            key = (its, scheme.overlaps, scheme.starts_early)
            if key not in worked:
                worked[key] = _worked(situation, scheme, its, solver)
            named.append(worked[key].called(scheme))
    return (*named, *_joint(situation, search(situation, solver), named, solver))


def serial_cut(situation: Situation) -> Cut:
    """PO's cut: the best when nothing overlaps.

    The device's part is then one segment, however many tensors go up.
    """
    demand, graph = situation.demand, situation.graph
    costs = replace(situation.costs, device_segment_s=0.0)
    return min_cut(graph, costs, graph.ancestors(demand.pinned))


def _worked(situation: Situation, scheme: Scheme, cut: Cut, solver: str) -> Candidate:
    """A scheme on a cut, with the encodings that suit it, the server starting early."""
    found = candidate(situation, scheme, cut, solver)
    return start_early(situation, best_encoded(situation, found, solver))


def search(situation: Situation, solver: str = "optimal") -> Joint:
    """The joint search for the device set, with each set's best order as its price."""
    graph, costs, demand = situation.graph, situation.costs, situation.demand
    return joint(graph, costs, _latency_of(situation, solver), demand)


def _joint(
    situation: Situation, found: Joint, known: Sequence[Candidate], solver: str
) -> list[Candidate]:
    """The best of the search's cuts once the server may start early: one, or none."""
    if found.cut is None:
        return []
    options = [c.called(Scheme.JOINT) for c in known if c.scheme.starts_early]
    known_cuts = {option.cut for option in options}
    cuts = (cut for cut in (found.cut, *found.near) if cut not in known_cuts)
    options += [_worked(situation, Scheme.JOINT, cut, solver) for cut in cuts]
    return [min(options, key=_value)]


def _value(found: Candidate) -> float:
    return found.value


def _latency_of(situation: Situation, solver: str) -> LatencyOf:
    graph, costs, demand = situation.graph, situation.costs, situation.demand
    never = (float("inf"), float("inf"))

    def priced(cut: Cut) -> tuple[float, float]:
        problem = problem_of(graph, costs, cut)
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
    candidates: Sequence[Candidate],
    scheme: str = "auto",
    forced: bool = False,
    demand: Demand | None = None,
) -> Candidate:
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
        raise InputError(impossible(demand or Demand(), asked, who))
    best = min(map(_value, able))
    return next(c for c in able if c.value <= best * _SAME)


def make_plan(
    situation: Situation,
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
class Decision:
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

    situation: Situation
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    compared: tuple[Candidate, ...]
    doubtful: tuple[str, ...] = ()
    why: str = ""


def decide(
    situation: Situation,
    scheme: str = "auto",
    cut: Cut | None = None,
    solver: str = "optimal",
) -> Decision:
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

    def found(asked: Situation) -> Decision:
        candidates = compare(asked, cut, solver)
        if scheme == "auto" and cut is None and all(c.value == float("inf") for c in candidates):
            candidates = (*candidates, *_at_gates(asked))  # to say what the nearest would need
        chosen = choose(candidates, scheme, cut is not None, asked.demand)
        if scheme != "auto" or cut is not None:
            return Decision(asked, candidates, chosen, candidates)
        standing = simplest_standing(candidates, chosen)
        better = (c for c in candidates if c.value < standing.value / _SAME)
        doubtful = tuple(dict.fromkeys(c.scheme.value for c in better))
        return Decision(asked, candidates, standing, candidates, doubtful)

    kept = found(situation)
    if not (situation.costs.ways or situation.costs.answers):
        return kept
    for suits, words in ((is_lossless, "lossless"), (is_raw, "raw")):
        # A plan that only encodings make doubtful may pay without them.
        if kept.doubtful or not keeps_to(kept.chosen, suits):
            with suppress(InputError):  # only encodings keep the limits
                less = found(only(situation, suits))
                if not pays(kept.chosen, less.chosen):
                    why = less_said(kept.chosen, less.chosen, words)
                    kept = replace(less, compared=kept.compared, why=why)
    return kept


def _at_gates(situation: Situation) -> Iterator[Candidate]:
    """All cuts at a layer that everything passes and that keep what is pinned."""
    graph = situation.graph
    pinned = graph.ancestors(situation.demand.pinned)
    for gate in articulations(graph):
        device = graph.ancestors((gate,))
        if device >= pinned:
            yield candidate(situation, Scheme.NEUROSURGEON, cut_at(graph, device))


def plan_of(
    situation: Situation,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    doubtful: Sequence[str] = (),
) -> Plan:
    """One of the compared candidates as a plan; `doubtful` as in `Decision`."""
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
        reason=reason_for(
            allowed, chosen.scheme.value, situation.demand.objective, refused, doubtful
        ),
    )


def _p95_s(situation: Situation, chosen: Candidate) -> float | None:
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


def _bound_s(situation: Situation, chosen: Candidate) -> float:
    """A lower bound on the latency of the chosen cut with any order."""
    server = [s for s in chosen.program.segments if s.side is Side.SERVER]
    if len(server) > 1:
        asked = replace(situation, costs=chosen.costs)
        return simple_bound_s(program_instance(asked, chosen.cut, chosen.program))
    bound_s = chosen.schedule.lower_bound_s if chosen.schedule else chosen.latency_s
    return min(bound_s, chosen.latency_s)


def pareto(situation: Situation, solver: str = "optimal") -> tuple[Candidate, ...]:
    """The plans of which none is both faster and more frequent than another, fastest first.

    The fastest plan is found, then the fastest with a shorter period than that, and so on: one
    joint search a plan (the front has 2 to 10 in practice, at most 20 are sought).
    """
    front: list[Candidate] = []
    demand = replace(situation.demand, objective=Objective.LATENCY)
    while len(front) < 20:
        asked = replace(situation, demand=demand)
        found = [c for c in compare(asked, solver=solver) if c.value < float("inf")]
        if not found:
            break
        front.append(choose(found))
        demand = replace(demand, period_s=front[-1].alternative.period_s * (1 - 1e-6))
    return tuple(front)
