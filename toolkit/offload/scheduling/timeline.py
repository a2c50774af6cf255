"""The timeline of one inference: simulated or measured spans of device, link and server."""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from offload.records import from_json, to_json
from offload.scheduling.instance import Instance


class Lane(StrEnum):
    """The four resources that an inference uses, in the order of the data flow."""

    DEVICE = "device"
    UPLINK = "uplink"
    SERVER = "server"
    DOWNLINK = "downlink"


@dataclass(frozen=True, slots=True)
class Span:
    """One lane in use, from `start_s` to `end_s` (half-open) after the start of the inference."""

    lane: Lane
    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """The spans of one inference, sorted by start, then lane.

    A device span of zero length is a mark: it records an event such as a change of plan.
    """

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Timeline":
        """A timeline of spans in any order."""
        lanes = list(Lane)
        return cls(tuple(sorted(spans, key=lambda s: (s.start_s, lanes.index(s.lane), s.end_s))))

    @property
    def makespan_s(self) -> float:
        """Seconds from the start to the end of the last span."""
        return max((span.end_s for span in self.spans), default=0.0)

    @property
    def marks(self) -> tuple[Span, ...]:
        """The marks in order of time, such as changes of plan."""
        return tuple(s for s in self.spans if s.lane is Lane.DEVICE and s.start_s == s.end_s)

    def lane(self, lane: Lane) -> tuple[Span, ...]:
        """The spans of one lane, in order of start."""
        return tuple(span for span in self.spans if span.lane is lane)

    def busy_s(self, lane: Lane) -> float:
        """Seconds that a lane is in use (spans of one lane do not overlap)."""
        return sum(span.duration_s for span in self.lane(lane))

    def _repr_svg_(self) -> str:
        """The chart that notebooks show."""
        # The report room is above this one, so it is imported only when a notebook asks.
        gantt = importlib.import_module("offload.report.gantt")
        chart: str = gantt.gantt_svg({"timeline": self}, "Timeline")
        return chart

    def to_json(self) -> list[dict[str, Any]]:
        """Rows `{"lane", "name", "start_s", "end_s"}`."""
        return [to_json(span) for span in self.spans]

    @classmethod
    def from_json(cls, rows: Iterable[object]) -> "Timeline":
        """Read what `to_json` wrote."""
        return cls.of([from_json(Span, row) for row in rows])


def makespan_s(instance: Instance, order: Sequence[int], overlap: bool = True) -> float:
    """Seconds from the start until the result is back, without building a timeline.

    O(V) for two stages, O(V log V) with server jobs. `overlap=False` is serial execution: the
    device waits for the end of each upload, the server for the end of all uploads.
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
    """The timeline of a job order; stages of zero length have no span.

    The server runs its jobs by release date, the time when all that a job needs has arrived.
    This order has the smallest makespan on one machine with release dates and precedence.
    """
    spans: list[Span] = []
    arrival = [0.0] * len(instance.jobs)
    ready = sent = 0.0
    for index in order:
        job = instance.jobs[index]
        computed = ready + job.compute_s
        if computed > ready:
            spans.append(Span(Lane.DEVICE, job.name, ready, computed))
        ready = arrival[index] = computed
        if job.upload_s:
            sending = max(computed, sent)
            sent = arrival[index] = sending + job.upload_s
            if sent > sending:
                spans.append(Span(Lane.UPLINK, job.name, sending, sent))
            ready = computed if overlap else sent
    done = sent
    if not overlap:
        done = max(done, ready)
        arrival = [done] * len(arrival)
    server_spans = _simulate_server(instance, arrival)
    done = max([done, *[span.end_s for span in server_spans]])
    served = done + instance.server_s
    tail = (
        Span(Lane.SERVER, "rest", done, served),
        Span(Lane.DOWNLINK, "result", served, served + instance.download_s),
    )
    return Timeline.of(spans + server_spans + [span for span in tail if span.duration_s > 0])


def _simulate_server(instance: Instance, arrival: Sequence[float]) -> list[Span]:
    jobs = instance.server_jobs
    release = [0.0] * len(jobs)
    for index in instance.server_topological:
        needs, after = jobs[index].needs, jobs[index].after
        release[index] = max([arrival[i] for i in needs] + [release[i] for i in after], default=0.0)
    spans, free = [], 0.0
    for index in sorted(instance.server_topological, key=release.__getitem__):
        start = max(free, release[index])
        free = start + jobs[index].compute_s
        spans.append(Span(Lane.SERVER, jobs[index].name, start, free))
    return spans
