"""Every scheme of a model on a link as a plan, and how long the planning takes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.constraints import Wish, demand_of
from offload.planning.cut import Cut, all_local, cut_at
from offload.planning.plan import Plan
from offload.planning.planner import choose, compare, plan_of, search, serial_cut, simplest_standing
from offload.planning.program import problem_of
from offload.planning.scheme import Candidate, Scheme, Situation, candidate
from offload.scheduling.solve import solve

from offload_cli.bench.studies import Prepared, Variant

PAPERS_SOLVERS = ("tree-merge", "levels")
_REPEATS = 10
_SEARCHES = 3


@dataclass(frozen=True)
class Planned:
    """One scheme as it will run.

    Attributes:
        variant: the form of the model.
        plan: the plan, with its prediction.
        picked: the planner would choose it.
    """

    variant: Variant
    plan: Plan
    picked: bool = False

    @property
    def program(self) -> object:
        """Equal for schemes that come to the same thing; the engine orders a segment itself."""
        segments = tuple((s.id, s.side, frozenset(s.layers)) for s in self.plan.segments)
        return self.variant.model.path, segments, self.plan.steps


def plans_of(prepared: Prepared, link: Link) -> dict[str, Planned]:
    """A plan for every scheme, by the scheme's key."""
    if prepared.study.inside:
        return _inside(prepared, link)
    floats, situation = prepared.floats, situation_of(prepared, link)
    found = compare(situation)
    best = simplest_standing(found, choose(found))
    shared = next(c.cut for c in found if c.scheme is Scheme.PARTITION)
    orders = {"fifo": _ordered(situation, shared, "fifo"), "paper": _papers(situation, shared)}
    plans = {
        c.scheme.value: Planned(floats, plan_of(situation, found, c), c is best) for c in found
    }
    for key, one in orders.items():
        plans[key] = Planned(floats, plan_of(situation, found, one))
    if prepared.camera:
        plans |= _raw(prepared.camera, link)
    return plans


def situation_of(prepared: Prepared, link: Link) -> Situation:
    """The study's model with float input on a link, under the study's limits."""
    floats = prepared.floats
    demand = demand_of(Wish(keep_input=prepared.study.keep_input), floats.graph)
    return Situation.of(floats.graph, floats.device, floats.server, link, demand)


def _raw(camera: Variant, link: Link) -> dict[str, Planned]:
    situation = Situation.of(camera.graph, camera.device, camera.server, link)
    found = compare(situation)
    cloud = next(c for c in found if c.scheme is Scheme.CLOUD)
    best = simplest_standing(found, choose(found))
    return {
        "cloud-raw": Planned(camera, plan_of(situation, found, cloud), cloud is best),
        "auto-raw": Planned(camera, plan_of(situation, found, best), True),
    }


def _inside(prepared: Prepared, link: Link) -> dict[str, Planned]:
    """LO; PO, every order and OPSS on a cut through three tensors or more, best or not."""
    situation = situation_of(prepared, link)
    cut = inner_cut(situation)
    serial = candidate(situation, Scheme.PARTITION, cut)
    best = candidate(situation, Scheme.OPSS, cut)
    whole = candidate(situation, Scheme.LOCAL, all_local(situation.graph))
    found = {
        "local": whole,
        "partition": serial,
        "fifo": _ordered(situation, cut, "fifo"),
        "paper": _papers(situation, cut),
        "opss": best,
    }
    all_of_them = (whole, serial, best)
    return {
        key: Planned(prepared.floats, plan_of(situation, all_of_them, c))
        for key, c in found.items()
    }


def inner_cut(situation: Situation, least: int = 3) -> Cut:
    """The cut behind a prefix of the layers, through several tensors, where overlap brings most.

    Raises:
        InputError: the model has no place with so many tensors.
    """
    graph = situation.graph
    prefixes = (cut_at(graph, frozenset(range(end))) for end in range(1, len(graph.layers)))
    found = [cut for cut in prefixes if len(cut.uploads) >= least]
    if not found:
        raise InputError(f"{graph.name} has no cut of {least} tensors")

    def brings(cut: Cut) -> float:
        serial = candidate(situation, Scheme.PARTITION, cut)
        return serial.latency_s / _ordered(situation, cut, "fifo").latency_s

    return max(found, key=brings)


def _ordered(situation: Situation, cut: Cut, solver: str) -> Candidate:
    return candidate(situation, Scheme.OPSS, cut, solver)


def _papers(situation: Situation, cut: Cut) -> Candidate:
    """The paper's scheduler for trees, or the one for all other graphs."""
    trees, general = PAPERS_SOLVERS
    try:
        return _ordered(situation, cut, trees)
    except InputError:
        return _ordered(situation, cut, general)


def overheads(prepared: Prepared, link: Link) -> dict[str, list[float]]:
    """Seconds of planning, by scheme: the cut and its order, repeated."""
    situation = situation_of(prepared, link)
    graph, costs = situation.graph, situation.costs

    def order(solver: Callable[[Situation, Cut], object]) -> Callable[[], object]:
        return lambda: solver(situation, serial_cut(situation))

    def best(_: Situation, cut: Cut) -> object:
        problem = problem_of(graph, costs, cut)
        return problem and solve(problem.instance)

    def papers(_: Situation, cut: Cut) -> object:
        problem = problem_of(graph, costs, cut)
        trees, general = PAPERS_SOLVERS
        try:
            return problem and solve(problem.instance, trees)
        except InputError:
            return problem and solve(problem.instance, general)

    jobs: Mapping[str, tuple[Callable[[], object], int]] = {
        "paper": (order(papers), _REPEATS),
        "opss": (order(best), _REPEATS),
        "joint": (lambda: search(situation), _SEARCHES),
    }
    return {key: [_seconds(job) for _ in range(count)] for key, (job, count) in jobs.items()}


def _seconds(job: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    job()
    return time.perf_counter() - start_s
