"""Optimal order of series-parallel instances, uploads anywhere.

Monma and Sidney (1979), Sidney (1979): compose sorted lists of composite jobs. Parallel lists are
merged by Johnson's rule. Lists in series are concatenated, and jobs at the seam are combined until
the list is sorted again.
"""

from collections.abc import Callable, Sequence
from heapq import merge

from offload.scheduling.cut_point_reduction import ReducedInstance, bits
from offload.scheduling.forest import CompositeJob

MAX_BLOCKS = 300


def series_parallel_order(reduced: ReducedInstance) -> list[int] | None:
    """Optimal order of the cut points if inclusion of their blocks contains no N, else None.

    A block that contains another precedes it. Splits into components of the comparability graph
    (parallel) and of its complement (series), O(B^2) mask operations for B blocks at each level;
    not tried above `MAX_BLOCKS`.
    """
    if len(reduced.blocks) > MAX_BLOCKS:
        return None
    masks = sorted(reduced.blocks, key=lambda mask: (-mask.bit_count(), mask & -mask, mask))
    bit_of = {mask: bit for bit, mask in enumerate(reduced.signature)}
    leaves: list[CompositeJob] = []
    for node, mask in enumerate(masks):
        upload_s = reduced.upload_s[bit_of[mask]] if mask in bit_of else 0.0
        leaves.append(CompositeJob(reduced.blocks[mask], upload_s, (node,)))
    comparable = [0] * len(masks)  # by block, the blocks that contain it or that it contains
    for a, outer in enumerate(masks):
        for b in range(a + 1, len(masks)):
            if not masks[b] & ~outer:
                comparable[a] |= 1 << b
                comparable[b] |= 1 << a
    composites = _compose((1 << len(masks)) - 1, comparable, leaves)
    if composites is None:
        return None
    order = [masks[node] for composite in composites for node in composite.jobs]
    return [bit_of[mask] for mask in order if mask in bit_of]


def _compose(
    nodes: int, comparable: Sequence[int], leaves: Sequence[CompositeJob]
) -> list[CompositeJob] | None:
    """The sorted composite jobs of a set of nodes, or None if it contains an N."""
    if nodes & (nodes - 1) == 0:
        return [leaves[nodes.bit_length() - 1]]
    parts = _components(nodes, lambda node: comparable[node])
    in_series = len(parts) == 1
    if in_series:
        parts = _components(nodes, lambda node: ~comparable[node])
        if len(parts) == 1:
            return None
    lists: list[list[CompositeJob]] = []
    for part in parts:
        composites = _compose(part, comparable, leaves)
        if composites is None:
            return None
        lists.append(composites)
    if in_series:
        return _concatenate(lists)
    return list(merge(*lists, key=lambda composite: composite.key))


def _components(nodes: int, neighbours: Callable[[int], int]) -> list[int]:
    """Connected components as masks, by smallest node; for a series this is the order."""
    parts = []
    while nodes:
        part = pending = nodes & -nodes
        while pending:
            reached = 0
            for node in bits(pending):
                reached |= neighbours(node)
            pending = reached & nodes & ~part
            part |= pending
        parts.append(part)
        nodes &= ~part
    return parts


def _concatenate(lists: Sequence[list[CompositeJob]]) -> list[CompositeJob]:
    """Lists in series as one sorted list: a job that sorts before its predecessor is appended."""
    joined: list[CompositeJob] = []
    for composites in lists:
        later = composites[::-1]
        while joined and later and joined[-1].key >= later[-1].key:
            seam = joined.pop().then(later.pop())
            while (joined and joined[-1].key >= seam.key) or (later and seam.key >= later[-1].key):
                if joined and joined[-1].key >= seam.key:
                    seam = joined.pop().then(seam)
                else:
                    seam = seam.then(later.pop())
            joined.append(seam)
        joined += later[::-1]
    return joined
