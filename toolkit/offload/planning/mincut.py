"""The cut with the least serial latency, by one minimum cut."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from offload.graph.model import Graph
from offload.planning.costs import Costs
from offload.planning.cut import Cut, cut_at


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


# Capacities are whole picoseconds: sums of whole numbers are exact, whatever their order.
_PER_S = 1e12


@dataclass(frozen=True, slots=True)
class ResourceWeights:
    """Factors on the seconds of each resource; by default their sum is the serial latency.

    Attributes:
        compute: of all that the device computes.
        upload: of all uploads.
        server: of the server's compute.
        result: of all downloads.
        awaited: of what the device computes before its last upload, further to `compute`.
    """

    compute: float = 1.0
    upload: float = 1.0
    server: float = 1.0
    result: float = 1.0
    awaited: float = 0.0

    def total_s(self, graph: Graph, costs: Costs, device: AbstractSet[int]) -> float:
        """The weighted seconds of a device set; what server segments cost besides is left out."""
        cut = cut_at(graph, device)
        return (
            self.compute * costs.compute_s(cut)
            + self.upload * costs.sending_s(cut)
            + self.server * costs.work_s(cut)
            + self.result * costs.result_s(cut)
            + self.awaited * sum(costs.device_s[layer] for layer in awaited(graph, device))
            + self.awaited * sum(map(costs.leave_s, cut.uploads))
        )

    def passage_s(self, costs: Costs, tensor: str) -> float:
        """The weighted seconds of sending one tensor: leaving, on its way, decoding."""
        return (
            (self.compute + self.awaited) * costs.leave_s(tensor)
            + self.upload * costs.upload_s[tensor]
            + self.server * costs.decode_s.get(tensor, 0.0)
        )


SERIAL = ResourceWeights()


def min_cut(
    graph: Graph,
    costs: Costs,
    here: AbstractSet[int] = frozenset(),
    there: AbstractSet[int] = frozenset(),
    weights: ResourceWeights = SERIAL,
) -> Cut:
    """Minimise device + upload + server + download seconds with nothing overlapped.

    The flow network of DADS (Hu et al. 2019) and QDMP (Zhang et al. 2020): an arc from each
    layer to the server side carries its device seconds and the other way round; a tensor has a
    vertex of its own, so it is charged once however many layers need it; an infinite arc from
    each layer to those it needs keeps the device set closed. Local-only and cloud-only come out
    as special cases. What the server's segment costs besides its layers is not weighed: it is
    the same for every cut.

    Args:
        graph: the layers.
        costs: their seconds.
        here: layers that stay on the device; all that they need is among them.
        there: layers that the server computes; all that need them is among them.
        weights: factors on the seconds.
    """
    return cut_at(graph, min_set(graph, costs, here, there, weights))


def min_set(
    graph: Graph,
    costs: Costs,
    here: AbstractSet[int] = frozenset(),
    there: AbstractSet[int] = frozenset(),
    weights: ResourceWeights = SERIAL,
) -> frozenset[int]:
    """The device set of `min_cut`."""
    network = _CutNetwork(graph, costs, weights, here, there)
    arcs = [*network.sides(), *network.flows(), *network.waits()]
    count = network.sink + 1 + len(network.groups)
    server = sink_side(count, arcs, network.source, network.sink) | there
    return frozenset(range(len(graph.layers))) - server


@dataclass(frozen=True)
class _CutNetwork:
    """Vertices: layers, tensors with several readers, device, server, groups of end layers."""

    graph: Graph
    costs: Costs
    weights: ResourceWeights
    here: AbstractSet[int]
    there: AbstractSet[int]

    @cached_property
    def source(self) -> int:
        shared = sum(len(users) > 1 for users in self.graph.consumers.values())
        return len(self.graph.layers) + shared

    @property
    def sink(self) -> int:
        return self.source + 1

    @cached_property
    def endless(self) -> int:
        """More than any finite cut."""
        costs, weights = self.costs, self.weights
        leave_s = map(costs.leave_s, costs.upload_s)
        ways = (costs.upload_s, costs.download_s, costs.decode_s)
        lists = (costs.device_s, costs.server_s, leave_s, *(each.values() for each in ways))
        scale = max(1.0, weights.compute + weights.awaited, weights.upload, weights.server)
        scale = max(scale, weights.result)
        return _whole(sum(map(sum, lists)) * scale) + 1

    def vertex(self, layer: int) -> int:
        """A layer that is decided is one with its side."""
        if layer in self.here:
            return self.source
        return self.sink if layer in self.there else layer

    def sides(self) -> Iterator[Arc]:
        """What a layer costs on either side; what both arcs carry flows in any cut: taken out."""
        returned_s = results_s(self.graph, self.costs)
        for layer, seconds in enumerate(self.costs.device_s):
            if layer not in self.here and layer not in self.there:
                rest_s = self.costs.server_s[layer] * self.weights.server
                rest_s += returned_s[layer] * self.weights.result
                stay, leave = _whole(rest_s), _whole(seconds * self.weights.compute)
                if stay > leave:
                    yield Arc(self.source, layer, stay - leave)
                elif leave > stay:
                    yield Arc(layer, self.sink, leave - stay)

    def flows(self) -> Iterator[Arc]:
        """Tensors towards their readers, and each layer bound to those it needs."""
        tensor = len(self.graph.layers)
        for name, readers in self.graph.consumers.items():
            layer = self.graph.producer.get(name)
            maker = self.source if layer is None else self.vertex(layer)
            users = {self.vertex(reader) for reader in readers} - {self.source}
            if maker == self.sink or not users:
                continue
            sent = _whole(self.weights.passage_s(self.costs, name))
            capacity = self.endless if name in self.costs.unsized else sent
            closed = 0 if maker == self.source else self.endless
            if len(users) == 1:
                yield Arc(maker, users.pop(), capacity, closed)
                continue
            yield Arc(maker, tensor, capacity)
            for user in users:
                yield Arc(tensor, user, self.endless)
                if closed:
                    yield Arc(user, maker, closed)
            tensor += 1

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """By layer: the end layers it leads to, as a mask."""
        found = [0] * len(self.graph.layers)
        for layer in reversed(range(len(found))):
            after = self.graph.successors[layer]
            found[layer] = 0 if after else 1 << layer
            for index in after:
                found[layer] |= found[index]
        return tuple(found)

    @cached_property
    def groups(self) -> Mapping[int, int]:
        """A vertex for each set of end layers that some layer leads to."""
        masks = dict.fromkeys(self.ends) if self.weights.awaited else ()
        return {mask: self.sink + 1 + index for index, mask in enumerate(masks)}

    def waits(self) -> Iterator[Arc]:
        """A layer's awaited seconds count unless all that it leads to is on the device too."""
        for layer, mask in enumerate(self.ends if self.groups else ()):
            maker = self.vertex(layer)
            if maker != self.sink:
                seconds = self.costs.device_s[layer] * self.weights.awaited
                yield Arc(maker, self.groups[mask], _whole(seconds))
        for mask, group in self.groups.items():
            ends = {self.vertex(layer) for layer in range(mask.bit_length()) if mask >> layer & 1}
            for end in ends - {self.source}:
                yield Arc(group, end, self.endless)


def awaited(graph: Graph, device: AbstractSet[int]) -> set[int]:
    """The layers of a closed device set that some upload waits for."""
    found: set[int] = set()
    for layer in sorted(device, reverse=True):
        if any(after in found or after not in device for after in graph.successors[layer]):
            found.add(layer)
    return found


def results_s(graph: Graph, costs: Costs) -> tuple[float, ...]:
    """By layer: seconds to send the graph outputs it makes back to the device."""
    returned = set(graph.outputs)
    return tuple(
        sum(costs.download_s[name] for name in layer.outputs if name in returned)
        for layer in graph.layers
    )


def _whole(seconds: float) -> int:
    return round(seconds * _PER_S)
