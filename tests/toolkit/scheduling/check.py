"""Check a schedule independently: shares no code with the solvers or the simulation."""

import math
from itertools import pairwise

from offload.errors import InputError
from offload.scheduling.schedule import Schedule
from offload.scheduling.timeline import Lane

_TOLERANCE = 1e-9


def check(schedule: Schedule) -> None:
    """Refuse an incomplete order, broken precedence and inconsistent numbers.

    The makespan of the two stages is computed by the closed form
    max_k (f(x_1) + ... + f(x_k) + g(x_k) + ... + g(x_n)); the lanes of the timeline must be free
    of overlap. O(V log V + E).

    Raises:
        InputError: the first error found.
    """
    _check_order(schedule)
    _check_lanes(schedule)
    _check_makespan(schedule)
    slack = _TOLERANCE * max(1.0, schedule.makespan_s)
    if schedule.lower_bound_s > schedule.makespan_s + slack:
        raise InputError(
            f"the lower bound {schedule.lower_bound_s} s exceeds the makespan "
            f"{schedule.makespan_s} s: one of them is wrong"
        )


def _check_order(schedule: Schedule) -> None:
    jobs = schedule.instance.jobs
    place = {job: position for position, job in enumerate(schedule.order)}
    for index, job in enumerate(jobs):
        if index not in place:
            raise InputError(f"the order misses layer {job.name!r}: schedule every layer once")
    if len(schedule.order) != len(jobs):
        raise InputError(f"the order has {len(schedule.order)} entries for {len(jobs)} layers")
    for before, after in schedule.instance.edges:
        if place[before] > place[after]:
            raise InputError(
                f"the order puts {jobs[after].name!r} before {jobs[before].name!r}, which it needs"
            )


def _check_lanes(schedule: Schedule) -> None:
    for lane in Lane:
        spans = schedule.timeline.lane(lane)
        for left, right in pairwise(spans):
            if right.start_s < left.end_s - _TOLERANCE * max(1.0, left.end_s):
                raise InputError(f"{left.name!r} and {right.name!r} overlap on the {lane} lane")


def _check_makespan(schedule: Schedule) -> None:
    for name, seconds in (
        ("timeline", schedule.timeline.makespan_s),
        ("closed form", _closed_form_s(schedule)),
    ):
        if not math.isclose(seconds, schedule.makespan_s, rel_tol=_TOLERANCE, abs_tol=1e-12):
            raise InputError(
                f"the makespan is given as {schedule.makespan_s} s but the {name} says {seconds} s"
            )


def _closed_form_s(schedule: Schedule) -> float:
    instance = schedule.instance
    if instance.server_jobs:
        return schedule.timeline.makespan_s
    jobs = [instance.jobs[index] for index in schedule.order]
    computed, to_send = 0.0, math.fsum(job.upload_s for job in jobs)
    tail_s = instance.server_s + instance.download_s
    if not schedule.overlap:
        return math.fsum(job.compute_s for job in jobs) + to_send + tail_s
    latest = to_send
    for job in jobs:
        computed += job.compute_s
        if job.upload_s:
            latest = max(latest, computed + to_send)
        to_send -= job.upload_s
    return max(computed, latest + tail_s)


def cut_order(schedule: Schedule) -> tuple[int, ...]:
    """Indexes of the jobs that upload something, in the order of their uploads."""
    upload_s = schedule.instance.upload_s
    return tuple(index for index in schedule.order if upload_s[index] > 0)
