"""Solve a scheduling instance: the registry of solvers and the default solver `optimal`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from offload.errors import InputError
from offload.scheduling.cut_point_reduction import (
    ReducedInstance,
    bits,
    expand,
    reduce_to_cut_points,
)
from offload.scheduling.exact import (
    forest_order,
    laminar_order,
    series_parallel_order,
    subset_order,
)
from offload.scheduling.instance import Instance
from offload.scheduling.paper_algorithms import johnson, levels, pathwise, tree_merge
from offload.scheduling.schedule import Schedule, Solver, SolverResult, simple_bound_s
from offload.scheduling.search.search import search
from offload.scheduling.timeline import makespan_s

SUBSET_DP_CUTS = 16
EXHAUSTIVE_CUTS = 6
_MAX_MASK_BITS = 4_000_000_000
_ROUNDING = 1e-9


def serial(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Serial execution in the layers' own order: the device waits for each upload."""
    return SolverResult(instance.topological, overlap=False)


def fifo(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """The layers' own order (the smallest topological one), uploads overlapped. O(V + E)."""
    return SolverResult(instance.topological)


def optimal(instance: Instance, budget_s: float = 1.0) -> SolverResult:
    """Minimise the makespan; proved optimal within the budget, else with a lower bound.

    Out-forests are solved with composite jobs, O(V log V). Any other graph is reduced to its cut
    points. Nested or disjoint blocks form a forest again; up to 16 cut points are solved by
    dynamic programming over sets, O(2^m m); series-parallel blocks with composite jobs; the
    others by a certified search within the budget. With server jobs, the order for two stages is
    the start of a search of its own (`_refine_for_partial_arrival`).
    """
    deadline_s = time.monotonic() + budget_s
    if not instance.server_jobs:
        return _solve_two_stages(instance, deadline_s)
    until_last_upload = replace(instance, server_jobs=())
    seed = _solve_two_stages(until_last_upload, deadline_s)
    bound_s = makespan_s(until_last_upload, seed.order) if seed.proved else seed.lower_bound_s
    return _refine_for_partial_arrival(instance, SolverResult(seed.order, bound_s), deadline_s)


def _solve_two_stages(instance: Instance, deadline_s: float) -> SolverResult:
    before, after = instance.edge_ends
    if len(after) < len(instance.jobs) and not (np.bincount(after) > 1).any():
        # An out-forest. Number the jobs by topological order, so that parents come first.
        jobs, place = np.array(instance.topological), instance.place
        parent = np.full(len(jobs), -1)
        parent[place[after]] = place[before]
        order = jobs[forest_order(parent, *instance.times_s[:, jobs])]
        return SolverResult(tuple(order.tolist()), proved=True)
    if len(instance.jobs) * len(instance.cuts) > _MAX_MASK_BITS:
        return SolverResult(instance.topological)
    reduced = reduce_to_cut_points(instance)
    cut_order = laminar_order(reduced)
    if cut_order is None and len(reduced.cuts) <= SUBSET_DP_CUTS:
        cut_order, _ = subset_order(reduced.upload_s, reduced.blocks, reduced.need)
    if cut_order is None:
        cut_order = series_parallel_order(reduced)
    if cut_order is not None:
        return SolverResult(expand(instance, reduced, cut_order), proved=True)
    cut_order, peak_s = search(reduced, deadline_s)
    bound_s = peak_s + instance.total_upload_s + instance.server_s + instance.download_s
    return SolverResult(expand(instance, reduced, cut_order), bound_s)


def _refine_for_partial_arrival(
    instance: Instance, seed: SolverResult, deadline_s: float
) -> SolverResult:
    """The best order found by the deadline for a server that starts on partial arrival.

    With server jobs the last upload alone no longer decides the makespan. The problem is a flow
    shop with three machines, NP-hard even without precedence. The search starts from the best
    order for two stages, the seed, and never returns a worse one. For few cut points it tries
    every order, otherwise it moves one cut point at a time.

    Proved optimal if every order of at most six cut points was tried and the server waits only
    for uploads. The lower bound is that of the seed, because the result needs every upload.
    """
    reduced = reduce_to_cut_points(instance)
    bit_of = {job: bit for bit, job in enumerate(reduced.cuts)}
    best = [bit_of[job] for job in seed.order if job in bit_of]
    best_s = makespan_s(instance, expand(instance, reduced, best))
    exhaustive = len(best) <= EXHAUSTIVE_CUTS
    finished = False
    while not finished and best_s > seed.lower_bound_s and time.monotonic() < deadline_s:
        finished = True
        for order in _all_orders(reduced) if exhaustive else _neighbours(reduced, best):
            seconds = makespan_s(instance, expand(instance, reduced, order))
            if seconds < best_s:
                best, best_s, finished = list(order), seconds, exhaustive
            if time.monotonic() > deadline_s:
                finished = False
                break
    needed = {need for job in instance.server_jobs for need in job.needs}
    proved = finished and exhaustive and needed <= bit_of.keys()
    return SolverResult(expand(instance, reduced, best), seed.lower_bound_s, proved)


def _all_orders(reduced: ReducedInstance, taken: int = 0) -> Iterator[list[int]]:
    """Every order of the cut points that respects precedence."""
    left = ((1 << len(reduced.cuts)) - 1) & ~taken
    if not left:
        yield []
    for bit in bits(left):
        if not reduced.need[bit] & ~taken:
            for order in _all_orders(reduced, taken | 1 << bit):
                yield [bit, *order]


def _neighbours(reduced: ReducedInstance, order: Sequence[int]) -> Iterator[list[int]]:
    """Every order with one cut point moved elsewhere that respects precedence."""
    for place, bit in enumerate(order):
        others = [*order[:place], *order[place + 1 :]]
        for target in range(len(order)):
            before, after = others[:target], others[target:]
            if target == place or any(reduced.need[bit] >> other & 1 for other in after):
                continue
            if not any(reduced.need[other] >> bit & 1 for other in before):
                yield [*before, bit, *after]


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


def solve(instance: Instance, solver: str = "optimal", budget_s: float = 1.0) -> Schedule:
    """Order the device's layers with one of the solvers.

    Args:
        instance: the scheduling instance.
        solver: a name in `SOLVERS`.
        budget_s: time limit of the search in seconds; the other methods take far less.

    Raises:
        InputError: the solver is unknown or does not support this kind of graph.
    """
    if solver not in SOLVERS:
        raise InputError(f"no solver is called {solver!r}: choose from {', '.join(SOLVERS)}")
    start = time.perf_counter()
    result = SOLVERS[solver](instance, budget_s)
    makespan = makespan_s(instance, result.order, result.overlap)
    bound = makespan
    if not result.proved:
        bound = min(bound, max(result.lower_bound_s, simple_bound_s(instance)))
    return Schedule(
        instance=instance,
        order=result.order,
        makespan_s=makespan,
        lower_bound_s=bound,
        status="optimal" if makespan - bound <= _ROUNDING * makespan else "feasible",
        solver=solver,
        seconds_s=time.perf_counter() - start,
        overlap=result.overlap,
    )
