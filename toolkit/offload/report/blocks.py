"""Fold the layers of a graph into blocks that a person can look at."""

from collections.abc import Collection, Hashable, Sequence
from itertools import groupby

import networkx as nx

from offload.graph.model import Graph

MOST = 450
"""The size of a picture that fills a page: three for a block, one for a row that an edge passes."""

_START, _END = -1, -2


def fold(
    graph: Graph, keys: Sequence[Hashable], apart: Collection[str] = (), most: int = MOST
) -> list[tuple[int, ...]]:
    """Blocks of layers, each in order of execution: together, they are all layers once.

    A chain of layers with the same key is one block. If the picture would still be too large,
    stages are folded. A stage is a layer that every path passes, and all since the layer before
    it that every path passes; it is one block where the key is the same. If that is not enough,
    runs of such stages are folded, longer and longer ones. A run ends where the height and width
    of the tensors change.
    O(layers * log layers).

    Args:
        graph: the layers.
        keys: of each layer, such as the sides on which plans run it; only layers with the same
            key are folded.
        apart: tensors that stay visible between two blocks.
        most: the size to stay below if keys and graph allow it, as `MOST` counts it.
    """
    visible = {graph.producer[name] for name in (*apart, *graph.outputs) if name in graph.producer}
    parent = list(range(len(graph.layers)))

    def root(layer: int) -> int:
        while parent[layer] != layer:
            parent[layer] = parent[parent[layer]]
            layer = parent[layer]
        return layer

    for layer in range(len(graph.layers)):
        after = graph.successors[layer]
        if len(after) == 1 and layer not in visible:
            (other,) = after
            if len(graph.predecessors[other]) == 1 and keys[layer] == keys[other]:
                parent[root(other)] = root(layer)
    blocks = _blocks([root(layer) for layer in range(len(graph.layers))])
    folded, run = blocks, 1
    while _size(_between(graph, folded)) > most and run <= len(graph.layers):
        folded = _fold_stages(graph, keys, blocks, run)
        run *= 2
    return folded


def _blocks(group_of: Sequence[int]) -> list[tuple[int, ...]]:
    """Layers with the same group as blocks, in order of their first layer."""
    blocks: dict[int, list[int]] = {}
    for layer, group in enumerate(group_of):
        blocks.setdefault(group, []).append(layer)
    return [tuple(block) for block in blocks.values()]


def _between(graph: Graph, blocks: Sequence[Sequence[int]]) -> "nx.DiGraph[int]":
    """The edges between blocks, which are numbered."""
    block_of = {layer: number for number, block in enumerate(blocks) for layer in block}
    net: nx.DiGraph[int] = nx.DiGraph()
    net.add_nodes_from(range(len(blocks)))
    for layer, after in enumerate(graph.successors):
        net.add_edges_from((block_of[layer], block_of[other]) for other in after)
    net.remove_edges_from([(block, block) for block in net])
    return net


def _size(net: "nx.DiGraph[int]") -> int:
    """The size of the picture, as `MOST` counts it."""
    row = {block: y for y, row in enumerate(nx.topological_generations(net)) for block in row}
    return 3 * len(net) + sum(row[b] - row[a] - 1 for a, b in net.edges)


def _fold_stages(
    graph: Graph, keys: Sequence[Hashable], blocks: list[tuple[int, ...]], run: int
) -> list[tuple[int, ...]]:
    """Fold `run` stages at a time where the key is the same, and height and width."""

    def kind(stage: Sequence[int]) -> Hashable:
        """Key, height and width of what a stage returns; None: it must stay as it is."""
        layers = [layer for block in stage for layer in blocks[block]]
        if len({keys[layer] for layer in layers}) != 1:
            return None
        returned = graph.layers[max(layers)].outputs
        tensor = graph.tensors[returned[0]] if returned else None
        return keys[layers[0]], (tensor.shape or ())[2:] if tensor else ()

    group_of: dict[int, int] = {}
    for same, members in groupby(_stages(_between(graph, blocks)), key=kind):
        stages = list(members)
        for number, stage in enumerate(stages):
            leader = stages[number - number % run][0]
            group_of |= {block: block if same is None else leader for block in stage}
    block_of = {layer: number for number, block in enumerate(blocks) for layer in block}
    return _blocks([group_of[block_of[layer]] for layer in range(len(graph.layers))])


def _stages(net: "nx.DiGraph[int]") -> list[list[int]]:
    """Blocks in stages: a block that every path passes, and all that only leads to it."""
    closed = net.reverse()
    closed.add_edges_from((block, _START) for block in net if not net.in_degree(block))
    closed.add_edges_from((_END, block) for block in net if not net.out_degree(block))
    after = nx.immediate_dominators(closed, _END)  # by block: the next one that its paths share
    passed, waist = {_START}, _START
    while waist != _END:
        waist = after[waist]
        passed.add(waist)
    stages: dict[int, list[int]] = {}
    for block in sorted(net):
        end = block
        while end not in passed:
            end = after[end]
        stages.setdefault(end, []).append(block)
    order = {block: place for place, block in enumerate(nx.topological_sort(closed.reverse()))}
    return [stages[waist] for waist in sorted(stages, key=order.__getitem__)]
