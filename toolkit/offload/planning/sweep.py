"""What-if sweep: the schemes over a range of links and slow-downs, and where each plan wins."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from offload.costs.link import Link
from offload.planning.plan import Alternative
from offload.planning.planner import decide
from offload.planning.problem import PlanningProblem


@dataclass(frozen=True)
class SweepPoint:
    """The schemes on one link with one slow-down.

    Attributes:
        rate_bps: the link's bandwidth.
        slowdown: factor on the device's seconds.
        alternatives: every scheme's figures, simplest first, with all allowed encodings.
        chosen: the figures of the chosen plan, with encodings that exceed the error margin.
    """

    rate_bps: float
    slowdown: float
    alternatives: tuple[Alternative, ...]
    chosen: Alternative

    @property
    def winner(self) -> str:
        """The chosen scheme."""
        return self.chosen.scheme

    def latency_s(self, scheme: str) -> float | None:
        """A scheme's latency, None where it cannot run."""
        return next((a.latency_s for a in self.alternatives if a.scheme == scheme), None)


@dataclass(frozen=True)
class WinningInterval:
    """Neighbouring points of one slow-down at which the same plan (scheme and cut) wins.

    Attributes:
        from_bps: where it begins, between its first point and the one before.
        to_bps: where it ends.
        cells: its points, slowest link first.
    """

    from_bps: float
    to_bps: float
    cells: tuple[SweepPoint, ...]


def sweep(
    problem_at: Callable[[Link, float], PlanningProblem],
    links: Sequence[Link],
    slowdowns: Sequence[float] = (1.0,),
) -> Iterator[SweepPoint]:
    """Plan every link with every slow-down, link by link within a slow-down.

    Raises:
        InputError: no plan keeps the limits at some point.
    """
    for slowdown in slowdowns:
        for link in links:
            choice = decide(problem_at(link, slowdown))
            figures = tuple(candidate.alternative for candidate in choice.compared)
            yield SweepPoint(link.up_bps, slowdown, figures, choice.chosen.alternative)


def winning_intervals(cells: Sequence[SweepPoint]) -> list[WinningInterval]:
    """Where each plan wins, from the points of one slow-down; borders in the geometric middle."""
    groups = [tuple(g) for _, g in groupby(cells, lambda c: (c.winner, frozenset(c.chosen.cut)))]
    intervals = []
    for index, group in enumerate(groups):
        first, last = group[0].rate_bps, group[-1].rate_bps
        if index:
            first = math.sqrt(first * groups[index - 1][-1].rate_bps)
        if index + 1 < len(groups):
            last = math.sqrt(last * groups[index + 1][0].rate_bps)
        intervals.append(WinningInterval(first, last, group))
    return intervals
