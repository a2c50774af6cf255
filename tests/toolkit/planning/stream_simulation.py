"""Simulate a stream whose frames several plans share, event by event."""

import copy
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from offload.planning.plan import ResourceUse
from offload.planning.shares import take_turn


class Simulation:
    """The state of a stream; each frame computes, uploads, is served and downloads.

    Attributes:
        uses: of each plan.
        now_s: the time.
        answered_s: when each frame was computed, by its number.
        done_s: when each answer was given, in order of the frames.
    """

    def __init__(self, uses: Sequence[ResourceUse]) -> None:
        self.uses = uses
        self.now_s = 0.0
        self.answered_s: dict[int, float] = {}
        self.done_s: list[float] = []
        self._events: list[tuple[float, int, int, int]] = []  # when, stage, frame, plan
        self._waiting: list[list[tuple[bool, int, int]]] = [[] for _ in range(4)]
        self._busy = [False] * 4

    def enter(self, frame: int, plan: int, stage: int = 0) -> None:
        """Frames that use the link go before those that do not, then the earlier ones."""
        while stage < 4 and self.uses[plan].seconds[stage] == 0.0:
            stage += 1
        if stage < 4:
            heapq.heappush(self._waiting[stage], (self.uses[plan].uplink_s == 0.0, frame, plan))
            self._serve(stage)
            return
        self.answered_s[frame] = self.now_s
        while len(self.done_s) in self.answered_s:
            self.done_s.append(self.now_s)

    def step(self) -> None:
        """Go on to the next event."""
        self.now_s, stage, frame, plan = heapq.heappop(self._events)
        self._busy[stage] = False
        self.enter(frame, plan, stage + 1)
        self._serve(stage)

    def _serve(self, stage: int) -> None:
        if self._busy[stage] or not self._waiting[stage]:
            return
        self._busy[stage] = True
        _, frame, plan = heapq.heappop(self._waiting[stage])
        end_s = self.now_s + self.uses[plan].seconds[stage]
        heapq.heappush(self._events, (end_s, stage, frame, plan))


Rule: TypeAlias = Callable[[Simulation, int], int]
"""Chooses the plan of a frame, given by its number."""


def by_shares(shares: Sequence[float]) -> Rule:
    """The rule of sessions: the plan that is furthest below its share and not behind."""
    credit: tuple[float, ...] = (0.0,) * len(shares)
    chosen: dict[int, int] = {}

    def rule(simulation: Simulation, frame: int) -> int:
        nonlocal credit
        waiting = Counter(plan for n, plan in chosen.items() if n not in simulation.answered_s)
        plan, credit = take_turn(credit, shares, [waiting[p] for p in range(len(shares))])
        chosen[frame] = plan
        return plan

    return rule


def soonest(simulation: Simulation, frame: int) -> int:
    """The plan by which this frame is answered soonest, given all that is under way."""

    def answered_s(plan: int) -> float:
        ahead = copy.deepcopy(simulation)
        ahead.enter(frame, plan)
        while frame not in ahead.answered_s:
            ahead.step()
        return ahead.answered_s[frame]

    return min(range(len(simulation.uses)), key=answered_s)


def frames_per_s(uses: Sequence[ResourceUse], rule: Rule, window: int, frames: int) -> float:
    """Rate of a stream after its first fifth.

    Answers come in order, and a new frame begins when the oldest one has been answered.
    """
    simulation, begun = Simulation(uses), 0
    while len(simulation.done_s) < frames:
        while begun < frames and begun - len(simulation.done_s) < window:
            simulation.enter(begun, rule(simulation, begun))
            begun += 1
        if len(simulation.done_s) < frames:
            simulation.step()
    first = frames // 5
    return (frames - first - 1) / (simulation.done_s[-1] - simulation.done_s[first])


def latencies_s(uses: Sequence[ResourceUse]) -> list[float]:
    """Seconds of a frame of each plan on idle machines."""
    return [sum(use.seconds) for use in uses]
