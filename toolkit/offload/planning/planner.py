"""Compare the schemes for a model and choose the best within the limits."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from offload.costs.encoding_table import CODEC_SLOWDOWN
from offload.costs.encodings import RAW, Encoding
from offload.errors import InputError
from offload.planning.closed_sets import articulations, neurosurgeon
from offload.planning.cut import Cut, all_cloud, all_local, cut_at
from offload.planning.cut_costs import process_bytes
from offload.planning.explain import explain, impossible
from offload.planning.joint import JointCut, joint
from offload.planning.mincut import min_cut
from offload.planning.plan import (
    PREDICTION_ERROR,
    SEGMENT_ERROR,
    SERVER_CALL_S,
    Plan,
    Side,
    Speeds,
    at_speeds,
)
from offload.planning.problem import Objective, PlanningProblem
from offload.planning.program import program_instance, scheduling_problem, with_encodings
from offload.planning.scheme import (
    Scheme,
    SchemeEstimate,
    best_encodings,
    estimate,
    estimate_program,
    forecast_of,
    start_early,
)
from offload.scheduling.schedule import simple_bound_s
from offload.scheduling.solve import solve
from offload.scheduling.timeline import makespan_s

# Schemes that are chosen unless another gains more than the prediction error: everything on one
# side, and a split with nothing overlapped.
SIMPLE = (Scheme.LOCAL, Scheme.CLOUD, Scheme.NEUROSURGEON, Scheme.PARTITION)
# Encodings that are used unless others gain more than the prediction error, simplest last.
SIMPLER_ENCODINGS: Mapping[str, Callable[[Encoding], bool]] = {
    "lossless": lambda encoding: encoding.is_lossless,
    "raw": lambda encoding: encoding is RAW,
}
# Seconds to order one cut while many are compared; the chosen cut gets the full time.
_ORDER_BUDGET_S = 0.02
_SAME = 1 + 1e-9
_MAX_PARETO = 20
_INFINITE = float("inf")


def error_margin_s(first: SchemeEstimate, second: SchemeEstimate) -> float:
    """How wrong the predicted difference between two plans' latencies may be.

    Errors in what both plans do are the same in both. The seconds in which they differ, on the
    device, the link and the server, are each wrong by `PREDICTION_ERROR`; encoding and decoding
    may take twice as long as measured, for sizes as large as 95 of 100 inputs have. Where only
    one of them calls the server, it may take `SERVER_CALL_S` more; each segment that one has more
    than the other adds `SEGMENT_ERROR` of its side's seconds.
    """
    a, b = first.costs, second.costs
    different = first.cut.device ^ second.cut.device
    layers_s = sum(a.device_s[layer] + a.server_s[layer] for layer in different)
    up_s = abs(a.upload_time_s(first.cut) - b.upload_time_s(second.cut))
    down_s = abs(a.download_time_s(first.cut) - b.download_time_s(second.cut))
    margin_s = PREDICTION_ERROR * (layers_s + up_s + down_s)
    if bool(first.cut.downloads) != bool(second.cut.downloads):
        margin_s += SERVER_CALL_S
    for side in Side:
        counts = [len(candidate.program.on(side)) for candidate in (first, second)]
        more = first if counts[0] > counts[1] else second
        costs = more.costs
        side_s = (costs.device_time_s if side is Side.DEVICE else costs.server_time_s)(more.cut)
        # The first segment of a side is not an additional one.
        margin_s += SEGMENT_ERROR * side_s * max(max(counts) - max(min(counts), 1), 0)
    varying_s = [
        sum(
            (CODEC_SLOWDOWN - 1) * (option.encode_s + option.decode_s)
            + option.p95_link_s
            - option.link_s
            for option in candidate.costs.options_of(candidate.cut)
        )
        for candidate in (first, second)
    ]
    return margin_s + abs(varying_s[0] - varying_s[1])


def exceeds_margin(better: SchemeEstimate, other: SchemeEstimate) -> bool:
    """Whether one plan's objective is better than another's by more than the error margin."""
    if other.value == _INFINITE:
        return True
    gain = other.value - better.value
    return gain * other.latency_s > error_margin_s(better, other) * other.value


def simplest_within_margin(
    candidates: Sequence[SchemeEstimate], best: SchemeEstimate
) -> SchemeEstimate:
    """The best simple scheme, unless the best of all exceeds the error margin against it."""
    able = [c for c in candidates if c.scheme in SIMPLE and c.value < _INFINITE]
    simple = min(able, key=lambda c: c.value, default=None)
    if simple is None or best.scheme in SIMPLE or exceeds_margin(best, simple):
        return best
    return simple


def compare(
    problem: PlanningProblem, cut: Cut | None = None, solver: str = "optimal"
) -> tuple[SchemeEstimate, ...]:
    """All schemes that can run, simplest first; those that overlap nothing if `one_request` holds.

    Args:
        problem: the graph, its costs and the constraints.
        cut: replaces the cut of PO and OPSS; the other schemes are compared with it.
        solver: the scheduler of OPSS and of the joint search.
    """
    graph = problem.graph
    shared = serial_cut(problem) if cut is None else cut
    may_send_input = not (problem.pinned or problem.costs.unsized.intersection(graph.inputs))
    cuts = (
        (Scheme.LOCAL, all_local(graph)),
        (Scheme.CLOUD, all_cloud(graph) if may_send_input else None),
        (Scheme.NEUROSURGEON, neurosurgeon(problem)),
        (Scheme.PARTITION, shared),
        (Scheme.OPSS, None if problem.constraints.one_request else shared),
    )
    known: dict[tuple[Cut, bool, bool], SchemeEstimate] = {}

    def refined(scheme: Scheme, cut: Cut) -> SchemeEstimate:
        """The scheme on a cut with the best encodings, the server starting early."""
        key = (cut, scheme.overlaps, scheme.starts_early)
        if key not in known:
            plain = estimate(problem, scheme, cut, solver)
            known[key] = start_early(problem, best_encodings(problem, plain, solver))
        return known[key].renamed(scheme)

    estimates = [refined(scheme, cut) for scheme, cut in cuts if cut is not None]
    searched = search(problem, solver)
    if searched.cut is not None:
        near = dict.fromkeys((shared, searched.cut, *searched.near))
        one_request = problem.constraints.one_request
        kind = Scheme.PARTITION if one_request else Scheme.JOINT
        best = min((refined(kind, cut) for cut in near), key=lambda c: c.value)
        if not one_request:
            estimates.append(best)
        elif cut is None and best.value < estimates[-1].value:
            estimates[-1] = best
    return tuple(estimates)


def serial_cut(problem: PlanningProblem) -> Cut:
    """PO's cut: the best when nothing overlaps.

    The device then runs one segment, however many tensors are uploaded.
    """
    costs = replace(problem.costs, device_segment_s=0.0)
    return min_cut(problem.graph, costs, problem.pinned)


def search(problem: PlanningProblem, solver: str = "optimal") -> JointCut:
    """The joint search for the device set, pricing each set by its best order."""
    graph, costs, constraints = problem.graph, problem.costs, problem.constraints

    def latency_of(cut: Cut) -> tuple[float, float]:
        if constraints.one_request:
            latency_s = sum(costs.stages_s(cut))
            needed_bytes = process_bytes(graph, cut, sorted(cut.device), problem.client_bytes)
            fits = needed_bytes <= (constraints.memory_bytes or _INFINITE)
            return (latency_s, latency_s) if fits else (_INFINITE, _INFINITE)
        scheduling = scheduling_problem(graph, costs, cut)
        if scheduling is None:
            latency_s = costs.server_time_s(cut) + costs.download_time_s(cut)
            return latency_s, latency_s
        schedule = solve(scheduling.instance, solver, _ORDER_BUDGET_S)
        if constraints.memory_bytes is not None:
            layers = (scheduling.layers[job] for job in schedule.order)
            order = [layer for layer in layers if layer is not None]
            needed_bytes = process_bytes(graph, cut, order, problem.client_bytes)
            if needed_bytes > constraints.memory_bytes:
                return _INFINITE, _INFINITE
        return schedule.makespan_s, schedule.lower_bound_s

    return joint(problem, latency_of)


def choose(
    problem: PlanningProblem,
    candidates: Sequence[SchemeEstimate],
    scheme: str = "auto",
    forced: bool = False,
) -> SchemeEstimate:
    """The best candidate, or the requested scheme; a forced cut is run pipelined.

    Raises:
        InputError: no such scheme, or none that keeps the limits.
    """
    known = ("auto", *(s.value for s in Scheme))
    if scheme not in known:
        raise InputError(f"scheme {scheme!r} is not known: use one of {', '.join(known)}")
    one_request = problem.constraints.one_request
    if one_request and scheme in (Scheme.OPSS, Scheme.JOINT):
        raise InputError(
            f"scheme {scheme!r} overlaps uploads with computation, which one request for each"
            " inference cannot: use auto, local, cloud, neurosurgeon or partition"
        )
    pipelined = Scheme.PARTITION if one_request else Scheme.OPSS
    requested = pipelined.value if forced and scheme == "auto" else scheme
    suitable = [c for c in candidates if requested in ("auto", c.scheme)]
    able = [c for c in suitable if c.value < _INFINITE]
    if not able:
        subject = "the cut" if forced and scheme == "auto" else requested
        raise InputError(impossible(problem, [c.alternative for c in suitable], subject))
    best = min(c.value for c in able)
    return next(c for c in able if c.value <= best * _SAME)


def make_plan(
    problem: PlanningProblem,
    scheme: str = "auto",
    cut: Cut | None = None,
    solver: str = "optimal",
) -> Plan:
    """Compare the schemes and write the chosen one as a plan; arguments as for `decide`.

    Raises:
        InputError: no such scheme or solver, or no plan keeps the limits.
    """
    return chosen_plan(decide(problem, scheme, cut, solver))


@dataclass(frozen=True)
class PlanChoice:
    """The schemes compared and the one chosen.

    Attributes:
        problem: with the encodings that were allowed in the end.
        candidates: all schemes that can run, simplest first.
        chosen: one of them.
        compared: the candidates with all encodings of the original problem.
        doubtful: schemes that are predicted to be better than the chosen one, but within the
            error margin.
        note: one sentence where encodings were left out that would gain a little; else empty.
    """

    problem: PlanningProblem
    candidates: tuple[SchemeEstimate, ...]
    chosen: SchemeEstimate
    compared: tuple[SchemeEstimate, ...]
    doubtful: tuple[str, ...] = ()
    note: str = ""


def decide(
    problem: PlanningProblem,
    scheme: str = "auto",
    cut: Cut | None = None,
    solver: str = "optimal",
) -> PlanChoice:
    """Compare the schemes and choose one.

    A plan must gain more than the error margin (`exceeds_margin`) wherever it is more complex: an
    overlapped one against the best of LO, CO and PO, a lossy one against the best lossless plan,
    and one with encodings against the best raw plan.

    Args:
        problem: the graph, its costs and the constraints.
        scheme: `auto` for the best, or a scheme's name.
        cut: forces the cut of PO and OPSS; with `auto`, OPSS on that cut is chosen.
        solver: the scheduler.

    Raises:
        InputError: no such scheme or solver, or no plan keeps the limits.
    """

    def choice_for(problem: PlanningProblem) -> PlanChoice:
        candidates = compare(problem, cut, solver)
        is_free = scheme == "auto" and cut is None
        if is_free and all(c.value == _INFINITE for c in candidates):
            candidates += _best_without_limits(problem, solver)
        if is_free and all(c.value == _INFINITE for c in candidates):
            # For the error message: what the nearest cut at a gate would need.
            devices = (problem.graph.ancestors((a,)) for a in articulations(problem.graph))
            gates = [cut_at(problem.graph, d) for d in devices if d >= problem.pinned]
            candidates += tuple(estimate(problem, Scheme.NEUROSURGEON, gate) for gate in gates)
        chosen = choose(problem, candidates, scheme, cut is not None)
        if not is_free:
            return PlanChoice(problem, candidates, chosen, candidates)
        simple = simplest_within_margin(candidates, chosen)
        better = (c for c in candidates if c.value < simple.value / _SAME)
        doubtful = tuple(dict.fromkeys(c.scheme.value for c in better))
        return PlanChoice(problem, candidates, simple, candidates, doubtful)

    choice = choice_for(problem)
    if not (problem.costs.upload_options or problem.costs.download_options):
        return choice
    for word, is_allowed in SIMPLER_ENCODINGS.items():
        options = choice.chosen.costs.options_of(choice.chosen.cut)
        if all(is_allowed(option.encoding) for option in options) and not choice.doubtful:
            continue  # a doubtful plan may be certain without encodings
        with suppress(InputError):  # the limits may be kept only with encodings
            less = choice_for(replace(problem, costs=problem.costs.allowing(is_allowed)))
            if not exceeds_margin(choice.chosen, less.chosen):
                gain = 1 - choice.chosen.value / less.chosen.value if less.chosen.value else 0.0
                note = (
                    f"Encodings would gain {gain:.1%} more, which is within the prediction error:"
                    f" all tensors are sent {word}."
                )
                less = replace(less, note=note if gain > 0 else "")
                choice = replace(less, compared=choice.compared)
    return choice


def _best_without_limits(problem: PlanningProblem, solver: str) -> tuple[SchemeEstimate, ...]:
    """The candidates of the problem without limits on time and energy, judged by these limits.

    The search under limits may miss the only plan that just keeps them.
    """
    free = replace(problem.constraints, deadline_s=None, period_s=None, energy_j=None)
    found = compare(replace(problem, constraints=free), None, solver)
    return tuple(
        estimate_program(
            replace(problem, costs=c.costs), c.scheme, c.cut, c.program, c.scheduling, c.schedule
        )
        for c in found
    )


def chosen_plan(choice: PlanChoice) -> Plan:
    """The chosen scheme as a plan, whose reason explains the choice."""
    plan = plan_of(choice.problem, choice.candidates, choice.chosen, choice.doubtful)
    return replace(plan, reason=f"{plan.reason} {choice.note}") if choice.note else plan


def at_planned_speed(plan: Plan, slowdown: float) -> Plan:
    """A plan for a device slowed down by a factor, with its times on the device as profiled.

    So the forecasts of plans for several slow-downs refer to the same device. The lower bound is
    the scheduler's simple one. Coding of downloads keeps the seconds of the slower device.
    """
    if slowdown == 1:
        return plan
    as_profiled = Speeds(device=1 / slowdown)
    instance = None if plan.instance is None else at_speeds(plan.instance, as_profiled)
    plan = replace(
        plan, forecast=plan.forecast.at(as_profiled), instance=instance, slowdown=slowdown
    )
    bound_s = min(simple_bound_s(plan.forecast.work), plan.latency_s)
    status = "optimal" if plan.latency_s <= bound_s * _SAME else "feasible"
    return replace(plan, lower_bound_s=bound_s, status=status)


def plan_of(
    problem: PlanningProblem,
    candidates: Sequence[SchemeEstimate],
    chosen: SchemeEstimate,
    doubtful: Sequence[str] = (),
) -> Plan:
    """One of the compared candidates as a plan; `doubtful` as in `PlanChoice`."""
    allowed = [c.alternative for c in candidates if c.value < _INFINITE]
    refused = [c.alternative for c in candidates if c.value == _INFINITE]
    objective, schedule = problem.constraints.objective, chosen.schedule
    program = with_encodings(chosen.program, chosen.costs, problem.graph.outputs)
    if len(program.on(Side.SERVER)) > 1:
        bound_s = simple_bound_s(chosen.instance)
    else:
        bound_s = schedule.lower_bound_s if schedule else chosen.latency_s
        bound_s = min(bound_s, chosen.latency_s)
    return Plan(
        model=problem.graph.digest,
        scheme=chosen.scheme.value,
        segments=program.segments,
        uploads=program.uploads,
        downloads=program.downloads,
        steps=program.steps,
        forecast=forecast_of(problem, chosen),
        latency_p95_s=_p95_s(problem, chosen),
        link=problem.link,
        lower_bound_s=bound_s,
        status="optimal" if chosen.latency_s <= bound_s * _SAME else "feasible",
        solver=schedule.solver if schedule else "none",
        instance=chosen.scheduling.instance if chosen.scheduling else None,
        alternatives=tuple(c.alternative for c in candidates),
        reason=explain(allowed, chosen.scheme.value, objective, refused, doubtful),
    )


def _p95_s(problem: PlanningProblem, chosen: SchemeEstimate) -> float | None:
    """The predicted latency when the tensors compress badly; None where no size varies."""
    costs = chosen.costs
    if all(option.p95_link_s == option.link_s for option in costs.options_of(chosen.cut)):
        return None
    upload_s = {name: options[0].p95_link_s for name, options in costs.upload_options.items()}
    download_s = {
        name: options[0].total_s + options[0].p95_link_s - options[0].link_s
        for name, options in costs.download_options.items()
    }
    slow = replace(
        costs,
        upload_s={**costs.upload_s, **upload_s},
        download_s={**costs.download_s, **download_s},
    )
    instance = program_instance(problem.graph, slow, chosen.cut, chosen.program)
    return makespan_s(instance, range(len(instance.jobs)))


def pareto(problem: PlanningProblem, solver: str = "optimal") -> tuple[SchemeEstimate, ...]:
    """The plans that no other beats in both latency and period, fastest first.

    The fastest plan is found, then the fastest with a shorter period than that, and so on: one
    joint search a plan (the front has 2 to 10 in practice, at most 20 are sought).
    """
    front: list[SchemeEstimate] = []
    constraints = replace(problem.constraints, objective=Objective.LATENCY)
    while len(front) < _MAX_PARETO:
        limited = replace(problem, constraints=constraints)
        able = [c for c in compare(limited, solver=solver) if c.value < _INFINITE]
        if not able:
            break
        front.append(choose(limited, able))
        period_s = front[-1].alternative.period_s * (1 - 1e-6)
        constraints = replace(constraints, period_s=period_s)
    return tuple(front)
