"""When to leave one plan of a bundle for another: not at the first sign, and not all the time.

The link is estimated again and again while a bundle runs. A plan is left when another is better
by a margin in several estimates in a row (hysteresis), and not sooner than some time after the
last change, so that noise around a border does not make the plans alternate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from offload.errors import InputError


@dataclass(frozen=True, slots=True)
class Switching:
    """How sure one must be before changing plans.

    Attributes:
        margin: how much better the other plan must be, as a share of what it takes itself.
        estimates: in how many estimates in a row.
        dwell_s: seconds that a plan is kept at least.
        probe_s: seconds without a send after which the link is sounded, or nothing would tell
            when it becomes better.
    """

    margin: float = 0.1
    estimates: int = 3
    dwell_s: float = 2.0
    probe_s: float = 2.0

    def __post_init__(self) -> None:
        least = min(self.margin, self.dwell_s, self.probe_s)
        if not (least >= 0 and self.margin < math.inf and self.estimates >= 1):
            raise InputError("switching needs a margin and times not below 0, and one estimate")


@dataclass(frozen=True, slots=True)
class Standing:
    """The plan that is followed, and how strongly another one presses.

    Attributes:
        plan: its number.
        since_s: when it was taken up; in the endless past for the first.
        losses: estimates in a row in which another plan was better by the margin.
    """

    plan: int
    since_s: float = -math.inf
    losses: int = 0


def best_of(values: Sequence[float], plan: int = 0) -> int:
    """The number of the smallest value; `plan` itself where no other is smaller."""
    return min(range(len(values)), key=lambda number: (values[number], number != plan, number))


def step(standing: Standing, values: Sequence[float], now_s: float, rule: Switching) -> Standing:
    """The standing after one more estimate.

    Args:
        standing: before it.
        values: what each plan takes on the link as it is estimated; infinite for one that cannot
            be run.
        now_s: the time of the estimate.
        rule: how sure one must be.
    """
    best = best_of(values, standing.plan)
    if values[standing.plan] <= values[best] * (1 + rule.margin):
        return replace(standing, losses=0)
    losses = standing.losses + 1
    if losses < rule.estimates or now_s - standing.since_s < rule.dwell_s:
        return replace(standing, losses=losses)
    return Standing(best, now_s)
