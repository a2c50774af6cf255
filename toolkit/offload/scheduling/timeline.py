"""Timelines: when each layer computes, uploads and is served; simulated, or measured."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from offload.scheduling.instance import Instance


class Lane(StrEnum):
    """The four resources one inference occupies, in the order data passes them."""

    DEVICE = "device"
    UPLINK = "uplink"
    SERVER = "server"
    DOWNLINK = "downlink"


@dataclass(frozen=True, slots=True)
class Span:
    """One occupation of one lane: seconds from the start of the inference, half-open."""

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

    A span of the device that takes no time is a mark: something changed there.
    """

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Timeline":
        """Sort spans into a timeline."""
        lanes = list(Lane)
        return cls(tuple(sorted(spans, key=lambda s: (s.start_s, lanes.index(s.lane), s.end_s))))

    @property
    def makespan_s(self) -> float:
        """When the last span ends, in seconds after the start."""
        return max((span.end_s for span in self.spans), default=0.0)

    @property
    def marks(self) -> tuple[Span, ...]:
        """What changed, in order: the plan that is followed, for one."""
        return tuple(s for s in self.spans if s.lane is Lane.DEVICE and s.start_s == s.end_s)

    def lane(self, lane: Lane) -> tuple[Span, ...]:
        """The spans of one lane, in order of start."""
        return tuple(span for span in self.spans if span.lane is lane)

    def busy_s(self, lane: Lane) -> float:
        """Seconds that a lane is occupied (spans of one lane do not overlap)."""
        return sum(span.duration_s for span in self.lane(lane))

    def _repr_svg_(self) -> str:
        """The chart that notebooks show."""
        # Charts stand above timelines and are loaded for them only when a notebook asks.
        gantt = importlib.import_module("offload.report.gantt")
        chart: str = gantt.gantt_svg({"timeline": self}, "Timeline")
        return chart

    def to_json(self) -> list[dict[str, Any]]:
        """Rows `{"lane", "name", "start_s", "end_s"}`."""
        return [
            {"lane": s.lane.value, "name": s.name, "start_s": s.start_s, "end_s": s.end_s}
            for s in self.spans
        ]

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, Any]]) -> "Timeline":
        """Read what `to_json` wrote."""
        return cls.of(Span(Lane(r["lane"]), r["name"], r["start_s"], r["end_s"]) for r in rows)


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
