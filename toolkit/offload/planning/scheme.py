"""One way to run a model: its cut, its program, its predicted times."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from offload.costs.encoding_table import EncodingTable
from offload.costs.link import Link
from offload.costs.profile import Profile
from offload.graph.model import Graph
from offload.planning.constraints import Constraints, Objective
from offload.planning.costs import CLIENT_BYTES, Costs, costs_of, process_bytes
from offload.planning.cut import Cut
from offload.planning.plan import Action, Alternative, Forecast, Side, readable
from offload.planning.program import (
    Program,
    SchedulingProblem,
    pipelined,
    scheduling_problem,
    serial,
)
from offload.scheduling.instance import Instance, Job, ServerJob
from offload.scheduling.schedule import Schedule
from offload.scheduling.solve import solve
from offload.scheduling.timeline import Timeline, simulate


class Scheme(StrEnum):
    """A way to run a model, from the simplest; equal latencies go to the simpler one."""

    LOCAL = "local"
    CLOUD = "cloud"
    NEUROSURGEON = "neurosurgeon"
    PARTITION = "partition"
    OPSS = "opss"
    JOINT = "joint"

    @property
    def overlaps(self) -> bool:
        """Whether uploads run while the device computes on."""
        return self in (Scheme.CLOUD, Scheme.LOCAL, Scheme.OPSS, Scheme.JOINT)

    @property
    def starts_early(self) -> bool:
        """Whether the server may run in several segments."""
        return self in (Scheme.OPSS, Scheme.JOINT)


@dataclass(frozen=True)
class PlanningProblem:
    """A graph, what everything costs, and what is asked for: all a scheme is worked out from.

    Attributes:
        graph: the layers.
        costs: of layers and tensors.
        demand: the objective and the limits.
        link: the link of the costs; None where they were given by hand.
        client_bytes: memory of the device's process before it has loaded anything.
    """

    graph: Graph
    costs: Costs
    demand: Constraints = field(default_factory=Constraints)
    link: Link | None = None
    client_bytes: int = CLIENT_BYTES

    @classmethod
    def of(
        cls,
        graph: Graph,
        device: Profile,
        server: Profile,
        link: Link,
        demand: Constraints | None = None,
        catalogue: EncodingTable | None = None,
    ) -> "PlanningProblem":
        """Gather the costs; `catalogue` holds the encodings allowed, None: raw only.

        Raises:
            InputError: a profile is of another model or another version.
        """
        costs = costs_of(graph, device, server, link, catalogue)
        client_bytes = device.client_bytes or CLIENT_BYTES
        return cls(graph, costs, demand or Constraints(), link, client_bytes)


@dataclass(frozen=True)
class SchemeEstimate:
    """One scheme worked out in full.

    Attributes:
        scheme: its name.
        costs: with the encodings it chose.
        cut: what the device computes and what crosses.
        program: what both sides run.
        timeline: predicted, by segment and tensor.
        problem: the scheduling problem that was solved, if there was one.
        schedule: its solution.
        value: what was to be smallest; infinite where a limit is broken.
        alternative: its figures, as the plan keeps them.
    """

    scheme: Scheme
    costs: Costs
    cut: Cut
    program: Program
    timeline: Timeline
    problem: SchedulingProblem | None
    schedule: Schedule | None
    value: float
    alternative: Alternative

    @property
    def latency_s(self) -> float:
        """Predicted seconds from input to answer."""
        return self.alternative.latency_s

    def called(self, scheme: Scheme) -> "SchemeEstimate":
        """The same as another scheme's, which came to the same cut."""
        figures = replace(self.alternative, scheme=scheme.value)
        return replace(self, scheme=scheme, alternative=figures)


def candidate(
    situation: PlanningProblem, scheme: Scheme, cut: Cut, solver: str = "optimal"
) -> SchemeEstimate:
    """Work out one scheme on one cut."""
    graph, costs = situation.graph, situation.costs
    problem = scheduling_problem(graph, costs, cut)
    schedule = None
    if problem is None or not scheme.overlaps:
        program = serial(graph, costs, cut)
    else:
        schedule = solve(problem.instance, solver)
        program = pipelined(graph, costs, cut, problem, schedule.order)
    found = SchemeEstimate(scheme, costs, cut, program, _NOTHING, problem, schedule, 0.0, _NO)
    return judged(situation, found)


_NOTHING = Timeline(())
_NO = Alternative("", 0.0, 0, 0, ())


def judged(situation: PlanningProblem, found: SchemeEstimate) -> SchemeEstimate:
    """The candidate with the timeline, figures and value of its program."""
    situation = replace(situation, costs=found.costs)
    graph, costs, demand = situation.graph, situation.costs, situation.demand
    cut, program = found.cut, found.program
    timeline = predict(situation, cut, program)
    stages = (costs.compute_s(cut), costs.sending_s(cut), costs.rest_s(cut), costs.result_s(cut))
    latency_s = timeline.makespan_s
    order = device_order(graph, program)
    memory_bytes = process_bytes(graph, cut, order, situation.client_bytes)
    value = float(demand.value(latency_s, *stages))
    if demand.memory_bytes is not None and memory_bytes > demand.memory_bytes:
        value = float("inf")
    if not graph.ancestors(demand.pinned) <= cut.device:
        value = float("inf")
    figures = Alternative(
        scheme=found.scheme.value,
        latency_s=latency_s,
        upload_bytes=costs.upload_bytes(cut),
        device_layers=len(cut.device),
        cut=tuple(send.tensor for send in program.uploads),
        period_s=max(stages),
        memory_bytes=memory_bytes,
        energy_j=float(demand.energy(latency_s, *stages[:2])) if demand.power else None,
    )
    return replace(found, timeline=timeline, value=value, alternative=figures)


def device_order(graph: Graph, program: Program) -> tuple[int, ...]:
    """The device's layers in the order of the program."""
    index = {layer.name: number for number, layer in enumerate(graph.layers)}
    device = (segment for segment in program.segments if segment.side is Side.DEVICE)
    return tuple(index[name] for segment in device for name in segment.layers)


def predict(situation: PlanningProblem, cut: Cut, program: Program) -> Timeline:
    """The timeline of a program by the scheduler's clock, one span a segment or a send."""
    instance = program_instance(situation, cut, program)
    return readable(simulate(instance, range(len(instance.jobs))))


def forecast_of(situation: PlanningProblem, cut: Cut, program: Program) -> Forecast:
    """What a program takes on any link; on the situation's own, what `predict` says."""
    costs, tensors = situation.costs, situation.graph.tensors
    sizes = costs.size_bytes
    upload_bytes = [
        sizes.get(step.target, 0) if step.action is Action.SEND else None for step in program.steps
    ]
    found = program_instance(situation, cut, program)
    bare = tuple(replace(job, upload_s=0.0) for job in found.jobs)
    back = [costs.answer(send.tensor) for send in program.downloads]
    plain_bytes = [tensors[send.tensor].size_bytes or 0 for send in program.downloads]
    return Forecast(
        replace(found, jobs=bare, download_s=sum(w.encode_s + w.decode_s for w in back if w)),
        tuple(upload_bytes or [None]),
        tuple(w.size_bytes if w else raw for w, raw in zip(back, plain_bytes, strict=True)),
        situation.demand.objective is Objective.THROUGHPUT,
    )


def program_instance(situation: PlanningProblem, cut: Cut, program: Program) -> Instance:
    """A program as the scheduler's jobs, in the program's own order."""
    costs = situation.costs
    run_s = _run_s(situation, program, Side.DEVICE)
    jobs, sends = [], {}
    for index, step in enumerate(program.steps):
        name = f"{index}:{step.target}"
        if step.action is Action.RUN:
            jobs.append(Job(name, run_s[step.target]))
        else:
            sends[step.target] = index
            encode_s = costs.encode_s.get(step.target, 0.0)
            jobs.append(Job(name, encode_s, costs.upload_s[step.target]))
    jobs = jobs or [Job("nothing", 0.0)]
    server = _server_jobs(situation, program, sends)
    if len(server) > 1:
        return Instance(tuple(jobs), (), 0.0, costs.result_s(cut), server)
    return Instance(tuple(jobs), (), costs.rest_s(cut), costs.result_s(cut))


def _run_s(situation: PlanningProblem, program: Program, side: Side) -> dict[str, float]:
    """Seconds of each of a side's segments; what is not the whole model costs something extra."""
    costs, layers = situation.costs, situation.graph.layers
    on_device = side is Side.DEVICE
    seconds = costs.device_s if on_device else costs.server_s
    extra_s = costs.device_segment_s if on_device else costs.server_segment_s
    by_name = {layer.name: seconds[index] for index, layer in enumerate(layers)}
    return {
        segment.id: sum(by_name[name] for name in segment.layers)
        + (extra_s if len(segment.layers) < len(layers) else 0.0)
        for segment in program.segments
        if segment.side is side
    }


def _server_jobs(
    situation: PlanningProblem, program: Program, sends: Mapping[str, int]
) -> tuple[ServerJob, ...]:
    costs = situation.costs
    run_s = _run_s(situation, program, Side.SERVER)
    segments = [segment for segment in program.segments if segment.side is Side.SERVER]
    maker = {name: index for index, s in enumerate(segments) for name in s.outputs}
    first: dict[str, str] = {}  # the segment that a tensor is decoded for
    for segment in segments:
        for name in segment.inputs:
            first.setdefault(name, segment.id)
    return tuple(
        ServerJob(
            segment.id,
            run_s[segment.id]
            + sum(s for name, s in costs.decode_s.items() if first.get(name) == segment.id),
            tuple(sends[name] for name in segment.inputs if name in sends),
            tuple(sorted({maker[name] for name in segment.inputs if name in maker})),
        )
        for segment in segments
    )
