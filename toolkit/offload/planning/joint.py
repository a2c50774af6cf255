"""Choose cut and order jointly to minimise the overlapped latency."""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from offload.planning.closed_sets import (
    Flags,
    articulations,
    closed_sets,
    ready_s,
    set_costs,
    set_table,
)
from offload.planning.cut import Cut, cut_at
from offload.planning.mincut import min_set
from offload.planning.problem import PlanningProblem

LatencyOf = Callable[[Cut], tuple[float, float]]
"""The latency of a cut with the best order of its layers, infinite where it can't be used, and a
lower bound on it where that order is not proved to be the best."""
_ROUNDING = 1e-9
# How much worse the cuts in `JointCut.near` may be, and how many there are at most.
_NEAR, _NEAR_SETS = 1.25, 12


@dataclass(frozen=True, order=True)
class _SearchNode:
    """All device sets that hold the layers `device` and none of `server`; best bound first."""

    bound: float
    number: int
    device: frozenset[int] = field(compare=False)
    server: frozenset[int] = field(compare=False)
    minima: tuple[frozenset[int], ...] = field(compare=False, default=())


class JointSearch:
    """A search for the best device set: computes the cost of sets and keeps the best."""

    def __init__(self, problem: PlanningProblem, latency_of: LatencyOf, budget_s: float) -> None:
        self.problem = problem
        self._latency_of = latency_of
        self._until_s = time.monotonic() + budget_s
        self.cut: Cut | None = None
        self.value = np.inf
        self.floor = np.inf  # a lower bound on all that was priced
        self.near: list[Cut] = []
        self.priced: set[frozenset[int]] = set()

    @property
    def out_of_time(self) -> bool:
        """Whether the budget is used up."""
        return time.monotonic() > self._until_s

    def beats(self, bound: float) -> bool:
        """Whether a set with that lower bound cannot be better, apart from rounding."""
        return bool(self.value <= bound * (1 + _ROUNDING))

    def price_if_promising(self, device: frozenset[int]) -> None:
        """Price a set unless its busiest resource alone makes it worse than the best."""
        stages_s = self.problem.costs.stages_s(cut_at(self.problem.graph, device))
        latency_s = max(stages_s[0], sum(stages_s[1:]))
        if not self.beats(float(self.problem.constraints.value(latency_s, *stages_s))):
            self.price(device)

    def price(self, device: frozenset[int]) -> None:
        """Price a closed device set, once, and remember it if it is the best."""
        if device in self.priced:
            return
        self.priced.add(device)
        cut, costs = cut_at(self.problem.graph, device), self.problem.costs
        if costs.unsized.intersection(cut.uploads):
            return
        latency_s, bound_s = self._latency_of(cut)
        if latency_s == np.inf:
            return
        stages_s, value_of = costs.stages_s(cut), self.problem.constraints.value
        value = float(value_of(latency_s, *stages_s))
        self.floor = min(self.floor, float(value_of(bound_s, *stages_s)))
        if value < self.value:
            self.cut, self.value = cut, value

    def price_by_bounds(self, table: Flags) -> float:
        """Price the sets of a table in order of their bounds, until no other can be better.

        Returns:
            A lower bound on the value of every set in the table.
        """
        sums = set_costs(self.problem.graph, self.problem.costs, table)
        values = self.problem.constraints.value(sums.latency_s, *sums.stages_s)
        bounds = np.where(sums.allowed, values, np.inf)
        # Of equal bounds the set with fewer uploads goes first: it is the simpler plan.
        ranked = np.lexsort((sums.uploads, bounds))
        lowest = None
        for column in ranked:
            bound = float(bounds[column])
            if bound == np.inf or self.beats(bound) or self.out_of_time:
                lowest = bound
                break
            self.price(_members(table, column))
        # The next best sets with several uploads: starting the server early may favour them.
        limit = self.value * _NEAR
        close = [c for c in ranked[: 8 * _NEAR_SETS] if sums.uploads[c] > 1 and bounds[c] <= limit]
        self.near = [cut_at(self.problem.graph, _members(table, c)) for c in close[:_NEAR_SETS]]
        return self.value if lowest is None else min(lowest, self.value)

    def branch_and_bound(self) -> float:
        """Search the closed sets that hold the pinned layers; returns a lower bound on them all.

        A node's bound is the largest of several minimum cuts, one for each weighting of the
        resources that no plan can beat (`Constraints.relaxations`), each raised by the time before
        a first upload can start. Their device sets are priced; at the root, so are the sets that
        differ from the best by one layer. Layers through which everything passes are decided
        first: where one of them stays, all uploads wait for all that it needs. Best bound first,
        until the bound meets the best or the budget ends.
        """
        graph, pinned = self.problem.graph, self.problem.pinned
        self.price(frozenset(range(len(graph.layers))))
        heap, count = [self._node(-np.inf, pinned, frozenset())], 1
        while self.cut is not None and not self.out_of_time:  # climb to a local optimum
            before = self.value
            self.price_by_bounds(self._neighbours(self.cut.device))
            if self.value >= before:
                break
        while heap and not self.beats(heap[0].bound) and not self.out_of_time:
            node = heapq.heappop(heap)
            layer = self._pivot(node)
            if layer is None:
                continue
            for device, server in (
                (node.device | graph.ancestors((layer,)), node.server),
                (node.device, node.server | self._descendants[layer]),
            ):
                heapq.heappush(heap, self._node(node.bound, device, server, count))
                count += 1
        return min(heap[0].bound if heap else self.value, self.value)

    @cached_property
    def _descendants(self) -> tuple[frozenset[int], ...]:
        """By layer: itself and all that need it."""
        graph = self.problem.graph
        sets: list[frozenset[int]] = [frozenset()] * len(graph.layers)
        for layer in reversed(range(len(sets))):
            users = graph.successors[layer]
            sets[layer] = frozenset((layer,)).union(*(sets[index] for index in users))
        return tuple(sets)

    @cached_property
    def _ready_s(self) -> Sequence[float]:
        """By layer: device seconds of it and all that it needs."""
        return ready_s(self.problem.graph, self.problem.costs)

    @cached_property
    def _gates(self) -> frozenset[int]:
        """Layers through which everything passes."""
        return frozenset(articulations(self.problem.graph))

    def _node(
        self, bound: float, device: frozenset[int], server: frozenset[int], number: int = 0
    ) -> _SearchNode:
        """Bound a node and price the sets that the bounds came from."""
        minima = []
        graph, costs, constraints = self.problem.graph, self.problem.costs, self.problem.constraints
        lead_s = self._lead_s(device, server)
        device_s = sum(costs.device_s[layer] for layer in device)
        bound = max(bound, float(constraints.value(device_s, device_s, 0.0, 0.0, 0.0)))
        for weights in constraints.relaxations():
            chosen = min_set(graph, costs, device, server, weights)
            minima.append(chosen)
            self.price_if_promising(chosen)
            weighted_lead_s = lead_s * constraints.lead_weight(weights)
            bound = max(bound, weights.total_s(graph, costs, chosen) + weighted_lead_s)
            if self.beats(bound):
                break
        return _SearchNode(bound, number, device, server, tuple(minima))

    def _lead_s(self, device: frozenset[int], server: frozenset[int]) -> float:
        """Device seconds before any upload of the node's sets can start.

        The set of all layers, which uploads nothing, is priced before the search.
        """
        graph, upload_s = self.problem.graph, self.problem.costs.upload_s
        free_upload = min(upload_s.values(), default=0.0) == 0.0
        if free_upload or any(not layer.inputs for layer in graph.layers):
            return 0.0  # the server may have work that waits for no upload, or for a free one
        first_s = np.inf
        for name, users in graph.consumers.items():
            producer = graph.producer.get(name)
            if producer not in server and not device.issuperset(users):
                first_s = min(first_s, 0.0 if producer is None else self._ready_s[producer])
        return 0.0 if first_s == np.inf else first_s

    def _pivot(self, node: _SearchNode) -> int | None:
        """The layer to decide next: an end, a gate, then a layer on which the minima disagree.

        Only the compute that some upload waits for is bounded, so the ends come first.
        """
        successors = self.problem.graph.successors
        ends = frozenset(layer for layer, users in enumerate(successors) if not users)
        every = frozenset(range(len(successors)))
        disputed = frozenset[int]().union(*node.minima) - every.intersection(*node.minima)
        undecided = every - node.device - node.server
        for choice in (undecided & ends, undecided & self._gates, undecided & disputed, undecided):
            if choice:
                return sorted(choice)[len(choice) // 2]
        return None

    def _neighbours(self, device: frozenset[int]) -> Flags:
        """One set a layer: without it and all that need it, or with it and all that it needs."""
        problem, sets = self.problem, []
        for layer in range(len(problem.graph.layers)):
            if layer not in device:
                sets.append(device | problem.graph.ancestors((layer,)))
            elif not self._descendants[layer] & problem.pinned:
                sets.append(device - self._descendants[layer])
        return set_table(problem.graph, sets)


def _members(table: Flags, column: np.intp) -> frozenset[int]:
    return frozenset(np.flatnonzero(table[:, column]).tolist())


@dataclass(frozen=True)
class JointCut:
    """The result of the joint search.

    Attributes:
        cut: the best cut; None when no cut keeps the limits.
        value: its value of the objective.
        lower_bound: no cut has a smaller value.
        status: `optimal` when the bound is met, else `feasible`.
        near: some cuts of several tensors that are not much worse.
    """

    cut: Cut | None
    value: float
    lower_bound: float
    status: Literal["optimal", "feasible"]
    near: tuple[Cut, ...] = ()


def joint(
    problem: PlanningProblem, latency_of: LatencyOf, limit: int = 50_000, budget_s: float = 1.0
) -> JointCut:
    """Find the device set with the smallest value when its layers are ordered best.

    Where there are few closed sets all are listed, bounded at once (`set_costs`) and priced in
    order of their bounds until the next bound passes the best: exact. Above the limit, branch
    and bound on "this layer stays" / "this layer leaves", bounded by minimum cuts; it ends with
    the best set and a lower bound when the budget does.

    Args:
        problem: the layers, their seconds, the objective and the limits.
        latency_of: the latency of a cut with its best order, and a lower bound on it.
        limit: the most sets to list.
        budget_s: seconds that the search may take.
    """
    search = JointSearch(problem, latency_of, budget_s)
    table = closed_sets(problem.graph, problem.pinned, limit)
    bound = search.branch_and_bound() if table is None else search.price_by_bounds(table)
    bound = min(bound, search.floor, search.value)
    status: Literal["optimal", "feasible"] = "optimal" if search.beats(bound) else "feasible"
    return JointCut(search.cut, search.value, bound, status, tuple(search.near))
