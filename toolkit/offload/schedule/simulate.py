"""The one clock: when each layer computes, uploads and is served, for a given order.

The device runs one layer at a time; an upload starts as soon as its layer is computed and the
uplink is free, in the order of computation: t_i = max(sum_{k<=i} f, t_{i-1}) + g(x_i), as in
Proposition 1 of "Computation Offloading Scheduling for Deep Neural Network Inference in Mobile
Computing". Uploading in any other order than that of computation never helps.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from offload.schedule.instance import Instance
from offload.schedule.timeline import Lane, Span, Timeline


def makespan_s(instance: Instance, order: Sequence[int], overlap: bool = True) -> float:
    """Seconds from the start until the result is back, without building a timeline.

    O(V) for the two stages, O(V log V) with server jobs. `overlap=False` is the serial
    execution: the device waits until each upload is through, the server for all of them.
    """
    if instance.server_jobs:
        return simulate(instance, order, overlap).makespan_s
    tail_s = instance.server_s + instance.download_s
    if not overlap:
        return instance.total_compute_s + instance.total_upload_s + tail_s
    compute_s, upload_s = instance.times_s[:, np.array(order)]
    ready_s, cuts = np.cumsum(compute_s), upload_s.nonzero()
    sent = 0.0
    for ready, upload in zip(ready_s[cuts].tolist(), upload_s[cuts].tolist(), strict=True):
        sent = (ready if ready > sent else sent) + upload
    return max(float(ready_s[-1]), sent + tail_s)


def simulate(instance: Instance, order: Sequence[int], overlap: bool = True) -> Timeline:
    """The timeline of an order; a stage that takes no time has no span.

    Server jobs run in the order in which all they wait for has arrived, which is exact for the
    makespan of one machine with release dates and precedence.
    """
    spans: list[Span] = []
    arrival = [0.0] * len(instance.jobs)
    done = ready = 0.0
    for index, start, ready, sending, sent in _device_and_uplink(instance, order, overlap):
        name = instance.jobs[index].name
        arrival[index] = sent
        done = sent if sent > ready else done
        if ready > start:
            spans.append(Span(Lane.DEVICE, name, start, ready))
        if sent > sending:
            spans.append(Span(Lane.UPLINK, name, sending, sent))
    done = done if overlap else max(done, ready)
    spans += _server(instance, arrival if overlap else [done] * len(arrival))
    done = max([done, *(span.end_s for span in spans if span.lane is Lane.SERVER)])
    served = done + instance.server_s
    tail = (
        Span(Lane.SERVER, "rest", done, served),
        Span(Lane.DOWNLINK, "result", served, served + instance.download_s),
    )
    return Timeline.of([*spans, *(span for span in tail if span.duration_s > 0)])


class _Step(NamedTuple):
    job: int
    start_s: float
    ready_s: float
    sending_s: float
    sent_s: float


def _device_and_uplink(instance: Instance, order: Sequence[int], overlap: bool) -> Iterator[_Step]:
    ready, sent = 0.0, 0.0
    for index in order:
        start, upload = ready, instance.upload_s[index]
        ready += instance.compute_s[index]
        if upload:
            sending = max(ready, sent)
            sent = sending + upload
            yield _Step(index, start, ready, sending, sent)
            ready = ready if overlap else sent
        else:
            yield _Step(index, start, ready, ready, ready)


def _server(instance: Instance, arrival: Sequence[float]) -> list[Span]:
    jobs = instance.server_jobs
    release = [0.0] * len(jobs)
    for index in instance.server_topological:
        job = jobs[index]
        waits = [arrival[need] for need in job.needs] + [release[before] for before in job.after]
        release[index] = max(waits, default=0.0)
    spans, free = [], 0.0
    for index in sorted(instance.server_topological, key=release.__getitem__):
        start = max(free, release[index])
        free = start + jobs[index].compute_s
        spans.append(Span(Lane.SERVER, jobs[index].name, start, free))
    return spans
