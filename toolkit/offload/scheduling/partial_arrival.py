"""Order uploads for a server that starts on partial arrival.

With server jobs the last upload alone no longer decides the makespan. The problem is a flow shop
with three machines, NP-hard even without precedence. The search starts from the best order for
two stages. For few cut points it tries every order, otherwise it moves one cut point at a time.
"""

import time
from collections.abc import Iterator, Sequence

from offload.scheduling.cut_point_reduction import (
    ReducedInstance,
    bits,
    expand,
    reduce_to_cut_points,
)
from offload.scheduling.instance import Instance
from offload.scheduling.schedule import SolverResult
from offload.scheduling.timeline import makespan_s

EXHAUSTIVE_CUTS = 6


def refine(instance: Instance, seed: SolverResult, deadline_s: float) -> SolverResult:
    """The best order found by the deadline, never worse than the seed.

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
