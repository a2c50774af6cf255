"""Choose cut and order jointly to minimise the overlapped latency."""

import heapq
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from offload.graph.model import Graph
from offload.planning.closed_sets import Flags, articulations, closed_sets, ready_s, set_costs
from offload.planning.constraints import Constraints
from offload.planning.costs import Costs
from offload.planning.cut import Cut, cut_at
from offload.planning.mincut import min_set

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
        demand: Constraints,
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
        sums = set_costs(self.graph, self.costs, table)
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


@dataclass(frozen=True, order=True)
class _SearchNode:
    """All device sets that hold `here` and nothing of `there`; best bound first."""

    bound: float
    number: int
    here: frozenset[int] = field(compare=False)
    there: frozenset[int] = field(compare=False)
    minima: tuple[frozenset[int], ...] = field(compare=False, default=())


def branch_and_bound(best: Incumbent, pinned: frozenset[int]) -> float:
    """Search the closed sets that hold the pinned layers; returns a lower bound on them all.

    A node's bound is the largest of several minimum cuts, one for each weighting of the
    resources that no plan can beat (`Constraints.relaxations`), each raised by the time that the
    uplink idles
    before a first upload can start; their device sets are priced, and so are, once at the root,
    the sets a layer away from the best. Layers through which everything passes are decided
    first: below one of them that stays, all uploads wait for all that it needs. Best bound
    first, until the bound meets the best or the budget ends.
    """
    tree = _SearchTree(best)
    best.offer(frozenset(range(len(best.graph.layers))))
    root = tree.node(-np.inf, pinned, frozenset())
    _climb(tree, pinned)
    heap, count = [root], 1
    while heap and not best.beats(heap[0].bound) and not best.late:
        node = heapq.heappop(heap)
        layer = tree.pivot(node)
        if layer is None:
            continue
        stay = best.graph.ancestors((layer,))
        for here, there in (
            (node.here | stay, node.there),
            (node.here, node.there | tree.descendants[layer]),
        ):
            heapq.heappush(heap, tree.node(node.bound, here, there, count))
            count += 1
    return min(heap[0].bound if heap else best.value, best.value)


@dataclass(frozen=True)
class _SearchTree:
    best: Incumbent

    @cached_property
    def descendants(self) -> tuple[frozenset[int], ...]:
        """By layer: itself and all that need it."""
        found: list[frozenset[int]] = [frozenset()] * len(self.best.graph.layers)
        for layer in reversed(range(len(found))):
            after = self.best.graph.successors[layer]
            found[layer] = frozenset((layer,)).union(*(found[index] for index in after))
        return tuple(found)

    @cached_property
    def ready_s(self) -> Sequence[float]:
        """By layer: device seconds until it is made."""
        return ready_s(self.best.graph, self.best.costs)

    @cached_property
    def gates(self) -> frozenset[int]:
        """Layers through which everything passes."""
        return frozenset(articulations(self.best.graph))

    @cached_property
    def ends(self) -> frozenset[int]:
        """Layers that no other needs."""
        after = self.best.graph.successors
        return frozenset(layer for layer, users in enumerate(after) if not users)

    @cached_property
    def may_be_silent(self) -> bool:
        """Whether the server could have work that waits for no upload, or for a free one."""
        free = min(self.best.costs.upload_s.values(), default=0.0) == 0.0
        return free or any(not layer.inputs for layer in self.best.graph.layers)

    def node(
        self, bound: float, here: frozenset[int], there: frozenset[int], number: int = 0
    ) -> _SearchNode:
        """Bound a node and price the sets that the bounds came from."""
        best, minima = self.best, []
        graph, costs = best.graph, best.costs
        lead_s = self.lead_s(here, there)
        bound = max(bound, self.held_value(here))
        for weights in best.demand.relaxations():
            chosen = min_set(graph, costs, here, there, weights)
            minima.append(chosen)
            best.offer_if_near(chosen)
            lead = lead_s * best.demand.lead_weight(weights)
            bound = max(bound, weights.total_s(graph, costs, chosen) + lead)
            if best.beats(bound):
                break
        return _SearchNode(bound, number, here, there, tuple(minima))

    def held_value(self, here: frozenset[int]) -> float:
        """A bound from what is on the device already."""
        compute_s = sum(self.best.costs.device_s[layer] for layer in here)
        return float(self.best.demand.value(compute_s, compute_s, 0.0, 0.0, 0.0))

    def lead_s(self, here: frozenset[int], there: frozenset[int]) -> float:
        """Device seconds before any upload of the node's sets can start.

        All on the device, which uploads nothing, is priced apart before the search.
        """
        graph = self.best.graph
        if self.may_be_silent:
            return 0.0
        first_s = np.inf
        for name, users in graph.consumers.items():
            maker = graph.producer.get(name)
            if maker not in there and not here.issuperset(users):
                first_s = min(first_s, 0.0 if maker is None else self.ready_s[maker])
        return 0.0 if first_s == np.inf else first_s

    def pivot(self, node: _SearchNode) -> int | None:
        """The layer to decide next: an end, a gate, then what the minima disagree on.

        Only what some upload waits for is bounded, so whether the ends stay comes first.
        """
        every = frozenset(range(len(self.best.graph.layers)))
        some = frozenset[int]().union(*node.minima)
        doubtful = some.difference(every.intersection(*node.minima))
        left = every - node.here - node.there
        for choice in (left & self.ends, left & self.gates, left & doubtful, left):
            if choice:
                return sorted(choice)[len(choice) // 2]
        return None


def _climb(tree: _SearchTree, pinned: AbstractSet[int]) -> None:
    """Move the best by one layer and all that it drags along, while that helps."""
    best = tree.best
    while best.cut is not None and not best.late:
        before = best.value
        best.offer_by_bounds(_neighbours(tree, best.cut.device, pinned))
        if best.value >= before:
            return


def _neighbours(tree: _SearchTree, device: frozenset[int], pinned: AbstractSet[int]) -> Flags:
    """One set a layer: without it and what needs it, or with it and what it needs."""
    graph = tree.best.graph
    sets = []
    for layer in range(len(graph.layers)):
        if layer not in device:
            sets.append(device | graph.ancestors((layer,)))
        elif not tree.descendants[layer] & pinned:
            sets.append(device - tree.descendants[layer])
    table = np.zeros((len(graph.layers), len(sets)), dtype=np.bool_)
    for column, chosen in enumerate(sets):
        table[list(chosen), column] = True
    return table


LATENCY = Constraints()


@dataclass(frozen=True)
class JointCut:
    """The cut found.

    Attributes:
        cut: None when no cut keeps the limits.
        value: what was to be smallest, of this cut.
        lower_bound: no cut has a smaller value.
        status: `optimal` when the bound is met, else `feasible`.
        priced: how many cuts were ordered to the end.
        near: some cuts of several tensors that are not much worse.
    """

    cut: Cut | None
    value: float
    lower_bound: float
    status: Literal["optimal", "feasible"]
    priced: int
    near: tuple[Cut, ...] = ()


def joint(
    graph: Graph,
    costs: Costs,
    latency_of: LatencyOf,
    demand: Constraints = LATENCY,
    limit: int = 50_000,
    budget_s: float = 1.0,
) -> JointCut:
    """Find the device set with the smallest value when its layers are ordered best.

    Where there are few closed sets all are listed, bounded at once (`tally`) and ordered in
    order of their bounds until the next bound passes the best: exact. Above the limit, branch
    and bound on "this layer stays" / "this layer leaves", bounded by minimum cuts; it ends with
    the best found and a lower bound when the budget does.

    Args:
        graph: the layers.
        costs: their seconds.
        latency_of: the latency of a cut with its best order, and a lower bound on it.
        demand: the objective and the limits.
        limit: the most sets to list.
        budget_s: seconds that the search may take.
    """
    best = Incumbent(graph, costs, latency_of, demand, budget_s)
    pinned = graph.ancestors(demand.pinned)
    table = closed_sets(graph, pinned, limit)
    bound = branch_and_bound(best, pinned) if table is None else best.offer_by_bounds(table)
    bound = min(bound, best.proved_floor)
    status: Literal["optimal", "feasible"] = "optimal" if best.beats(bound) else "feasible"
    return JointCut(best.cut, best.value, bound, status, len(best.priced), tuple(best.near))
