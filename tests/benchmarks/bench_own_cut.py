"""Where PO cuts several tensors, and the predicted gain of overlap there.

Run as `make bench-own-cut`. Nothing is sent: the layers of each model are measured once, then the
planner cuts it for slow-downs times bandwidths. RandWire comes in many wirings, since the random
graph decides how many tensors its cheapest cut has; each also with its input kept on the device.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from offload.costs.link import Link
from offload.planning.cut import Cut
from offload.planning.planner import serial_cut
from offload.planning.problem import PlanningProblem
from offload.planning.scheme import Scheme, estimate, start_early
from offload_cli.bench.subjects import PreparedStudy, Study, find_study, planning_problem, prepare
from offload_models import randwire

from tests.benchmarks.goals import Goal, report

SLOWDOWNS = (2, 3, 5, 7, 10, 15, 20, 30, 50)
RATES_MBPS = (1.1, 2, 3, 5.85, 10, 18.88, 30, 50, 70, 100)
WIRINGS = 24
WORTH = 1.02


@dataclass(frozen=True)
class Point:
    """PO's cut for one slow-down and bandwidth, and OPSS's gain on it."""

    slowdown: float
    rate_mbps: float
    tensors: int
    is_cloud: bool
    gain: float

    @property
    def shown(self) -> str:
        if not self.tensors:
            return "LO"
        if self.is_cloud:
            return f"CO {self.gain:.2f}"
        return f"{self.tensors}t {self.gain:.2f}"


def points(ready: PreparedStudy) -> Iterator[Point]:
    """The whole grid; the study's device profile is this machine's."""
    here = ready.floats.device
    for slowdown in SLOWDOWNS:
        slow = replace(ready, floats=replace(ready.floats, device=here.scaled(slowdown)))
        for rate in RATES_MBPS:
            situation = planning_problem(slow, Link(rate * 1e6, rate * 1e6))
            cut = serial_cut(situation)
            gain = _gain(situation, cut) if cut.uploads else 1.0
            yield Point(slowdown, rate, len(cut.uploads), not cut.device, gain)


def _gain(situation: PlanningProblem, cut: Cut) -> float:
    serial = estimate(situation, Scheme.PARTITION, cut)
    ours = start_early(situation, estimate(situation, Scheme.OPSS, cut))
    return serial.latency_s / ours.latency_s


def grid(found: Iterable[Point]) -> Iterator[str]:
    """Lines of a table: one row per slow-down, one column per bandwidth."""
    rows: dict[float, list[str]] = {}
    for point in found:
        rows.setdefault(point.slowdown, []).append(point.shown)
    head = ["slower", *(f"{rate:g} Mbit/s" for rate in RATES_MBPS)]
    for cells in (head, ["---"] * len(head), *([f"{k:g}x", *row] for k, row in rows.items())):
        yield "| " + " | ".join(cells) + " |"


def summary(name: str, found: list[Point]) -> str:
    """One line on a grid: how often PO cuts several tensors, and the largest gain."""
    several = [p for p in found if p.tensors > 1 and not p.is_cloud]
    best = max(found, key=lambda p: p.gain)
    where = f" ({best.slowdown:g}x, {best.rate_mbps:g} Mbit/s)" if best.gain > 1 else ""
    return f"| {name} | {len(several)} of {len(found)} | {best.gain:.3f}{where} |"


def measured(study: Study) -> PreparedStudy:
    """The study with its float variant profiled, without the camera variant."""
    with tempfile.TemporaryDirectory(prefix="offload-") as folder:
        return prepare(study, Path(folder), 1.0, None, lambda _: None)


def wiring(seed: int) -> Study:
    """RandWire of a seed, input kept; measured once for both."""
    return Study(f"randwire {seed}", partial(randwire.build, seed=seed), keep_input=True)


def main() -> int:
    """Print the grids and the table; the exit code."""
    rows, most = [], 1.0
    for name in ("multi_stream", "alexnet_parallel"):
        found = list(points(measured(find_study(name))))
        rows.append(summary(name, found))
        print(f"\n{name}\n", *grid(found), sep="\n", flush=True)
    for seed in range(WIRINGS):
        kept = measured(wiring(seed))
        free = replace(kept, study=replace(kept.study, keep_input=False))
        for kind, ready in (("free", free), ("kept", kept)):
            found = list(points(ready))
            rows.append(summary(f"randwire, wiring {seed}, input {kind}", found))
            print(rows[-1], file=sys.stderr, flush=True)
        most = max(most, *(point.gain for point in found))
    print("\n| model | PO cuts several tensors | most |", "| --- | --- | --- |", *rows, sep="\n")
    what = "randwire, most predicted of OPSS over PO, input kept"
    return report([Goal(what, f"> {WORTH}", f"{most:.3f}", most > WORTH)])


if __name__ == "__main__":
    sys.exit(main())
