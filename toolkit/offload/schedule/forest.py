"""Optimal order of an out-forest, uploads allowed anywhere.

Kurisu (1976) and Sidney (1979) for two machines in flow with tree precedence; Monma and Sidney
(1979) for the general statement: sorted lists of composite jobs merge by Johnson's rule, and a
root is glued to the head of its list while that head should go before it.
"""

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from offload.schedule.reduce import Reduced, bits

Floats = npt.NDArray[np.float64]
Nodes = npt.NDArray[np.intp]
_Entry = tuple[float, int]
"""A composite job in a heap: its key and its first node, so that of equals an ancestor is first."""
_FEW = 3


def forest_order(parent: Nodes, compute_s: Floats, upload_s: Floats) -> list[int]:
    """Node numbers in an optimal order; ties go to the smaller number.

    `parent[v]` is less than v, and -1 for a root. Heaps are melded small into large:
    O(n log^2 n) worst case, near linear in practice.
    """
    chain_of, firsts = _chains(parent, upload_s)
    lasts = firsts.copy()  # of what is uploaded in a chain, only its end is
    lasts[chain_of] = np.arange(len(parent))
    above = np.append(chain_of, -1)[parent[firsts]]
    chain_s = np.bincount(chain_of, weights=compute_s).astype(np.float64)
    order = _composites_order(above, chain_s, upload_s[lasts] + 0.0)
    rank = np.empty_like(firsts)
    rank[order] = np.arange(len(order))
    found: list[int] = np.argsort(rank[chain_of], kind="stable").tolist()
    return found


def _chains(parent: Nodes, upload_s: Floats) -> tuple[Nodes, Nodes]:
    """The number of each node's chain, and the first node of each chain.

    A node without upload goes just before its only child in some optimal order, whatever else
    that child goes with: they are one chain. Found by doubling.
    """
    nodes = np.arange(len(parent))
    children = np.bincount(parent + 1, minlength=len(parent) + 1)[1:]
    glued = (children == 1) & (upload_s == 0)
    first = np.where((parent >= 0) & glued[parent], parent, nodes)
    while not np.array_equal(first, further := first[first]):
        first = further
    firsts = np.nonzero(first == nodes)[0]
    number = np.empty_like(nodes)
    number[firsts] = np.arange(len(firsts))
    return number[first], firsts


def _composites_order(parent: Nodes, compute_s: Floats, upload_s: Floats) -> list[int]:
    """What the module says, from the last node to the first."""
    keys, leaves = _keys(compute_s, upload_s), _Leaves(parent, upload_s > 0)
    leaves.sort(keys)
    a_s, b_s, key_of, above = compute_s.tolist(), upload_s.tolist(), keys.tolist(), parent.tolist()
    last, following = list(range(len(above))), [-1] * len(above)
    heaps: dict[int, list[_Entry]] = {}
    unsent: list[int] = []  # nothing that needs these is uploaded: they can go last
    for node in leaves.others:
        heap = _melded(heaps.pop(node, None), leaves.below(node))
        a, b, key, end = a_s[node], b_s[node], key_of[node], last[node]
        if not heap and not b:
            unsent.append(node)
            continue
        while heap and heap[0][0] < key:
            after = heappop(heap)[1]
            next_a, next_b = a_s[after], b_s[after]
            a, b = (a, next_b + b - next_a) if next_a < b else (a + next_a - b, next_b)
            key = (-1.0 / a if a else -math.inf) if a < b else (1.0 / b if b else math.inf)
            following[end] = after
            end = last[after]
        a_s[node], b_s[node], last[node] = a, b, end
        heappush(heap, (key, node))
        heaps[above[node]] = _melded(heaps.get(above[node]), heap)
    entries = sorted(heaps.get(-1, []) + leaves.below(-1))
    return _unrolled([node for _, node in entries] + unsent[::-1], following)


def _keys(a_s: Floats, b_s: Floats) -> Floats:
    """Johnson's rule as one number: by a where a < b, then by falling b."""
    with np.errstate(divide="ignore", over="ignore"):
        keys: Floats = np.where(a_s < b_s, -1.0 / a_s, 1.0 / b_s)
    return keys


class _Leaves:
    """The leaves that upload something, by parent, as sorted lists: a sorted list is a heap.

    Attributes:
        others: all other nodes, from the last to the first.
    """

    def __init__(self, parent: Nodes, uploads: npt.NDArray[np.bool_]) -> None:
        is_leaf = uploads.copy()
        is_leaf[parent[parent >= 0]] = False
        self._parent, self._leaves = parent, np.nonzero(is_leaf)[0]
        self.others: list[int] = np.nonzero(~is_leaf)[0][::-1].tolist()

    def sort(self, keys: Floats) -> None:
        parents = self._parent[self._leaves]
        order = np.lexsort((keys[self._leaves], parents))
        leaves = self._leaves[order]
        self._entries = list(zip(keys[leaves].tolist(), leaves.tolist(), strict=True))
        place = np.searchsorted(parents[order], np.arange(-1, len(keys) + 1))
        self._start: list[int] = place.tolist()

    def below(self, node: int) -> list[_Entry]:
        """The sorted list of a node's leaves; of -1, of the roots."""
        return self._entries[self._start[node + 1] : self._start[node + 2]]


def _melded(heap: list[_Entry] | None, other: list[_Entry]) -> list[_Entry]:
    if not heap:
        return other
    small, large = (heap, other) if len(heap) < len(other) else (other, heap)
    if len(small) * _FEW < len(large):
        for entry in small:
            heappush(large, entry)
    elif small:
        large += small
        heapify(large)
    return large


def _unrolled(nodes: Sequence[int], following: Sequence[int]) -> list[int]:
    """Composite jobs, given by their first nodes, as all their nodes."""
    order: list[int] = []
    for node in nodes:
        while node >= 0:
            order.append(node)
            node = following[node]
    return order


def laminar_order(reduced: Reduced) -> list[int] | None:
    """Optimal order of the cut points when any two signatures are nested or disjoint, else None.

    The blocks then form an out-forest under inclusion, even where the graph itself is no tree.
    """
    owner = [-1] * len(reduced.cuts)
    masks = sorted(reduced.blocks, key=lambda mask: (-mask.bit_count(), mask & -mask))
    parent: list[int] = []
    for node, mask in enumerate(masks):
        members = list(bits(mask))
        above = owner[members[0]]
        if any(owner[bit] != above for bit in members):
            return None
        for bit in members:
            owner[bit] = node
        parent.append(above)
    bit_of = {reduced.signature[job]: bit for bit, job in enumerate(reduced.cuts)}
    compute_s = np.array([reduced.blocks[mask] for mask in masks])
    upload_s = [reduced.upload_s[bit_of[mask]] if mask in bit_of else 0.0 for mask in masks]
    order = forest_order(np.array(parent, dtype=np.intp), compute_s, np.array(upload_s))
    return [bit_of[masks[node]] for node in order if masks[node] in bit_of]
