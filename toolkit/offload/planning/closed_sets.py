"""Enumerate closed sets of layers, all of them or those of a chain, with the cost of each."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offload.graph.model import Graph
from offload.planning.cut import Cut, cut_at
from offload.planning.cut_costs import Costs
from offload.planning.mincut import layer_download_s
from offload.planning.problem import PlanningProblem

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_BLOCK = 4096


def closed_sets(
    graph: Graph, pinned: AbstractSet[int] = frozenset(), limit: int = 50_000
) -> Flags | None:
    """Every down-closed set of layers, as a table of layers x sets; None when there are more.

    Layers are decided in topological order. Only layers with an undecided reader are carried
    along, so the time is O(sets x layers x width) in numpy and the table is made at the end.

    Args:
        graph: the layers.
        pinned: layers that are in every set.
        limit: the most sets to list.
    """
    chosen: dict[int, Flags] = {}
    parents: list[npt.NDArray[np.intp]] = []
    counts = [1]
    last = [max(after, default=layer) for layer, after in enumerate(graph.successors)]
    for layer, before in enumerate(graph.predecessors):
        able = np.ones(counts[-1], dtype=np.bool_)
        for needed in before:
            able &= chosen[needed]
        without = np.arange(0 if layer in pinned else counts[-1])
        parents.append(np.concatenate([without, np.flatnonzero(able)]))
        counts.append(len(parents[-1]))
        if counts[-1] > limit:
            return None
        open_layers = [index for index in chosen if last[index] > layer]
        chosen = {index: chosen[index][parents[-1]] for index in open_layers}
        chosen[layer] = np.arange(counts[-1]) >= len(without)
    # Follow each set back to the first layer: at each, the last rows are the sets that took it.
    rows = np.arange(counts[-1])
    table = np.empty((len(parents), len(rows)), dtype=np.bool_)
    for layer in reversed(range(len(parents))):
        table[layer] = rows >= (0 if layer in pinned else counts[layer])
        rows = parents[layer][rows]
    return table


def set_table(graph: Graph, sets: Iterable[AbstractSet[int]]) -> Flags:
    """Sets of layers as a table of layers x sets."""
    columns = list(sets)
    table = np.zeros((len(graph.layers), len(columns)), dtype=np.bool_)
    for column, layers in enumerate(columns):
        table[list(layers), column] = True
    return table


@dataclass(frozen=True)
class SetCosts:
    """What each of many device sets costs, one entry a set.

    Attributes:
        stages_s: seconds of device, uplink, server and downlink, one array each.
        latency_s: a lower bound on the latency with the best order.
        uploads: the number of tensors that are uploaded.
        allowed: False where a tensor of unknown size would be uploaded.
    """

    stages_s: tuple[Floats, Floats, Floats, Floats]
    latency_s: Floats
    uploads: npt.NDArray[np.int64]
    allowed: Flags


def set_costs(graph: Graph, costs: Costs, table: Flags) -> SetCosts:
    """The costs of closed device sets, given as a table of layers x sets; O(sets x edges).

    The latency is bounded by the device alone; by the shortest lead before an upload plus all
    uploads; by all compute that an upload waits for plus the shortest upload; the last two with
    the server's work and the downloads behind them.
    """
    sets = table.shape[1]
    upload_s, uploads = np.zeros(sets), np.zeros(sets, dtype=np.int64)
    leave_s, decode_s = np.zeros(sets), np.zeros(sets)
    lead_s, tail_s = np.full(sets, np.inf), np.full(sets, np.inf)
    allowed = np.ones(sets, dtype=np.bool_)
    awaited = np.zeros_like(table)  # by layer and set: whether some upload waits for the layer
    layer_ready_s = ready_s(graph, costs)
    for name, users in graph.consumers.items():
        producer = graph.producer.get(name)
        crosses = np.zeros(sets, dtype=np.bool_)
        for user in users:
            crosses |= ~table[user]
        if producer is not None:
            crosses &= table[producer]
        if not crosses.any():
            continue
        seconds = costs.upload_s[name]
        uploads += crosses
        upload_s += crosses * seconds
        leave_s += crosses * costs.leave_s(name)
        decode_s += crosses * costs.decode_s.get(name, 0.0)
        if name in costs.unsized:
            allowed &= ~crosses
        if seconds > 0:
            start_s = 0 if producer is None else layer_ready_s[producer]
            lead_s[crosses] = np.minimum(lead_s[crosses], start_s)
            tail_s[crosses] = np.minimum(tail_s[crosses], seconds)
            if producer is not None:
                awaited[producer] |= crosses
    for layer in reversed(range(len(awaited))):
        for before in graph.predecessors[layer]:
            awaited[before] |= awaited[layer]
    device_s = _sum(table, costs.device_s) + leave_s
    server_s = _sum(~table, costs.server_s) + decode_s
    server_s += (table.any(axis=0) & ~table.all(axis=0)) * costs.server_segment_s
    download_s = _sum(~table, layer_download_s(graph, costs))
    awaited_s = _sum(awaited, costs.device_s) + leave_s
    uplink_s = np.where(upload_s > 0, np.maximum(lead_s + upload_s, awaited_s + tail_s), 0.0)
    latency_s = np.maximum(device_s, uplink_s + server_s + download_s)
    return SetCosts((device_s, upload_s, server_s, download_s), latency_s, uploads, allowed)


def ready_s(graph: Graph, costs: Costs) -> list[float]:
    """By layer: device seconds of it and all that it needs.

    Each starts from the longest of those it needs, so only what the others add is summed up:
    near O(V + E) on networks, O(V^2) at worst.
    """
    needed: list[int] = []
    ready: list[float] = []
    for layer, before in enumerate(graph.predecessors):
        longest = max(before, key=ready.__getitem__, default=None)
        mask, total_s = (0, 0.0) if longest is None else (needed[longest], ready[longest])
        for index in before:
            added = needed[index] & ~mask
            mask |= added
            while added:
                low = added & -added
                total_s += costs.device_s[low.bit_length() - 1]
                added ^= low
        needed.append(mask | 1 << layer)
        ready.append(total_s + costs.device_s[layer])
    return ready


def _sum(table: Flags, seconds: tuple[float, ...]) -> Floats:
    """Total seconds of each set, block by block so that little is copied."""
    row = np.array(seconds)
    starts = range(0, table.shape[1], _BLOCK)
    sums = [row @ table[:, start : start + _BLOCK] for start in starts]
    return np.concatenate(sums) if sums else np.zeros(0)


def articulations(graph: Graph) -> Iterator[int]:
    """Layers after which no tensor but their own outputs is read, in order; O(E) on V-bit masks."""
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


def neurosurgeon(problem: PlanningProblem) -> Cut | None:
    """The best serial plan with at most one cut, at an articulation point.

    The candidates of Neurosurgeon (Kang et al. 2017), which knew only chains: all on the
    server, all on the device, or the device up to a layer whose one output is all that the
    server needs. None when no candidate keeps the pinned layers. O(points x edges) in numpy.
    """
    graph = problem.graph
    everything = frozenset(range(len(graph.layers)))
    sets = [frozenset[int](), *(graph.ancestors((a,)) for a in articulations(graph)), everything]
    sets = [device for device in dict.fromkeys(sets) if device >= problem.pinned]
    table = set_table(graph, sets)
    sums = set_costs(graph, problem.costs, table)
    device_s, upload_s, server_s, download_s = sums.stages_s
    serial_s = device_s + upload_s + server_s + download_s
    excluded = ~sums.allowed | ((sums.uploads > 1) & table.any(axis=0))
    value = np.where(excluded, np.inf, problem.constraints.value(serial_s, *sums.stages_s))
    best = int(np.argmin(value))
    return cut_at(graph, sets[best]) if value[best] < np.inf else None
