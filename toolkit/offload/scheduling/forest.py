"""Optimal order of an out-forest, by composite jobs and Johnson's rule."""

import sys
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from offload.scheduling.cut_point_reduction import ReducedInstance, bits

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Nodes = npt.NDArray[np.intp]
_Entry = tuple[float, int]
"""A piece in a heap: its key and its first node, so that of equals an ancestor is first."""

_MANY, _MANY_OF = 100, 200
_LEAST_S = sys.float_info.min


class CompositeJobs:
    """The nodes of a forest, glued to pieces; a piece goes by the number of its first node.

    Attributes:
        above: by piece, the piece that it hangs below; -1 where nothing is above.
        a_s, b_s: by piece, its seconds on the device and on the uplink as one composite job.
        key: by piece, Johnson's rule for it as one number.
        size: by piece, its nodes.
        into: by node, the piece it was glued to; itself where to none.
        place: by node, its place in that piece.
        unsorted: the pieces that may still take what hangs below them, ascending.
        queued: by piece, whether it is sorted and has an upload, so that it may be taken.
    """

    def __init__(self, parent: Nodes, compute_s: Floats, upload_s: Floats) -> None:
        """A node without upload is glued to its only child, whatever that is glued to."""
        nodes = np.arange(len(parent))
        children = np.bincount(parent + 1, minlength=len(nodes) + 1)[1:]
        first = (parent < 0) | (children[parent] != 1) | (upload_s[parent] != 0)
        self.into, self.place = _followed(np.where(first, nodes, parent), np.where(first, 0, 1))
        last = nodes.copy()
        last[self.into] = nodes  # of all that are written to one place, the last stays
        self.a_s: Floats = np.bincount(self.into, compute_s, len(nodes)).astype(np.float64)
        self.b_s = upload_s[last] + 0.0
        self.key = _keys(self.a_s, self.b_s)
        self.size = np.bincount(self.into, minlength=len(nodes))
        self.above = np.append(self.into, -1)[parent]
        self.unsorted = np.nonzero(first & (children[last] > 0))[0]
        self.queued = first & (children[last] == 0) & (self.b_s > 0)

    def order(self) -> Nodes:
        """The nodes, piece by piece in Johnson's order, ties by number."""
        piece, place = _followed(self.into, self.place)
        nodes = np.arange(len(piece))
        pieces = np.nonzero(piece == nodes)[0]
        pieces = pieces[np.argsort(self.key[pieces], kind="stable")]
        start = np.empty_like(piece)
        start[pieces] = np.cumsum(self.size[pieces]) - self.size[pieces]
        order = np.empty_like(piece)
        order[start[piece] + place] = nodes
        return order

    def glue_many(self) -> None:
        """In rounds: every piece with only sorted ones below takes its head, or is sorted.

        O(n) a round, of which there are at most 2 * `_MANY_OF`: each settles its share of nodes.
        """
        many = max(_MANY, len(self.key) // _MANY_OF)
        while len(self.unsorted) >= many <= len(ready := self._ready()):
            below = np.nonzero(self.queued & self._flags(ready)[self.above])[0]
            heads = self._heads(below)[ready]
            takes = (heads >= 0) & (self.key[heads] < self.key[ready])
            self._glue(ready[takes], heads[takes])
            done = self._flags(ready[~takes])
            freed = below[done[self.above[below]]]
            self.above[freed] = self.above[self.above[freed]]
            self.queued |= done[:-1] & (self.b_s > 0)
            self.unsorted = self.unsorted[~done[self.unsorted]]

    def _flags(self, pieces: Nodes) -> Flags:
        """By piece, whether it is one of these; what is above a root never is."""
        flags = np.zeros(len(self.key) + 1, dtype=np.bool_)
        flags[pieces] = True
        flags[-1] = False
        return flags

    def _ready(self) -> Nodes:
        """The unsorted pieces below which none is unsorted."""
        ready: Nodes = self.unsorted[~self._flags(self.above[self.unsorted])[self.unsorted]]
        return ready

    def _heads(self, below: Nodes) -> Nodes:
        """By piece, the first by Johnson's rule of those of these that hang below it, or -1."""
        above, key = self.above[below], self.key[below]
        least = np.full(len(self.key), np.inf)
        np.minimum.at(least, above, key)
        first = below[key == least[above]][::-1]
        heads = np.full(len(self.key), -1)
        heads[self.above[first]] = first  # of all that are written to one place, the last stays
        return heads

    def _glue(self, piece: Nodes, after: Nodes) -> None:
        a, b, next_a, next_b = self.a_s[piece], self.b_s[piece], self.a_s[after], self.b_s[after]
        hidden = next_a < b
        a, b = np.where(hidden, a, a + next_a - b), np.where(hidden, next_b + b - next_a, next_b)
        self.a_s[piece], self.b_s[piece], self.key[piece] = a, b, _keys(a, b)
        self.into[after], self.place[after] = piece, self.size[piece]
        self.size[piece] += self.size[after]
        self.queued[after] = False

    def glue_rest(self) -> None:
        """One after the other, from the last, so that all below are sorted by then.

        Heaps are melded small into large: O(n log^2 n) worst case, near linear in practice.
        """
        heaps, pieces = self._heaps(), self.unsorted.tolist()
        a_s, b_s, keys = self.a_s.tolist(), self.b_s.tolist(), self.key.tolist()
        sizes, above = self.size.tolist(), self.above.tolist()
        glued: list[tuple[int, int, int]] = []
        for piece in reversed(pieces):
            heap = heaps.pop(piece)
            a, b, key, size = a_s[piece], b_s[piece], keys[piece], sizes[piece]
            while heap and heap[0][0] < key:
                after = heappop(heap)[1]
                next_a, next_b = a_s[after], b_s[after]
                a, b = (a, next_b + b - next_a) if next_a < b else (a + next_a - b, next_b)
                key = _key(a, b)
                glued.append((after, piece, size))
                size += sizes[after]
            a_s[piece], b_s[piece], keys[piece], sizes[piece] = a, b, key, size
            if b and above[piece] >= 0:
                heappush(heap, (key, piece))
                heaps[above[piece]] = _melded(heaps[above[piece]], heap)
        self.key[pieces] = [keys[piece] for piece in pieces]
        self.size[pieces] = [sizes[piece] for piece in pieces]
        taken, into, place = np.array(glued, dtype=np.intp).reshape(-1, 3).T
        self.into[taken], self.place[taken] = into, place

    def _heaps(self) -> dict[int, list[_Entry]]:
        """By unsorted piece, the sorted ones below it: a sorted list is a heap."""
        below = np.nonzero(self.queued & (self.above >= 0))[0]
        below = below[np.lexsort((self.key[below], self.above[below]))]
        entries = list(zip(self.key[below].tolist(), below.tolist(), strict=True))
        above = self.above[below]
        pieces: list[int] = self.unsorted.tolist()
        starts: list[int] = np.asarray(above.searchsorted(self.unsorted)).tolist()
        stops: list[int] = np.asarray(above.searchsorted(self.unsorted, side="right")).tolist()
        places = zip(pieces, starts, stops, strict=True)
        return {piece: entries[start:stop] for piece, start, stop in places}


def _followed(into: Nodes, place: Nodes) -> tuple[Nodes, Nodes]:
    """The last of what each node is in, in what that is in, and so on, and its place there."""
    while ((further := into[into]) != into).any():
        into, place = further, place + place[into]
    return into, place


def _keys(a_s: Floats, b_s: Floats) -> Floats:
    """Johnson's rule as one number: by a where a < b, then by falling b; no upload goes last."""
    late = np.where(b_s > 0, 1.0 / np.maximum(b_s, _LEAST_S), np.inf)
    keys: Floats = np.where(a_s < b_s, -1.0 / np.maximum(a_s, _LEAST_S), late)
    return keys


def _key(a_s: float, b_s: float) -> float:
    """The same for one piece that has an upload."""
    return -1.0 / max(a_s, _LEAST_S) if a_s < b_s else 1.0 / max(b_s, _LEAST_S)


def _melded(heap: list[_Entry], other: list[_Entry]) -> list[_Entry]:
    small, large = (heap, other) if len(heap) < len(other) else (other, heap)
    if 3 * len(small) < len(large):
        for entry in small:
            heappush(large, entry)
    elif small:
        large += small
        heapify(large)
    return large


def forest_order(parent: Nodes, compute_s: Floats, upload_s: Floats) -> Nodes:
    """Node numbers in an optimal order; ties go to the smaller number.

    `parent[v]` is less than v, and -1 for a root. O(n log^2 n) worst case, near linear in
    practice.
    """
    pieces = CompositeJobs(parent, compute_s, upload_s)
    pieces.glue_many()
    pieces.glue_rest()
    return pieces.order()


def laminar_order(reduced: ReducedInstance) -> list[int] | None:
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
    bit_of = {mask: bit for bit, mask in enumerate(reduced.signature)}
    compute_s = np.array([reduced.blocks[mask] for mask in masks])
    upload_s = [reduced.upload_s[bit_of[mask]] if mask in bit_of else 0.0 for mask in masks]
    order = forest_order(np.array(parent, dtype=np.intp), compute_s, np.array(upload_s))
    return [bit_of[masks[node]] for node in order.tolist() if masks[node] in bit_of]


Key = tuple[int, float]


class Pair(NamedTuple):
    """A job of two stages: `a` seconds before its `b` seconds of upload may begin.

    For a sequence of jobs, a = Cmax - sum g and b = Cmax - sum f (Kurisu 1976): placed in any
    schedule as one piece, it acts exactly as a single job (a, b).
    """

    a: float
    b: float

    @property
    def key(self) -> Key:
        """Sorting key of Johnson's rule (1954): uploads heavier than compute first."""
        return (0, self.a) if self.a < self.b else (1, -self.b)

    def then(self, after: "Pair") -> "Pair":
        """The job that acts as this one immediately followed by another; associative."""
        return Pair(
            self.a + max(0.0, after.a - self.b),
            after.b + max(0.0, self.b - after.a),
        )
