"""The default solver: reduce to cut points, then the cheapest method that is exact."""

import time
from dataclasses import replace

import numpy as np

from offload.scheduling.cut_point_reduction import expand, reduce_to_cut_points
from offload.scheduling.forest import forest_order, laminar_order
from offload.scheduling.instance import Instance
from offload.scheduling.partial_arrival import refine
from offload.scheduling.schedule import SolverResult
from offload.scheduling.search.search import search
from offload.scheduling.series_parallel import series_parallel_order
from offload.scheduling.subset_dp import subset_order
from offload.scheduling.timeline import makespan_s

EXACT_CUTS = 16
_MOST_MASK_BITS = 4_000_000_000


def optimal(instance: Instance, budget_s: float = 1.0) -> SolverResult:
    """The smallest makespan, proved where the budget allows, else the best with a lower bound.

    Out-forests go to composite jobs, O(V log V). Anything else is reduced to its cut points
    (`reduce`): nested or disjoint blocks are again a forest; up to 16 cut points are settled by
    dynamic programming over sets, O(2^m m); series-parallel blocks by composite jobs; the rest by
    a certified search within the budget. With server jobs, what is best for two
    stages is the seed of a search of its own (`partial_arrival`).
    """
    deadline_s = time.monotonic() + budget_s
    if not instance.server_jobs:
        return _two_stages(instance, deadline_s)
    until_last_upload = replace(instance, server_jobs=())
    seed = _two_stages(until_last_upload, deadline_s)
    bound_s = makespan_s(until_last_upload, seed.order) if seed.proved else seed.lower_bound_s
    return refine(instance, SolverResult(seed.order, bound_s), deadline_s)


def is_out_forest(instance: Instance) -> bool:
    """Whether no layer has two predecessors."""
    after = instance.edge_ends[1]
    return len(after) < len(instance.jobs) and not (np.bincount(after) > 1).any()


def _two_stages(instance: Instance, deadline_s: float) -> SolverResult:
    if is_out_forest(instance):
        return SolverResult(_forest(instance), proved=True)
    if len(instance.jobs) * len(instance.cuts) > _MOST_MASK_BITS:
        return SolverResult(instance.topological)
    reduced = reduce_to_cut_points(instance)
    order = laminar_order(reduced)
    if order is None and len(reduced.cuts) <= EXACT_CUTS:
        order, _ = subset_order(reduced.upload_s, reduced.blocks, reduced.need)
    if order is None:
        order = series_parallel_order(reduced)
    if order is not None:
        return SolverResult(expand(instance, reduced, order), proved=True)
    order, peak_s = search(reduced, deadline_s)
    tail_s = instance.server_s + instance.download_s
    return SolverResult(expand(instance, reduced, order), peak_s + instance.total_upload_s + tail_s)


def _forest(instance: Instance) -> tuple[int, ...]:
    """In numbers of the topological order, so that parents come first, and back."""
    jobs, place = np.array(instance.topological), instance.place
    before, after = instance.edge_ends
    parent = np.full(len(jobs), -1)
    parent[place[after]] = place[before]
    return tuple(jobs[forest_order(parent, *instance.times_s[:, jobs])].tolist())
