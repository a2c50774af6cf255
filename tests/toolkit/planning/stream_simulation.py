"""Simulate a stream whose frames several plans share, event by event."""

import heapq
import itertools
from collections.abc import Callable, Sequence

from offload.planning.plan import ResourceUse
from offload.planning.shares import take_turn


class _Simulation:
    """The state of a stream; each frame computes, uploads, is served and downloads."""

    def __init__(self, uses: Sequence[ResourceUse]) -> None:
        self.now_s = 0.0
        self.done_s: list[float] = []  # in order of the frames
        self._uses = uses
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waiting: list[list[tuple[bool, int, int]]] = [[] for _ in range(4)]
        self._busy = [False] * 4
        self._answered: set[int] = set()

    def enter(self, frame: int, plan: int, stage: int) -> None:
        """Frames that use the link go before those that do not, then the earlier ones."""
        while stage < 4 and self._uses[plan].seconds[stage] == 0.0:
            stage += 1
        if stage < 4:
            heapq.heappush(self._waiting[stage], (self._uses[plan].uplink_s == 0.0, frame, plan))
            self._serve(stage)
            return
        self._answered.add(frame)
        while len(self.done_s) in self._answered:
            self.done_s.append(self.now_s)

    def step(self) -> None:
        self.now_s, _, end = heapq.heappop(self._events)
        end()

    def _serve(self, stage: int) -> None:
        if self._busy[stage] or not self._waiting[stage]:
            return
        self._busy[stage] = True
        _, frame, plan = heapq.heappop(self._waiting[stage])

        def end() -> None:
            self._busy[stage] = False
            self.enter(frame, plan, stage + 1)
            self._serve(stage)

        at_s = self.now_s + self._uses[plan].seconds[stage]
        heapq.heappush(self._events, (at_s, next(self._order), end))


def frames_per_s(
    uses: Sequence[ResourceUse], shares: Sequence[float], window: int, frames: int
) -> float:
    """Rate of a stream after its first fifth.

    Answers come in order, and a new frame begins when the oldest one has been answered.
    """
    simulation = _Simulation(uses)
    credit: tuple[float, ...] = (0.0,) * len(uses)
    begun = 0
    while len(simulation.done_s) < frames:
        while begun < frames and begun - len(simulation.done_s) < window:
            plan, credit = take_turn(credit, shares)
            simulation.enter(begun, plan, 0)
            begun += 1
        if len(simulation.done_s) < frames:
            simulation.step()
    first = frames // 5
    return (frames - first - 1) / (simulation.done_s[-1] - simulation.done_s[first])
