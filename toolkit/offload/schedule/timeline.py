"""A timeline: who did what from when to when; one type for predicted and measured."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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
