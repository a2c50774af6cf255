"""Order uploads for a server that starts on partial arrival.

With server jobs the makespan is no longer decided by the last upload alone, and the problem is
that of three machines in flow, NP-hard even without precedence. The order that is best for two
stages is the seed; few cut points are tried in every order, more by moving one at a time.
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

MOST_TRIED = 6


def refine(instance: Instance, seed: SolverResult, deadline_s: float) -> SolverResult:
    """The best order found by the deadline, never worse than the seed.

    Proved when every order of at most six cut points was tried and the server waits for nothing
    else of the device; the seed's bound holds as it is, for a result needs every upload.
    """
    reduced = reduce_to_cut_points(instance)
    bit_of = {job: bit for bit, job in enumerate(reduced.cuts)}
    best = [bit_of[job] for job in seed.order if job in bit_of]
    best_s = makespan_s(instance, expand(instance, reduced, best))
    finished = False
    while not finished and best_s > seed.lower_bound_s and time.monotonic() < deadline_s:
        finished = True
        every = len(best) <= MOST_TRIED
        for order in _extensions(reduced) if every else _moved(reduced, best):
            seconds = makespan_s(instance, expand(instance, reduced, order))
            if seconds < best_s:
                best, best_s, finished = list(order), seconds, every
            if time.monotonic() > deadline_s:
                finished = False
                break
    waited_for = {need for job in instance.server_jobs for need in job.needs}
    proved = finished and len(best) <= MOST_TRIED and waited_for <= bit_of.keys()
    return SolverResult(expand(instance, reduced, best), seed.lower_bound_s, proved)


def _extensions(reduced: ReducedInstance, taken: int = 0) -> Iterator[list[int]]:
    """Every order of the cut points that respects precedence."""
    left = ((1 << len(reduced.cuts)) - 1) & ~taken
    if not left:
        yield []
    for bit in bits(left):
        if not reduced.need[bit] & ~taken:
            for rest in _extensions(reduced, taken | 1 << bit):
                yield [bit, *rest]


def _moved(reduced: ReducedInstance, order: Sequence[int]) -> Iterator[list[int]]:
    """Every order with one cut point moved elsewhere that respects precedence."""
    for place, bit in enumerate(order):
        rest = [*order[:place], *order[place + 1 :]]
        for target in range(len(order)):
            after = rest[target:]
            before = rest[:target]
            if target == place or any(reduced.need[bit] >> other & 1 for other in after):
                continue
            if not any(reduced.need[other] >> bit & 1 for other in before):
                yield [*before, bit, *after]
