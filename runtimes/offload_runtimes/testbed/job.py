"""What the device is asked to run in an experiment, and what it answers, as lines of JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from offload.costs.link import Link
from offload.scheduling.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Entry:
    """One bundle to run.

    Attributes:
        label: what its runs are called.
        bundle: its folder, as the device sees it.
        feeds: .npz with its inputs.
        expected: .npz with the whole model's outputs.
    """

    label: str
    bundle: str
    feeds: str
    expected: str


@dataclass(frozen=True, slots=True)
class Job:
    """Bundles to run in turn.

    Attributes:
        entries: the bundles.
        server: `HOST:PORT` that serves them.
        repeats: runs of each after one that warms up.
        budget_s: stop after the round in which so many seconds are over, at least three rounds.
        slowdown: emulate, by pacing, a device so many times slower.
        threads: of one kernel.
        link: emulate this link; None: the way to the server is slow enough by itself.
        whole: label of the entry that runs the whole model on the device; empty: none does.
        whole_s: the seconds that it takes this machine: what pacing starts from, so that a machine
            that is slower for a while does not make the device slower.
    """

    entries: tuple[Entry, ...]
    server: str
    repeats: int
    budget_s: float
    slowdown: float
    threads: int | None = None
    link: Link | None = None
    whole: str = ""
    whole_s: float = 0.0

    def to_line(self) -> str:
        """One line of JSON; `from_line` reads it."""
        return json.dumps({**asdict(self), "link": self.link.to_json() if self.link else None})

    @classmethod
    def from_line(cls, line: str) -> "Job":
        """Read what `to_line` wrote."""
        value = json.loads(line)
        entries = tuple(Entry(**entry) for entry in value.pop("entries"))
        link = value.pop("link")
        return cls(entries=entries, link=Link.from_json(link) if link else None, **value)


@dataclass(frozen=True, slots=True)
class Run:
    """One inference.

    Attributes:
        label: of the entry.
        number: 0 for the run that warmed up.
        latency_s: from the call to its answer.
        difference: largest difference from the whole model's outputs, relative to the largest.
        timeline: measured.
    """

    label: str
    number: int
    latency_s: float
    difference: float
    timeline: Timeline

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` reads it."""
        return {
            "label": self.label,
            "number": self.number,
            "latency_s": self.latency_s,
            # JSON has no infinity; answers of another shape count as entirely different.
            "difference": min(self.difference, 1e308),
            "timeline": self.timeline.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Run":
        """Read what `to_json` wrote."""
        return cls(**{**value, "timeline": Timeline.from_json(value["timeline"])})
