"""Schemes: the ways to run a model, each with a cut, a program and predicted times."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from offload.planning.cut import Cut
from offload.planning.cut_costs import Costs, process_bytes
from offload.planning.plan import Action, Alternative, Forecast, Side
from offload.planning.problem import Objective, PlanningProblem
from offload.planning.program import (
    Program,
    SchedulingProblem,
    pipelined,
    program_instance,
    scheduling_problem,
    segment_of,
    serial,
)
from offload.scheduling.instance import Instance
from offload.scheduling.schedule import Schedule
from offload.scheduling.solve import solve
from offload.scheduling.timeline import makespan_s

# Rounds over all tensors in the search for encodings.
_ROUNDS = 3
_BETTER = 1 - 1e-9
# Latency that several server segments must save: each costs the server about 1 %.
_MIN_EARLY_GAIN = 0.01


class Scheme(StrEnum):
    """A way to run a model, from the simplest; of equal latencies the simpler one is chosen."""

    LOCAL = "local"
    CLOUD = "cloud"
    NEUROSURGEON = "neurosurgeon"
    PARTITION = "partition"
    OPSS = "opss"
    JOINT = "joint"

    @property
    def overlaps(self) -> bool:
        """Whether uploads run while the device computes."""
        return self in (Scheme.CLOUD, Scheme.LOCAL, Scheme.OPSS, Scheme.JOINT)

    @property
    def starts_early(self) -> bool:
        """Whether the server may run in several segments."""
        return self in (Scheme.OPSS, Scheme.JOINT)


@dataclass(frozen=True)
class SchemeEstimate:
    """One scheme on one cut, with its program and its predicted times.

    Attributes:
        scheme: its name.
        costs: with the encodings that it chose.
        cut: the device's layers and the tensors to send.
        program: what both sides run.
        instance: the program as the scheduler's jobs, in the program's order.
        value: the objective's value; infinite where a limit is broken.
        alternative: its figures, as the plan keeps them.
        scheduling: the scheduling problem that was solved, if there was one.
        schedule: its solution.
    """

    scheme: Scheme
    costs: Costs
    cut: Cut
    program: Program
    instance: Instance
    value: float
    alternative: Alternative
    scheduling: SchedulingProblem | None = None
    schedule: Schedule | None = None

    @property
    def latency_s(self) -> float:
        """Predicted seconds from input to output."""
        return self.alternative.latency_s

    def renamed(self, scheme: Scheme) -> "SchemeEstimate":
        """The estimate under the name of another scheme, which chose the same cut."""
        figures = replace(self.alternative, scheme=scheme.value)
        return replace(self, scheme=scheme, alternative=figures)


def estimate(
    problem: PlanningProblem, scheme: Scheme, cut: Cut, solver: str = "optimal"
) -> SchemeEstimate:
    """Order the layers of a cut as a scheme does and predict its times."""
    graph, costs = problem.graph, problem.costs
    scheduling = scheduling_problem(graph, costs, cut)
    if scheduling is None or not scheme.overlaps or problem.constraints.one_request:
        return estimate_program(problem, scheme, cut, serial(graph, costs, cut), scheduling)
    schedule = solve(scheduling.instance, solver)
    program = pipelined(graph, costs, cut, scheduling, schedule.order)
    return estimate_program(problem, scheme, cut, program, scheduling, schedule)


def estimate_program(
    problem: PlanningProblem,
    scheme: Scheme,
    cut: Cut,
    program: Program,
    scheduling: SchedulingProblem | None = None,
    schedule: Schedule | None = None,
) -> SchemeEstimate:
    """Predict the times, memory and energy of a program on a cut."""
    graph, costs, constraints = problem.graph, problem.costs, problem.constraints
    instance = program_instance(graph, costs, cut, program)
    latency_s = makespan_s(instance, range(len(instance.jobs)))
    stages_s = costs.stages_s(cut)
    order = program.device_order(graph)
    memory_bytes = process_bytes(graph, cut, order, problem.client_bytes)
    value = float(constraints.value(latency_s, *stages_s))
    limit = constraints.memory_bytes
    if (limit is not None and memory_bytes > limit) or not problem.pinned <= cut.device:
        value = float("inf")
    energy_j = constraints.energy(latency_s, *stages_s[:2])
    figures = Alternative(
        scheme=scheme.value,
        latency_s=latency_s,
        upload_bytes=costs.upload_bytes(cut),
        device_layers=len(cut.device),
        cut=tuple(send.tensor for send in program.uploads),
        period_s=max(stages_s),
        memory_bytes=memory_bytes,
        energy_j=float(energy_j) if constraints.power else None,
    )
    return SchemeEstimate(
        scheme, costs, cut, program, instance, value, figures, scheduling, schedule
    )


def best_encodings(
    problem: PlanningProblem, best: SchemeEstimate, solver: str = "optimal"
) -> SchemeEstimate:
    """The estimate with the encodings that suit its order and overlap best.

    The search for the cut took each tensor's quickest encoding alone. Where uploads overlap, one
    that hides behind computation need not be small, and seconds of encoding that hide nothing
    delay all that follows: each tensor's other options are tried in turn, with the best order of
    each, until no change of one tensor helps (a local optimum).
    O(rounds x tensors x options) schedules.
    """
    if not best.scheme.overlaps or problem.constraints.one_request:
        return best
    for _ in range(_ROUNDS):
        before = best.value
        for tensor in best.cut.uploads:
            for option in best.costs.upload_options.get(tensor, ())[1:]:
                changed = replace(problem, costs=best.costs.with_upload(tensor, option))
                other = estimate(changed, best.scheme, best.cut, solver)
                if other.value < best.value * _BETTER:
                    best = other
        if best.value >= before * _BETTER:
            break
    return best


def start_early(problem: PlanningProblem, plain: SchemeEstimate) -> SchemeEstimate:
    """The estimate with the server's layers in segments by arrival, where that is faster.

    A layer's wave is the last upload that it waits for, its own or those of layers before it.
    Waves run as soon as they can, one segment each; neighbours are joined while that costs
    next to nothing, and all of them when the gain is below 1 %.
    """
    program = plain.program
    if len(program.uploads) < 2 or not plain.scheme.starts_early:
        return plain
    arrival = {send.tensor: index for index, send in enumerate(program.uploads)}
    wave: dict[int, int] = {}
    for index, layer in enumerate(problem.graph.layers):
        if index not in plain.cut.device:
            waits = [arrival.get(name, 0) for name in layer.inputs]
            waits += [wave[p] for p in problem.graph.predecessors[index] if p in wave]
            wave[index] = max(waits, default=0)
    waves = [
        tuple(layer for layer, number in wave.items() if number == arrived)
        for arrived in sorted(set(wave.values()))
    ]
    if len(waves) < 2:
        return plain

    def in_waves(waves: Sequence[Sequence[int]]) -> SchemeEstimate:
        server = (
            segment_of(problem.graph, Side.SERVER, number, sorted(layers))
            for number, layers in enumerate(waves)
        )
        segments = (*program.on(Side.DEVICE), *server)
        return estimate_program(
            replace(problem, costs=plain.costs),
            plain.scheme,
            plain.cut,
            replace(program, segments=segments),
            plain.scheduling,
            plain.schedule,
        )

    best = in_waves(waves)
    if best.latency_s > plain.latency_s * (1 - _MIN_EARLY_GAIN):
        return plain
    index = 0
    while index + 1 < len(waves):
        joined = [*waves[:index], (*waves[index], *waves[index + 1]), *waves[index + 2 :]]
        fewer = in_waves(joined)
        if len(joined) > 1 and fewer.latency_s <= best.latency_s * (1 + _MIN_EARLY_GAIN / 10):
            best, waves = fewer, joined
        else:
            index += 1
    return best


def forecast_of(problem: PlanningProblem, chosen: SchemeEstimate) -> Forecast:
    """The times of an estimate's program, on the problem's link and on any other."""
    sizes, tensors, program = chosen.costs.size_bytes, problem.graph.tensors, chosen.program
    upload_bytes = [
        sizes.get(step.target, 0) if step.action is Action.SEND else None for step in program.steps
    ]
    options = [chosen.costs.download_option(send.tensor) for send in program.downloads]
    codec_s = sum(option.encode_s + option.decode_s for option in options if option)
    download_bytes = tuple(
        option.size_bytes if option else tensors[send.tensor].size_bytes or 0
        for option, send in zip(options, program.downloads, strict=True)
    )
    return Forecast(
        chosen.instance,
        tuple(upload_bytes or [None]),
        download_bytes,
        codec_s,
        problem.constraints.objective is Objective.THROUGHPUT,
    )
