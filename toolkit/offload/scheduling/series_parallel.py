"""Optimal order of series-parallel instances, uploads anywhere.

Monma and Sidney (1979), Sidney (1979): compose sorted lists of composite jobs. Side by side they
merge by Johnson's rule; one after the other, the seam is glued until the list is sorted again.
"""

from collections.abc import Callable, Sequence
from heapq import merge
from typing import NamedTuple

from offload.scheduling.cut_point_reduction import ReducedInstance, bits
from offload.scheduling.forest import Key, Pair

MOST_BLOCKS = 300


class _Piece(NamedTuple):
    pair: Pair
    nodes: tuple[int, ...]

    @property
    def key(self) -> Key:
        return self.pair.key

    def then(self, after: "_Piece") -> "_Piece":
        return _Piece(self.pair.then(after.pair), self.nodes + after.nodes)


def series_parallel_order(reduced: ReducedInstance) -> list[int] | None:
    """Optimal order of the cut points when inclusion of their blocks has no N in it, else None.

    A block that contains another comes before it. Splits into components of the comparability
    graph (parallel) and of its complement (series), O(B^2) mask operations for B blocks at each
    level; not tried above `MOST_BLOCKS`.
    """
    if len(reduced.blocks) > MOST_BLOCKS:
        return None
    masks = sorted(reduced.blocks, key=lambda mask: (-mask.bit_count(), mask & -mask, mask))
    bit_of = {mask: bit for bit, mask in enumerate(reduced.signature)}
    leaves = [
        _Piece(
            Pair(reduced.blocks[mask], reduced.upload_s[bit_of[mask]] if mask in bit_of else 0.0),
            (node,),
        )
        for node, mask in enumerate(masks)
    ]
    pieces = _pieces((1 << len(masks)) - 1, _comparable(masks), leaves)
    if pieces is None:
        return None
    order = [masks[node] for piece in pieces for node in piece.nodes]
    return [bit_of[mask] for mask in order if mask in bit_of]


def _comparable(masks: Sequence[int]) -> list[int]:
    """For each block, the mask of blocks that contain it or that it contains."""
    found = [0] * len(masks)
    for a, outer in enumerate(masks):
        for b in range(a + 1, len(masks)):
            if not masks[b] & ~outer:
                found[a] |= 1 << b
                found[b] |= 1 << a
    return found


def _pieces(nodes: int, comparable: Sequence[int], leaves: Sequence[_Piece]) -> list[_Piece] | None:
    """The sorted list of a set of nodes, or None where an N is met."""
    if nodes & (nodes - 1) == 0:
        return [leaves[nodes.bit_length() - 1]]
    parts = _components(nodes, lambda node: comparable[node])
    in_series = len(parts) == 1
    if in_series:
        parts = _components(nodes, lambda node: ~comparable[node])
        if len(parts) == 1:
            return None
    lists: list[list[_Piece]] = []
    for part in parts:
        pieces = _pieces(part, comparable, leaves)
        if pieces is None:
            return None
        lists.append(pieces)
    return _in_series(lists) if in_series else list(merge(*lists, key=lambda piece: piece.key))


def _components(nodes: int, neighbours: Callable[[int], int]) -> list[int]:
    """Connected components as masks, by their smallest node: for a series, from first to last."""
    parts = []
    while nodes:
        part = pending = nodes & -nodes
        while pending:
            found = 0
            for node in bits(pending):
                found |= neighbours(node)
            pending = found & nodes & ~part
            part |= pending
        parts.append(part)
        nodes &= ~part
    return parts


def _in_series(lists: Sequence[list[_Piece]]) -> list[_Piece]:
    """One list after the other: what comes later but would go first is glued to what is before."""
    joined: list[_Piece] = []
    for pieces in lists:
        rest = list(reversed(pieces))
        while joined and rest and joined[-1].key >= rest[-1].key:
            glued = joined.pop().then(rest.pop())
            while (joined and joined[-1].key >= glued.key) or (rest and glued.key >= rest[-1].key):
                if joined and joined[-1].key >= glued.key:
                    glued = joined.pop().then(glued)
                else:
                    glued = glued.then(rest.pop())
            joined.append(glued)
        joined += reversed(rest)
    return joined
