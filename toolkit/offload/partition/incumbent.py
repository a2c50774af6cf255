"""The best cut so far, while a search prices one after the other."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from offload.graph.model import Graph
from offload.partition.costs import Costs
from offload.partition.cut import Cut, cut_at
from offload.partition.demand import Demand
from offload.partition.sets import Flags, tally

# The latency of a cut with the best order of its layers, infinite where it can't be used, and a
# lower bound on it where that order is not proved to be the best.
LatencyOf = Callable[[Cut], tuple[float, float]]
_ROUNDING = 1e-9
_NEAR, _NEAR_SETS = 1.25, 12


class Incumbent:
    """Prices device sets and remembers the best; what a search hands on to the next."""

    def __init__(
        self,
        graph: Graph,
        costs: Costs,
        latency_of: LatencyOf,
        demand: Demand,
        budget_s: float,
    ) -> None:
        self.graph, self.costs, self.demand = graph, costs, demand
        self._latency_of = latency_of
        self._until_s = time.monotonic() + budget_s
        self.cut: Cut | None = None
        self.value = np.inf
        self.floor = np.inf  # a lower bound on all that was priced
        self.near: list[Cut] = []
        self.priced: set[frozenset[int]] = set()

    @property
    def late(self) -> bool:
        """Whether the budget is used up."""
        return time.monotonic() > self._until_s

    @property
    def proved_floor(self) -> float:
        """A lower bound on all that was priced; the best value when each order was proved."""
        return min(self.floor, self.value)

    def beats(self, bound: float) -> bool:
        """Whether nothing of that bound can be better, but for rounding."""
        return bool(self.value <= bound * (1 + _ROUNDING))

    def offer_if_near(self, device: frozenset[int]) -> None:
        """Price a set unless its busiest resource alone makes it worse than the best."""
        stages = _stages(self.costs, cut_at(self.graph, device))
        compute_s, upload_s, server_s, result_s = stages
        latency_s = max(compute_s, upload_s + server_s + result_s)
        bound = self.demand.value(latency_s, *stages)
        if not self.beats(float(bound)):
            self.offer(device)

    def offer(self, device: frozenset[int]) -> None:
        """Price a closed device set, once, and keep it if it is the best."""
        if device in self.priced:
            return
        self.priced.add(device)
        cut, costs = cut_at(self.graph, device), self.costs
        if costs.unsized.intersection(cut.uploads):
            return
        latency_s, bound_s = self._latency_of(cut)
        if latency_s == np.inf:
            return
        stages = _stages(costs, cut)
        value = float(self.demand.value(latency_s, *stages))
        self.floor = min(self.floor, float(self.demand.value(bound_s, *stages)))
        if value < self.value:
            self.cut, self.value = cut, value

    def offer_by_bounds(self, table: Flags) -> float:
        """Price the sets of a table in order of their bounds, until no other can be better.

        Returns:
            A lower bound on the value of every set in the table.
        """
        sums = tally(self.graph, self.costs, table)
        stages = (sums.compute_s, sums.upload_s, sums.server_s, sums.result_s)
        bounds = np.where(sums.allowed, self.demand.value(sums.latency_s, *stages), np.inf)
        # Of equal bounds the set with fewer uploads goes first: it is the simpler plan.
        ranked = np.lexsort((sums.tensors, bounds))
        for column in ranked:
            bound = float(bounds[column])
            if bound == np.inf or self.beats(bound) or self.late:
                self._note_near(table, ranked, bounds, sums.tensors)
                return min(bound, self.value)
            self.offer(_members(table, column))
        self._note_near(table, ranked, bounds, sums.tensors)
        return self.value

    def _note_near(
        self,
        table: Flags,
        ranked: npt.NDArray[np.intp],
        bounds: npt.NDArray[np.float64],
        tensors: npt.NDArray[np.int64],
    ) -> None:
        """Remember the next best sets with several uploads: overlap may still favour them."""
        limit = self.value * _NEAR
        close = [c for c in ranked[: 8 * _NEAR_SETS] if tensors[c] > 1 and bounds[c] <= limit]
        self.near = [cut_at(self.graph, _members(table, c)) for c in close[:_NEAR_SETS]]


def _members(table: Flags, column: int) -> frozenset[int]:
    return frozenset(np.flatnonzero(table[:, column]).tolist())


def _stages(costs: Costs, cut: Cut) -> tuple[float, float, float, float]:
    return costs.compute_s(cut), costs.sending_s(cut), costs.rest_s(cut), costs.result_s(cut)
