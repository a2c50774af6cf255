"""The cut with the least serial latency, by one minimum cut of a flow network."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from offload.graph.model import Graph
from offload.planning.cut import Cut, cut_at
from offload.planning.cut_costs import Costs

Arc: TypeAlias = tuple[int, int, int, int]
"""Tail, head, capacity from tail to head, capacity back."""


class FlowNetwork:
    """Residual capacities by arc; arc i runs against arc i ^ 1."""

    def __init__(self, count: int, arcs: Iterable[Arc], source: int, sink: int) -> None:
        self.source, self.sink, self.count = source, sink, count
        self.heads: list[int] = []
        self.residual: list[int] = []
        self.out: list[list[int]] = [[] for _ in range(count)]
        for tail, head, capacity, back in arcs:
            self.out[tail].append(len(self.heads))
            self.out[head].append(len(self.heads) + 1)
            self.heads += (head, tail)
            self.residual += (capacity, back)
        self.excess = [0] * count
        self.height = [0] * count

    def sink_side(self) -> frozenset[int]:
        """The vertices that a minimum cut leaves with the sink, the fewest there can be.

        Push-relabel (Goldberg & Tarjan 1988), first in first out, with distances made exact again
        after every `count` relabels (Cherkassky & Goldberg 1997). Only the preflow is computed:
        excess that can't reach the sink need not be sent back to read off the cut. O(V^3) at
        worst, about linear on networks that are nearly chains. Capacities are whole numbers, so
        it is exact. The quickest of networkx takes ten times as long (8 ms for 300 layers).
        """
        active: deque[int] = deque()
        for arc in self.out[self.source]:
            amount, head = self.residual[arc], self.heads[arc]
            if amount and head != self.sink:
                self.residual[arc] = 0
                self.residual[arc ^ 1] += amount
                if not self.excess[head]:
                    active.append(head)
                self.excess[head] += amount
        self.height = self._distances()
        relabels = 0
        while active:
            vertex = active.popleft()
            if self.height[vertex] >= self.count:
                continue
            relabels += self._discharge(vertex, active)
            if relabels >= self.count:
                self.height, relabels = self._distances(), 0
        return frozenset(v for v, far in enumerate(self._distances()) if far < self.count)

    def _discharge(self, vertex: int, active: deque[int]) -> int:
        """Push a vertex's excess downhill and raise it once if some remains; count raises."""
        heads, residual, height, excess = self.heads, self.residual, self.height, self.excess
        below, amount = height[vertex] - 1, excess[vertex]
        for arc in self.out[vertex]:
            head = heads[arc]
            if residual[arc] and height[head] == below:
                pushed = amount if amount < residual[arc] else residual[arc]
                residual[arc] -= pushed
                residual[arc ^ 1] += pushed
                if not excess[head] and head != self.sink and head != self.source:
                    active.append(head)
                excess[head] += pushed
                amount -= pushed
                if not amount:
                    break
        excess[vertex] = amount
        if not amount:
            return 0
        height[vertex] = 1 + min([height[heads[arc]] for arc in self.out[vertex] if residual[arc]])
        active.append(vertex)
        return 1

    def _distances(self) -> list[int]:
        """Number of arcs to the sink in the residual network; `count` where it is unreachable."""
        distance = [self.count] * self.count
        distance[self.sink] = 0
        queue = deque([self.sink])
        heads, residual = self.heads, self.residual
        while queue:
            vertex = queue.popleft()
            above = distance[vertex] + 1
            for arc in self.out[vertex]:
                head = heads[arc]
                if residual[arc ^ 1] and distance[head] > above and head != self.source:
                    distance[head] = above
                    queue.append(head)
        return distance


# Capacities are whole picoseconds: sums of whole numbers are exact, whatever their order.
_PER_S = 1e12


@dataclass(frozen=True, slots=True)
class ResourceWeights:
    """Factors on the seconds of each resource; by default their sum is the serial latency.

    Attributes:
        device: of all that the device computes.
        upload: of all uploads.
        server: of the server's compute.
        download: of all downloads.
        awaited: of what the device computes before its last upload, in addition to `device`.
    """

    device: float = 1.0
    upload: float = 1.0
    server: float = 1.0
    download: float = 1.0
    awaited: float = 0.0

    def total_s(self, graph: Graph, costs: Costs, device: AbstractSet[int]) -> float:
        """The weighted seconds of a device set, without the cost of a server segment."""
        cut = cut_at(graph, device)
        awaited: set[int] = set()  # the device's layers that some upload waits for
        for layer in sorted(device, reverse=True):
            if any(user in awaited or user not in device for user in graph.successors[layer]):
                awaited.add(layer)
        return (
            self.device * costs.device_time_s(cut)
            + self.upload * costs.upload_time_s(cut)
            + self.server * costs.server_work_s(cut)
            + self.download * costs.download_time_s(cut)
            + self.awaited * sum(costs.device_s[layer] for layer in awaited)
            + self.awaited * sum(map(costs.leave_s, cut.uploads))
        )

    def send_s(self, costs: Costs, tensor: str) -> float:
        """The weighted seconds of sending one tensor: encoding, uploading, decoding."""
        return (
            (self.device + self.awaited) * costs.leave_s(tensor)
            + self.upload * costs.upload_s[tensor]
            + self.server * costs.decode_s.get(tensor, 0.0)
        )


SERIAL = ResourceWeights()


def min_cut(graph: Graph, costs: Costs, pinned: AbstractSet[int] = frozenset()) -> Cut:
    """Minimise device + upload + server + download seconds with nothing overlapped.

    The flow network of DADS (Hu et al. 2019) and QDMP (Zhang et al. 2020): an arc from each
    layer to the server side carries its device seconds, an arc in the other direction its server
    seconds; a tensor has a vertex of its own, so it is charged once however many layers need it;
    an infinite arc from each layer to those it needs keeps the device set closed. Local-only and
    cloud-only come out as special cases. The cost of a server segment is left out: it is the same
    for every cut.

    Args:
        graph: the layers.
        costs: their seconds.
        pinned: layers that stay on the device, with all that they need.
    """
    return cut_at(graph, min_set(graph, costs, pinned))


def min_set(
    graph: Graph,
    costs: Costs,
    device: AbstractSet[int] = frozenset(),
    server: AbstractSet[int] = frozenset(),
    weights: ResourceWeights = SERIAL,
) -> frozenset[int]:
    """The device set of a minimum cut, as for `min_cut`, with some layers decided.

    Args:
        graph: the layers.
        costs: their seconds.
        device: layers that stay on the device, with all that they need.
        server: layers that the server computes, with all that need them.
        weights: factors on the seconds.
    """
    cut = _CutNetwork(graph, costs, weights, device, server)
    arcs = [*cut.layer_arcs(), *cut.tensor_arcs(), *cut.awaited_arcs()]
    network = FlowNetwork(cut.sink + 1 + len(cut.groups), arcs, cut.source, cut.sink)
    return frozenset(range(len(graph.layers))) - network.sink_side() - server


@dataclass(frozen=True)
class _CutNetwork:
    """Vertices: layers, tensors with several readers, device, server, groups of end layers."""

    graph: Graph
    costs: Costs
    weights: ResourceWeights
    device: AbstractSet[int]
    server: AbstractSet[int]

    @cached_property
    def source(self) -> int:
        """The device's vertex, behind those of layers and of tensors with several readers."""
        shared = sum(len(users) > 1 for users in self.graph.consumers.values())
        return len(self.graph.layers) + shared

    @property
    def sink(self) -> int:
        """The server's vertex."""
        return self.source + 1

    @cached_property
    def infinite(self) -> int:
        """A capacity above that of any finite cut."""
        costs, weights = self.costs, self.weights
        total_s = sum(costs.device_s) + sum(costs.server_s)
        total_s += sum(map(costs.leave_s, costs.upload_s))
        for seconds in (costs.upload_s, costs.download_s, costs.decode_s):
            total_s += sum(seconds.values())
        device = weights.device + weights.awaited
        scale = max(1.0, device, weights.upload, weights.server, weights.download)
        return _picoseconds(total_s * scale) + 1

    def vertex(self, layer: int) -> int:
        """The vertex of a layer; a layer that is decided is one with its side."""
        if layer in self.device:
            return self.source
        return self.sink if layer in self.server else layer

    def layer_arcs(self) -> Iterator[Arc]:
        """What a layer costs on either side, less what it costs on both."""
        weights, download_s = self.weights, layer_download_s(self.graph, self.costs)
        for layer, device_s in enumerate(self.costs.device_s):
            if layer not in self.device and layer not in self.server:
                server_s = self.costs.server_s[layer] * weights.server
                on_server = _picoseconds(server_s + download_s[layer] * weights.download)
                on_device = _picoseconds(device_s * weights.device)
                if on_server > on_device:
                    yield self.source, layer, on_server - on_device, 0
                elif on_device > on_server:
                    yield layer, self.sink, on_device - on_server, 0

    def tensor_arcs(self) -> Iterator[Arc]:
        """From each tensor to its readers, and from each layer to those it needs."""
        tensor = len(self.graph.layers)
        for name, readers in self.graph.consumers.items():
            layer = self.graph.producer.get(name)
            producer = self.source if layer is None else self.vertex(layer)
            users = {self.vertex(reader) for reader in readers} - {self.source}
            if producer == self.sink or not users:
                continue
            sent = _picoseconds(self.weights.send_s(self.costs, name))
            capacity = self.infinite if name in self.costs.unsized else sent
            closing = 0 if producer == self.source else self.infinite
            if len(users) == 1:
                yield producer, users.pop(), capacity, closing
                continue
            yield producer, tensor, capacity, 0
            for user in users:
                yield tensor, user, self.infinite, 0
                if closing:
                    yield user, producer, closing, 0
            tensor += 1

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """By layer: the end layers it leads to, as a mask."""
        masks = [0] * len(self.graph.layers)
        for layer in reversed(range(len(masks))):
            users = self.graph.successors[layer]
            masks[layer] = 0 if users else 1 << layer
            for index in users:
                masks[layer] |= masks[index]
        return tuple(masks)

    @cached_property
    def groups(self) -> Mapping[int, int]:
        """A vertex for each set of end layers that some layer leads to."""
        masks = dict.fromkeys(self.ends) if self.weights.awaited else ()
        return {mask: self.sink + 1 + index for index, mask in enumerate(masks)}

    def awaited_arcs(self) -> Iterator[Arc]:
        """A layer's awaited seconds count unless all that it leads to is on the device too."""
        for layer, mask in enumerate(self.ends if self.groups else ()):
            producer = self.vertex(layer)
            if producer != self.sink:
                seconds = self.costs.device_s[layer] * self.weights.awaited
                yield producer, self.groups[mask], _picoseconds(seconds), 0
        for mask, group in self.groups.items():
            ends = {self.vertex(layer) for layer in range(mask.bit_length()) if mask >> layer & 1}
            for end in ends - {self.source}:
                yield group, end, self.infinite, 0


def layer_download_s(graph: Graph, costs: Costs) -> tuple[float, ...]:
    """By layer: seconds to download the graph outputs that it computes."""
    outputs = set(graph.outputs)
    return tuple(
        sum(costs.download_s[name] for name in layer.outputs if name in outputs)
        for layer in graph.layers
    )


def _picoseconds(seconds: float) -> int:
    return round(seconds * _PER_S)
