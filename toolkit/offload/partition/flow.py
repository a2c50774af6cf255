"""A minimum cut between two vertices of a small network."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Arc(NamedTuple):
    """A directed pair of capacities: from tail to head, and back."""

    tail: int
    head: int
    capacity: int
    back: int = 0


def sink_side(count: int, arcs: Iterable[Arc], source: int, sink: int) -> frozenset[int]:
    """The vertices a minimum cut leaves with the sink, the fewest there can be.

    Push-relabel (Goldberg & Tarjan 1988), first in first out, with distances made exact again
    after every `count` relabels (Cherkassky & Goldberg 1997). Only the preflow is computed: what
    can't reach the sink need not be sent back to read off the cut. O(V^3) at worst, about
    linear on networks that are nearly chains. Capacities are whole numbers, so it is exact.
    """
    network = _Network(count, arcs, source, sink)
    network.push_all()
    return network.reaching_sink()


class _Network:
    """Residual capacities by arc; arc i runs against arc i ^ 1."""

    def __init__(self, count: int, arcs: Iterable[Arc], source: int, sink: int) -> None:
        self.source, self.sink, self.count = source, sink, count
        self.heads: list[int] = []
        self.left: list[int] = []
        self.out: list[list[int]] = [[] for _ in range(count)]
        for tail, head, capacity, back in arcs:
            self.out[tail].append(len(self.heads))
            self.out[head].append(len(self.heads) + 1)
            self.heads += (head, tail)
            self.left += (capacity, back)
        self.excess = [0] * count
        self.height = [0] * count

    def push_all(self) -> None:
        active = deque(self._saturate_source())
        self.height = self._distances()
        relabels = 0
        while active:
            vertex = active.popleft()
            if self.height[vertex] >= self.count:
                continue
            relabels += self._discharge(vertex, active)
            if relabels >= self.count:
                self.height, relabels = self._distances(), 0

    def _saturate_source(self) -> Sequence[int]:
        reached = []
        for arc in self.out[self.source]:
            amount, head = self.left[arc], self.heads[arc]
            if amount and head != self.sink:
                self.left[arc] = 0
                self.left[arc ^ 1] += amount
                self.excess[head] += amount
                reached.append(head)
        return list(dict.fromkeys(reached))

    def _discharge(self, vertex: int, active: deque[int]) -> int:
        """Push a vertex's excess downhill, raising it once when it is stuck; count raises."""
        heads, left, height, excess = self.heads, self.left, self.height, self.excess
        below, amount = height[vertex] - 1, excess[vertex]
        for arc in self.out[vertex]:
            head = heads[arc]
            if left[arc] and height[head] == below:
                pushed = amount if amount < left[arc] else left[arc]
                left[arc] -= pushed
                left[arc ^ 1] += pushed
                if not excess[head] and head != self.sink and head != self.source:
                    active.append(head)
                excess[head] += pushed
                amount -= pushed
                if not amount:
                    break
        excess[vertex] = amount
        if not amount:
            return 0
        height[vertex] = 1 + min([height[heads[arc]] for arc in self.out[vertex] if left[arc]])
        active.append(vertex)
        return 1

    def _distances(self) -> list[int]:
        """Arcs to the sink in the residual network; `count` where there is no way."""
        distance = [self.count] * self.count
        distance[self.sink] = 0
        queue = deque([self.sink])
        heads, left = self.heads, self.left
        while queue:
            vertex = queue.popleft()
            above = distance[vertex] + 1
            for arc in self.out[vertex]:
                if left[arc ^ 1] and distance[heads[arc]] > above and heads[arc] != self.source:
                    distance[heads[arc]] = above
                    queue.append(heads[arc])
        return distance

    def reaching_sink(self) -> frozenset[int]:
        return frozenset(v for v, far in enumerate(self._distances()) if far < self.count)
