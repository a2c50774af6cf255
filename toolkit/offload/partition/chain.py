"""One cut on the chain of articulation points: where the whole network passes one tensor."""

from collections.abc import Iterator

import numpy as np

from offload.graph.model import Graph
from offload.partition.costs import Costs
from offload.partition.cut import Cut, cut_at
from offload.partition.demand import Demand
from offload.partition.sets import tally

LATENCY = Demand()


def articulations(graph: Graph) -> Iterator[int]:
    """Layers below which only their own outputs are read, in order; O(E) on masks of V bits."""
    entry = 0
    for name in graph.inputs:
        for user in graph.consumers.get(name, ()):
            entry |= 1 << user
    needed: list[int] = []
    read: list[int] = []
    for layer, before in enumerate(graph.predecessors):
        closed, readers = 1 << layer, entry
        for index in before:
            closed |= needed[index]
            readers |= read[index]
        needed.append(closed)
        if not readers & ~closed:
            yield layer
        for after in graph.successors[layer]:
            readers |= 1 << after
        read.append(readers)


def neurosurgeon(graph: Graph, costs: Costs, demand: Demand = LATENCY) -> Cut | None:
    """The best serial plan with at most one cut, at an articulation point.

    The candidates of Neurosurgeon (Kang et al. 2017), which knew only chains: all on the
    server, all on the device, or the device up to a layer whose one output is all that the rest
    needs. None when no candidate keeps the pinned layers. O(points x edges) in numpy.
    """
    pinned = graph.ancestors(demand.pinned)
    everything = frozenset(range(len(graph.layers)))
    sets = [frozenset[int](), *(graph.ancestors((a,)) for a in articulations(graph)), everything]
    sets = [device for device in dict.fromkeys(sets) if device >= pinned]
    table = np.zeros((len(everything), len(sets)), dtype=np.bool_)
    for column, device in enumerate(sets):
        table[list(device), column] = True
    sums = tally(graph, costs, table)
    serial_s = sums.compute_s + sums.upload_s + sums.server_s + sums.result_s
    stages = (sums.compute_s, sums.upload_s, sums.server_s, sums.result_s)
    several = (sums.tensors > 1) & (table.any(axis=0))
    value = np.where(several | ~sums.allowed, np.inf, demand.value(serial_s, *stages))
    best = int(np.argmin(value))
    return cut_at(graph, sets[best]) if value[best] < np.inf else None
