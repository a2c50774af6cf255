"""Exact algorithms for forests, for series-parallel instances, and for few cut points."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush, merge
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from offload.scheduling.cut_point_reduction import ReducedInstance, bits

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Nodes = npt.NDArray[np.intp]
Masks = npt.NDArray[np.intp]

_MIN_ROUND, _ROUNDS = 100, 200
_MIN_S = sys.float_info.min
MAX_SERIES_PARALLEL_BLOCKS = 300


class CompositeJob(NamedTuple):
    """A sequence of jobs as one job of two stages: `a` seconds of compute, `b` of upload.

    For a sequence, a = Cmax - sum g and b = Cmax - sum f (Kurisu 1976): in any schedule that keeps
    the sequence together, it acts exactly as a single job (a, b).
    """

    a: float
    b: float
    jobs: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[int, float]:
        """Sorting key of Johnson's rule (1954): jobs with more upload than compute first."""
        return (0, self.a) if self.a < self.b else (1, -self.b)

    def then(self, after: "CompositeJob") -> "CompositeJob":
        """This job immediately followed by another, as one job; associative."""
        a = self.a + max(0.0, after.a - self.b)
        b = after.b + max(0.0, self.b - after.a)
        return CompositeJob(a, b, self.jobs + after.jobs)


class CompositeForest:
    """A forest whose nodes are combined into composite jobs, stored as arrays.

    A composite job is identified by its first node. It is sorted when its key is at most the keys
    of all composite jobs below it, so that it never has to be combined with one of them.

    Attributes:
        above: by composite job, the one that must precede it; -1 for a root.
        a_s, b_s: by composite job, its seconds of compute and of upload.
        key: by composite job, Johnson's rule as one number.
        size: by composite job, the number of its nodes.
        into: by node, the composite job that it was appended to; itself if none.
        position: by node, its position in that composite job.
        unsorted: composite jobs that are not sorted yet, ascending.
        available: by composite job, whether it is sorted and has an upload, so that the one above
            may be combined with it.
    """

    def __init__(self, parent: Nodes, compute_s: Floats, upload_s: Floats) -> None:
        """Start by combining each node without upload with its only child, along whole chains."""
        nodes = np.arange(len(parent))
        children = np.bincount(parent + 1, minlength=len(nodes) + 1)[1:]
        first = (parent < 0) | (children[parent] != 1) | (upload_s[parent] != 0)
        self.into, self.position = _follow(np.where(first, nodes, parent), np.where(first, 0, 1))
        last = nodes.copy()
        last[self.into] = nodes  # with repeated indexes numpy stores the last value
        self.a_s: Floats = np.bincount(self.into, compute_s, len(nodes)).astype(np.float64)
        self.b_s = upload_s[last] + 0.0
        self.key = _keys(self.a_s, self.b_s)
        self.size = np.bincount(self.into, minlength=len(nodes))
        self.above = np.append(self.into, -1)[parent]
        self.unsorted = np.nonzero(first & (children[last] > 0))[0]
        self.available = first & (children[last] == 0) & (self.b_s > 0)

    def order(self) -> Nodes:
        """The nodes, one composite job after another in Johnson's order, ties by number."""
        job, position = _follow(self.into, self.position)
        nodes = np.arange(len(job))
        jobs = np.nonzero(job == nodes)[0]
        jobs = jobs[np.argsort(self.key[jobs], kind="stable")]
        start = np.empty_like(job)
        start[jobs] = np.cumsum(self.size[jobs]) - self.size[jobs]
        order = np.empty_like(job)
        order[start[job] + position] = nodes
        return order

    def combine_in_rounds(self) -> None:
        """Combine many composite jobs at once while a round has enough of them.

        In a round, each unsorted job with only sorted jobs below it is combined with the first of
        them by Johnson's rule, or becomes sorted. A round takes O(n); there are at most
        2 * `_ROUNDS` of them, because each settles a fixed share of the nodes.
        """
        minimum = max(_MIN_ROUND, len(self.key) // _ROUNDS)
        while len(self.unsorted) >= minimum:
            waiting = self._flags(self.above[self.unsorted])
            ready = self.unsorted[~waiting[self.unsorted]]
            if len(ready) < minimum:
                return
            below = np.nonzero(self.available & self._flags(ready)[self.above])[0]
            above, key = self.above[below], self.key[below]
            lowest = np.full(len(self.key), np.inf)
            np.minimum.at(lowest, above, key)
            first = below[key == lowest[above]][::-1]
            heads = np.full(len(self.key), -1)
            heads[self.above[first]] = first  # ties: numpy stores the last, the smallest number
            head = heads[ready]
            combined = (head >= 0) & (self.key[head] < self.key[ready])
            self._combine(ready[combined], head[combined])
            is_sorted = self._flags(ready[~combined])
            freed = below[is_sorted[self.above[below]]]
            self.above[freed] = self.above[self.above[freed]]
            self.available |= is_sorted[:-1] & (self.b_s > 0)
            self.unsorted = self.unsorted[~is_sorted[self.unsorted]]

    def _flags(self, jobs: Nodes) -> Flags:
        """By composite job, whether it is one of these; False at -1, above the roots."""
        flags = np.zeros(len(self.key) + 1, dtype=np.bool_)
        flags[jobs] = True
        flags[-1] = False
        return flags

    def _combine(self, job: Nodes, after: Nodes) -> None:
        a, b, next_a, next_b = self.a_s[job], self.b_s[job], self.a_s[after], self.b_s[after]
        hidden = next_a < b
        a, b = np.where(hidden, a, a + next_a - b), np.where(hidden, next_b + b - next_a, next_b)
        self.a_s[job], self.b_s[job], self.key[job] = a, b, _keys(a, b)
        self.into[after], self.position[after] = job, self.size[job]
        self.size[job] += self.size[after]
        self.available[after] = False

    def combine_rest(self) -> None:
        """Combine the other composite jobs one at a time, from the last, so children come first.

        Heaps are merged small into large: O(n log^2 n) worst case, near linear in practice.
        """
        # By unsorted job, a heap of (key, job) of the available jobs below it. Equal keys are
        # taken by number, so that an ancestor comes first. A sorted list is a heap.
        below = np.nonzero(self.available & (self.above >= 0))[0]
        below = below[np.lexsort((self.key[below], self.above[below]))]
        entries = list(zip(self.key[below].tolist(), below.tolist(), strict=True))
        starts = np.asarray(self.above[below].searchsorted(self.unsorted)).tolist()
        stops = np.asarray(self.above[below].searchsorted(self.unsorted, side="right")).tolist()
        unsorted: list[int] = self.unsorted.tolist()
        ranges = zip(unsorted, starts, stops, strict=True)
        heaps = {job: entries[start:stop] for job, start, stop in ranges}

        a_s, b_s, keys = self.a_s.tolist(), self.b_s.tolist(), self.key.tolist()
        sizes, above = self.size.tolist(), self.above.tolist()
        combined: list[tuple[int, int, int]] = []
        for job in reversed(unsorted):
            heap = heaps.pop(job)
            a, b, key, size = a_s[job], b_s[job], keys[job], sizes[job]
            while heap and heap[0][0] < key:
                after = heappop(heap)[1]
                next_a, next_b = a_s[after], b_s[after]
                a, b = (a, next_b + b - next_a) if next_a < b else (a + next_a - b, next_b)
                key = -1.0 / max(a, _MIN_S) if a < b else 1.0 / max(b, _MIN_S)
                combined.append((after, job, size))
                size += sizes[after]
            a_s[job], b_s[job], keys[job], sizes[job] = a, b, key, size
            if b and above[job] >= 0:
                heappush(heap, (key, job))
                heaps[above[job]] = _merge_heaps(heaps[above[job]], heap)
        self.key[unsorted] = [keys[job] for job in unsorted]
        self.size[unsorted] = [sizes[job] for job in unsorted]
        appended, into, position = np.array(combined, dtype=np.intp).reshape(-1, 3).T
        self.into[appended], self.position[appended] = into, position


def _follow(into: Nodes, position: Nodes) -> tuple[Nodes, Nodes]:
    """By node, the end of its chain of `into` and its position there; pointer doubling."""
    while ((further := into[into]) != into).any():
        into, position = further, position + position[into]
    return into, position


def _keys(a_s: Floats, b_s: Floats) -> Floats:
    """Johnson's rule as one number: ascending a where a < b, then descending b, b = 0 last."""
    late = np.where(b_s > 0, 1.0 / np.maximum(b_s, _MIN_S), np.inf)
    keys: Floats = np.where(a_s < b_s, -1.0 / np.maximum(a_s, _MIN_S), late)
    return keys


def _merge_heaps(
    heap: list[tuple[float, int]], other: list[tuple[float, int]]
) -> list[tuple[float, int]]:
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
    forest = CompositeForest(parent, compute_s, upload_s)
    forest.combine_in_rounds()
    forest.combine_rest()
    return forest.order()


def laminar_order(reduced: ReducedInstance) -> list[int] | None:
    """Optimal order of the cut points if any two signatures are nested or disjoint, else None.

    The blocks then form an out-forest under inclusion, even if the graph itself is not a tree.
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


def series_parallel_order(reduced: ReducedInstance) -> list[int] | None:
    """Optimal order of the cut points if inclusion of their blocks contains no N, else None.

    Uploads may be anywhere. Monma and Sidney (1979), Sidney (1979): compose sorted lists of
    composite jobs. Parallel lists are merged by Johnson's rule. Lists in series are concatenated,
    and jobs at the seam are combined until the list is sorted again.

    A block that contains another precedes it. Splits into components of the comparability graph
    (parallel) and of its complement (series), O(B^2) mask operations for B blocks at each level;
    not tried above `MAX_SERIES_PARALLEL_BLOCKS`.
    """
    if len(reduced.blocks) > MAX_SERIES_PARALLEL_BLOCKS:
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


def subset_order(
    upload_s: Sequence[float], blocks: Mapping[int, float], need: Sequence[int]
) -> tuple[list[int], float]:
    """Optimal order of few cut points, the smallest by bit, and its highest peak in seconds.

    Dynamic programming over closed sets. The makespan is G + max_k (F(x_1..x_k) -
    G(x_1..x_{k-1})): minimise the highest peak. With Y the set of cut points still to come,
    R(Y) = min_{j in Y} max(peak of j now, R(Y - j)); O(2^m m) time and 2^m numbers, whatever the
    size of the graph.
    """
    count = len(upload_s)
    # F(not Y), by the set Y of remaining cut points: the compute time of the other cut points.
    within = np.zeros(1 << count)  # seconds of the blocks whose signature is inside Y
    within[list(blocks)] = list(blocks.values())
    for bit in range(count):
        halves = within.reshape(-1, 2, 1 << bit)
        halves[:, 1] += halves[:, 0]
    done_compute = within[-1] - within
    # G(not Y), by the set Y of remaining cut points: the upload time of the other cut points.
    left_upload = np.zeros(1)
    for seconds in upload_s:
        left_upload = np.concatenate([left_upload, left_upload + seconds])
    sent = left_upload[-1] - left_upload
    # By the set of remaining cut points: whether one that is done needs one of them.
    broken = np.zeros(1 << count, dtype=np.bool_)
    left_sets = np.arange(1 << count, dtype=np.int32)
    for bit, before in enumerate(need):
        if before:
            broken |= ((left_sets >> bit) & 1 == 0) & (left_sets & before != 0)

    peaks = np.full(1 << count, np.inf)
    peaks[0] = 0.0
    for masks, without in _subsets_by_size(count):
        best = np.maximum(done_compute[without] - sent[masks], peaks[without]).min(axis=0)
        best[broken[masks]] = np.inf
        peaks[masks] = best

    # Follow the table from all left to none: take the first cut point that keeps the peak.
    left, order = (1 << count) - 1, []
    while left:
        for bit in range(count):
            after = left & ~(1 << bit)
            if after != left and max(done_compute[after] - sent[left], peaks[after]) <= peaks[-1]:
                order.append(bit)
                left = after
                break
    return order, float(peaks[-1])


@lru_cache(maxsize=24)
def _subsets_by_size(count: int) -> tuple[tuple[Masks, Masks], ...]:
    """For each size k >= 1: the C masks of k bits, and each with one bit less (k x C)."""
    masks = np.arange(1 << count)
    sizes = np.zeros(1, dtype=np.int8)
    for _ in range(count):
        sizes = np.concatenate([sizes, sizes + 1])
    subsets = []
    for size in range(1, count + 1):
        chosen = masks[sizes == size]
        has = (chosen[:, None] >> np.arange(count)) & 1 == 1
        without = chosen[:, None] & ~(1 << np.arange(count))
        subsets.append((chosen, np.ascontiguousarray(without[has].reshape(-1, size).T)))
    return tuple(subsets)
