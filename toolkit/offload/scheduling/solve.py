"""The registry of solvers and the one way to call them."""

import time
from collections.abc import Mapping
from types import MappingProxyType

from offload.errors import InputError
from offload.scheduling.instance import Instance
from offload.scheduling.optimal import optimal
from offload.scheduling.paper_algorithms import johnson, levels, pathwise, tree_merge
from offload.scheduling.schedule import Schedule, Solver, SolverResult, simple_bound_s
from offload.scheduling.timeline import makespan_s


def serial(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """The layers' own order with nothing overlapped: the device waits for each upload."""
    return SolverResult(instance.topological, overlap=False)


def fifo(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """The layers' own order (the smallest topological one), uploads overlapped. O(V + E)."""
    return SolverResult(instance.topological)


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "serial": serial,
        "fifo": fifo,
        "johnson": johnson,
        "pathwise": pathwise,
        "tree-merge": tree_merge,
        "levels": levels,
        "optimal": optimal,
    }
)
_ROUNDING = 1e-9


def solve(instance: Instance, solver: str = "optimal", budget_s: float = 1.0) -> Schedule:
    """Order the device's layers.

    Args:
        instance: what to schedule.
        solver: a name in `SOLVERS`.
        budget_s: seconds that a search may take; the others need far less.

    Raises:
        InputError: no such solver, or one that can't take this kind of graph.
    """
    if solver not in SOLVERS:
        raise InputError(f"no solver is called {solver!r}: choose from {', '.join(SOLVERS)}")
    start = time.perf_counter()
    found = SOLVERS[solver](instance, budget_s)
    makespan = makespan_s(instance, found.order, found.overlap)
    bound = makespan
    if not found.proved:
        bound = min(bound, max(found.lower_bound_s, simple_bound_s(instance)))
    return Schedule(
        instance=instance,
        order=found.order,
        makespan_s=makespan,
        lower_bound_s=bound,
        status="optimal" if makespan - bound <= _ROUNDING * makespan else "feasible",
        solver=solver,
        seconds_s=time.perf_counter() - start,
        overlap=found.overlap,
    )
