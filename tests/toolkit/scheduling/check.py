"""Check a schedule independently: shares no code with the solvers or the simulation."""

import math
from itertools import pairwise

import pytest
from offload.scheduling.schedule import Schedule
from offload.scheduling.timeline import Lane

_TOLERANCE = 1e-9


def check(schedule: Schedule) -> None:
    """Fail on an incomplete order, broken precedence and inconsistent numbers.

    The makespan of the two stages is computed by the closed form
    max_k (f(x_1) + ... + f(x_k) + g(x_k) + ... + g(x_n)); the lanes of the timeline must be free
    of overlap. O(V log V + E).
    """
    assert sorted(schedule.order) == list(range(len(schedule.instance.jobs)))
    place = {job: position for position, job in enumerate(schedule.order)}
    assert all(place[before] < place[after] for before, after in schedule.instance.edges)
    for lane in Lane:
        for left, right in pairwise(schedule.timeline.lane(lane)):
            assert right.start_s >= left.end_s - _TOLERANCE * max(1.0, left.end_s)
    same = pytest.approx(schedule.makespan_s, rel=_TOLERANCE, abs=1e-12)
    assert schedule.timeline.makespan_s == same
    assert closed_form_s(schedule) == same
    slack = _TOLERANCE * max(1.0, schedule.makespan_s)
    assert schedule.lower_bound_s <= schedule.makespan_s + slack


def closed_form_s(schedule: Schedule) -> float:
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
