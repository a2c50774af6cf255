"""Enumerate closed sets of layers, all of them or those of a chain, with the cost of each."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offload.graph.model import Graph
from offload.planning.constraints import Constraints
from offload.planning.costs import Costs
from offload.planning.cut import Cut, cut_at
from offload.planning.mincut import results_s

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_STRETCH = 4096


def closed_sets(
    graph: Graph, here: AbstractSet[int] = frozenset(), limit: int = 50_000
) -> Flags | None:
    """Every down-closed set of layers, as a table of layers x sets; None when there are more.

    Layers are decided in topological order. Only those with an undecided reader are carried
    along, so the time is O(sets x layers x width) in numpy and the table is made at the end.

    Args:
        graph: the layers.
        here: layers that are in every set.
        limit: the most sets to list.
    """
    chosen: dict[int, Flags] = {}
    parents: list[npt.NDArray[np.intp]] = []
    count = 1
    last = [max(after, default=layer) for layer, after in enumerate(graph.successors)]
    for layer, before in enumerate(graph.predecessors):
        able = np.ones(count, dtype=np.bool_)
        for needed in before:
            able &= chosen[needed]
        grown = np.flatnonzero(able)
        kept = np.arange(0 if layer in here else count)
        parents.append(np.concatenate([kept, grown]))
        count = len(parents[-1])
        if count > limit:
            return None
        open_layers = [index for index in chosen if last[index] > layer]
        chosen = {index: chosen[index][parents[-1]] for index in open_layers}
        chosen[layer] = np.arange(count) >= len(kept)
    return _table(parents, [len(p) for p in parents], here)


def _table(parents: list[npt.NDArray[np.intp]], counts: list[int], here: AbstractSet[int]) -> Flags:
    """Follow each set back to the first layer: at each, the last rows are those that took it."""
    rows = np.arange(counts[-1] if counts else 1)
    table = np.empty((len(parents), len(rows)), dtype=np.bool_)
    for layer in reversed(range(len(parents))):
        before = 0 if layer in here else (counts[layer - 1] if layer else 1)
        table[layer] = rows >= before
        rows = parents[layer][rows]
    return table


@dataclass(frozen=True)
class SetCosts:
    """What each of many device sets costs, one entry a set.

    Attributes:
        compute_s: device seconds.
        upload_s: seconds of all uploads.
        server_s: server seconds.
        result_s: seconds of all downloads.
        latency_s: a lower bound on the latency with the best order.
        tensors: how many tensors go up.
        allowed: False where a tensor of unknown size would go up.
    """

    compute_s: Floats
    upload_s: Floats
    server_s: Floats
    result_s: Floats
    latency_s: Floats
    tensors: npt.NDArray[np.int64]
    allowed: Flags


def set_costs(graph: Graph, costs: Costs, table: Flags) -> SetCosts:
    """Cost closed device sets, given as a table of layers x sets; O(sets x edges) in numpy.

    The latency is bounded by the device alone; by the shortest lead before an upload plus all
    uploads; by all compute that an upload waits for plus the shortest upload; the last two with
    the server's work and the results' way back behind them.
    """
    sets = table.shape[1]
    upload_s, tensors = np.zeros(sets), np.zeros(sets, dtype=np.int64)
    leave_s, decode_s = np.zeros(sets), np.zeros(sets)
    lead_s, tail_s = np.full(sets, np.inf), np.full(sets, np.inf)
    allowed = np.ones(sets, dtype=np.bool_)
    sends = np.zeros_like(table)
    made_s = ready_s(graph, costs)
    for name, crosses in _crossings(graph, table):
        seconds, maker = costs.upload_s[name], graph.producer.get(name)
        tensors += crosses
        upload_s += crosses * seconds
        leave_s += crosses * costs.leave_s(name)
        decode_s += crosses * costs.decode_s.get(name, 0.0)
        if name in costs.unsized:
            allowed &= ~crosses
        if seconds > 0:
            lead_s[crosses] = np.minimum(lead_s[crosses], 0 if maker is None else made_s[maker])
            tail_s[crosses] = np.minimum(tail_s[crosses], seconds)
            if maker is not None:
                sends[maker] |= crosses
    compute_s = _sum(table, costs.device_s) + leave_s
    server_s, result_s = _sum(~table, costs.server_s), _sum(~table, results_s(graph, costs))
    server_s += decode_s + (table.any(axis=0) & ~table.all(axis=0)) * costs.server_segment_s
    awaited_s = _sum(_awaited(graph, sends), costs.device_s) + leave_s
    uplink_s = np.where(upload_s > 0, np.maximum(lead_s + upload_s, awaited_s + tail_s), 0.0)
    latency_s = np.maximum(compute_s, uplink_s + server_s + result_s)
    return SetCosts(compute_s, upload_s, server_s, result_s, latency_s, tensors, allowed)


def _crossings(graph: Graph, table: Flags) -> Iterator[tuple[str, Flags]]:
    """Each tensor that crosses in some set, and in which."""
    for name, users in graph.consumers.items():
        crosses = np.zeros(table.shape[1], dtype=np.bool_)
        for user in users:
            crosses |= ~table[user]
        if name in graph.producer:
            crosses &= table[graph.producer[name]]
        if crosses.any():
            yield name, crosses


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


def _awaited(graph: Graph, sends: Flags) -> Flags:
    """By layer and set: whether some upload waits for the layer."""
    awaited = sends.copy()
    for layer in reversed(range(len(awaited))):
        for before in graph.predecessors[layer]:
            awaited[before] |= awaited[layer]
    return awaited


def _sum(table: Flags, seconds: tuple[float, ...]) -> Floats:
    """Total seconds of each set; in stretches, so that little is copied."""
    row = np.array(seconds)
    starts = range(0, table.shape[1], _STRETCH)
    sums = [row @ table[:, start : start + _STRETCH] for start in starts]
    return np.concatenate(sums) if sums else np.zeros(0)


LATENCY = Constraints()


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


def neurosurgeon(graph: Graph, costs: Costs, demand: Constraints = LATENCY) -> Cut | None:
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
    sums = set_costs(graph, costs, table)
    serial_s = sums.compute_s + sums.upload_s + sums.server_s + sums.result_s
    stages = (sums.compute_s, sums.upload_s, sums.server_s, sums.result_s)
    several = (sums.tensors > 1) & (table.any(axis=0))
    value = np.where(several | ~sums.allowed, np.inf, demand.value(serial_s, *stages))
    best = int(np.argmin(value))
    return cut_at(graph, sets[best]) if value[best] < np.inf else None
