"""Branch and bound on which layers stay, for graphs with too many closed sets to list."""

import heapq
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from offload.partition.chain import articulations
from offload.partition.incumbent import Incumbent
from offload.partition.mincut import min_set
from offload.partition.sets import Flags, ready_s


@dataclass(frozen=True, order=True)
class _Node:
    """All device sets that hold `here` and nothing of `there`; best bound first."""

    bound: float
    number: int
    here: frozenset[int] = field(compare=False)
    there: frozenset[int] = field(compare=False)
    minima: tuple[frozenset[int], ...] = field(compare=False, default=())


def branch_and_bound(best: Incumbent, pinned: frozenset[int]) -> float:
    """Search the closed sets that hold the pinned layers; returns a lower bound on them all.

    A node's bound is the largest of several minimum cuts, one for each weighting of the
    resources that no plan can beat (`Demand.relaxations`), each raised by what the uplink idles
    before a first upload can start; their device sets are priced, and so are, once at the root,
    the sets a layer away from the best. Layers through which everything passes are decided
    first: below one of them that stays, all uploads wait for all that it needs. Best bound
    first, until the bound meets the best or the budget ends.
    """
    tree = _Tree(best)
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
class _Tree:
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
    ) -> _Node:
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
        return _Node(bound, number, here, there, tuple(minima))

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

    def pivot(self, node: _Node) -> int | None:
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


def _climb(tree: _Tree, pinned: AbstractSet[int]) -> None:
    """Move the best by one layer and all that it drags along, while that helps."""
    best = tree.best
    while best.cut is not None and not best.late:
        before = best.value
        best.offer_by_bounds(_neighbours(tree, best.cut.device, pinned))
        if best.value >= before:
            return


def _neighbours(tree: _Tree, device: frozenset[int], pinned: AbstractSet[int]) -> Flags:
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
