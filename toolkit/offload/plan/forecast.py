"""What a plan takes on any link: its seconds of work, and the bytes that cross.

A plan is made for one link. Kept beside it, its forecast says what the same program takes on
another, by the clock that predicted it (`offload.schedule.simulate`), in well under a
millisecond and without the model: the device compares the plans of a bundle with it while it
runs one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from offload.cost.link import Link
from offload.schedule.instance import Instance
from offload.schedule.simulate import makespan_s, simulate
from offload.schedule.timeline import Lane, Span, Timeline


@dataclass(frozen=True)
class Forecast:
    """A program's work, the link left open.

    Attributes:
        work: the program as the scheduler's jobs, one a step; what crosses takes no time in it
            but for encoding and decoding.
        upload_bytes: bytes that each job sends up; None for one that sends nothing.
        download_bytes: bytes of each message that comes back.
        by_period: whether plans are compared by the seconds between two answers of a stream,
            not by the latency of one.
    """

    work: Instance
    upload_bytes: tuple[int | None, ...]
    download_bytes: tuple[int, ...]
    by_period: bool = False

    def on(self, link: Link) -> Instance:
        """The scheduler's instance on a link."""
        jobs = (
            job if size is None else replace(job, upload_s=link.upload_s(size))
            for job, size in zip(self.work.jobs, self.upload_bytes, strict=True)
        )
        download_s = self.work.download_s + sum(map(link.download_s, self.download_bytes))
        return replace(self.work, jobs=tuple(jobs), download_s=download_s)

    def latency_s(self, link: Link) -> float:
        """Predicted seconds from input to answer on a link."""
        return makespan_s(self.on(link), range(len(self.upload_bytes)))

    def period_s(self, link: Link) -> float:
        """Predicted seconds between two answers of a stream: the busiest resource's."""
        found = self.on(link)
        server_s = found.server_s + sum(job.compute_s for job in found.server_jobs)
        return max(found.total_compute_s, found.total_upload_s, server_s, found.download_s)

    def value_s(self, link: Link) -> float:
        """What plans are compared by on a link: the smaller the better."""
        return self.period_s(link) if self.by_period else self.latency_s(link)

    def timeline(self, link: Link) -> Timeline:
        """The predicted timeline on a link, one span a segment or a tensor."""
        return readable(simulate(self.on(link), range(len(self.upload_bytes))))

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` reads it."""
        return {
            "work": self.work.to_json(),
            "upload_bytes": list(self.upload_bytes),
            "download_bytes": list(self.download_bytes),
            "by_period": self.by_period,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Forecast":
        """Read what `to_json` wrote.

        Raises:
            InputError, KeyError, TypeError, ValueError: it is damaged.
        """
        work = Instance.from_json(value["work"])
        upload_bytes = tuple(value["upload_bytes"])
        if len(upload_bytes) != len(work.jobs):
            raise ValueError("the forecast's bytes are not one entry a job")
        return cls(work, upload_bytes, tuple(value["download_bytes"]), bool(value["by_period"]))


def readable(timeline: Timeline) -> Timeline:
    """Job numbers made a program's names unique; people want segments and tensors."""
    return Timeline.of(replace(span, name=_name(span)) for span in timeline.spans)


def _name(span: Span) -> str:
    if span.lane is Lane.SERVER:
        return "server-0" if span.name == "rest" else span.name
    return span.name.partition(":")[2] or span.name
