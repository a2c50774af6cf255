"""What-if: the schemes over a range of links and slow-downs, and where each plan wins."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Alternative
from offload.planning.planner import decide
from offload.planning.scheme import PlanningProblem
from offload.units import parse_rate_bps


@dataclass(frozen=True)
class SweepPoint:
    """One situation of a sweep.

    Attributes:
        rate_bps: the link's bandwidth.
        slowdown: factor on the device's seconds.
        alternatives: every scheme's figures, simplest first, with all encodings that are allowed.
        chosen: the figures of the plan that is chosen, with the encodings that pay for sure.
    """

    rate_bps: float
    slowdown: float
    alternatives: tuple[Alternative, ...]
    chosen: Alternative

    @property
    def winner(self) -> str:
        """The scheme that is chosen."""
        return self.chosen.scheme

    def latency_s(self, scheme: str) -> float | None:
        """A scheme's latency, None where it cannot run."""
        return next((a.latency_s for a in self.alternatives if a.scheme == scheme), None)


@dataclass(frozen=True)
class WinningInterval:
    """Neighbouring cells of one slow-down in which the same plan wins: scheme and cut.

    Attributes:
        from_bps: where it begins, between its first cell and the one before.
        to_bps: where it ends.
        cells: its cells, slowest link first.
    """

    from_bps: float
    to_bps: float
    cells: tuple[SweepPoint, ...]


def sweep(
    situation_at: Callable[[Link, float], PlanningProblem],
    links: Sequence[Link],
    slowdowns: Sequence[float] = (1.0,),
) -> Iterator[SweepPoint]:
    """Plan every link with every slow-down, link by link within a slow-down.

    Raises:
        InputError: no plan keeps the limits in some cell.
    """
    for slowdown in slowdowns:
        for link in links:
            found = decide(situation_at(link, slowdown))
            figures = tuple(candidate.alternative for candidate in found.compared)
            yield SweepPoint(link.up_bps, slowdown, figures, found.chosen.alternative)


def winning_intervals(cells: Sequence[SweepPoint]) -> list[WinningInterval]:
    """Where each plan wins, from the cells of one slow-down; borders in the geometric middle."""
    groups = [tuple(g) for _, g in groupby(cells, lambda c: (c.winner, frozenset(c.chosen.cut)))]
    found = []
    for index, group in enumerate(groups):
        first, last = group[0].rate_bps, group[-1].rate_bps
        if index:
            first = math.sqrt(first * groups[index - 1][-1].rate_bps)
        if index + 1 < len(groups):
            last = math.sqrt(last * groups[index + 1][0].rate_bps)
        found.append(WinningInterval(first, last, group))
    return found


def is_range(text: str) -> bool:
    """Whether it is a range for `parse_links`: a file's path may hold dots too."""
    return ".." in text and not text.endswith(".json")


def parse_links(text: str, like: Link, points: int) -> list[Link]:
    """Links from `1..100Mbit/s`, evenly spaced by ratio; all else is as in a given link.

    The way down keeps its ratio to the way up.

    Raises:
        InputError: not a range of two rates, the smaller first.
    """
    first, dots, last = text.partition("..")
    unit = last.strip().lstrip("0123456789. ")
    first = first.strip() if first.strip()[-1:].isalpha() else f"{first.strip()} {unit}"
    if not dots:
        raise InputError(f"range {text!r} is not understood: write it like '1..100 Mbit/s'")
    low, high = parse_rate_bps(first), parse_rate_bps(last)
    if not low < high:
        raise InputError(f"range {text!r} must go from the slower link to the faster one")
    down = like.down_bps / like.up_bps
    rates = [low * (high / low) ** (index / (points - 1)) for index in range(points)]
    return [
        Link(rate, rate * down, like.up_start_s, like.down_start_s, like.overhead) for rate in rates
    ]
