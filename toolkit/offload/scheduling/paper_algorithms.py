"""The paper's own algorithms, as printed, for comparison."""

from collections.abc import Callable, Sequence
from heapq import merge
from typing import NamedTuple

from offload.errors import InputError
from offload.scheduling.cut_point_reduction import expand, reduce_to_cut_points
from offload.scheduling.forest import Key, Pair
from offload.scheduling.instance import Instance
from offload.scheduling.schedule import SolverResult


def johnson(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithm 1: Johnson's rule (1954) on independent paths, one common source allowed.

    A path counts as one job of its total compute and upload; the source belongs to none. Optimal
    when only the last layer of each path uploads. O(V log V).

    Raises:
        InputError: the layers do not form independent paths.
    """
    source, heads = _source_and_heads(instance)
    if any(len(set(before)) > 1 for before in instance.predecessors):
        raise _wrong_shape("johnson", "independent paths")
    paths = [_path(instance, head) for head in heads]
    totals = [
        Pair(sum(instance.compute_s[v] for v in path), sum(instance.upload_s[v] for v in path))
        for path in paths
    ]
    chosen = sorted(range(len(paths)), key=lambda index: totals[index].key)
    return SolverResult((*source, *(job for index in chosen for job in paths[index])))


def pathwise(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithm 2, then Algorithm 1; layers that paths share run once, in the first of them.

    Each cut point with copies of all its ancestors is a path; a single source belongs to none.
    Algorithm 2 is printed from the root down, where copying a layer makes its parent branch
    again; from the leaves up it gives these paths. On general graphs, which the paper leaves
    open, the same reading is used. Not optimal, on trees of 4 layers already: layers a path
    shares with an earlier one cost nothing, but are counted. O(V + E) operations on masks.
    """
    reduced = reduce_to_cut_points(instance)
    source, _ = _source_and_heads(instance)
    above_s = sum(instance.compute_s[job] for job in source)
    pairs = [
        Pair(
            reduced.set_compute_s(1 << bit) - (0.0 if job in source else above_s),
            instance.upload_s[job],
        )
        for bit, job in enumerate(reduced.cuts)
    ]
    chosen = sorted(range(len(pairs)), key=lambda bit: pairs[bit].key)
    return SolverResult(expand(instance, reduced, chosen))


def tree_merge(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithms 3 and 4: merge the children's lists by their heads, glue the root to the head.

    Printed as optimal on trees (Theorem 1), which is false: gluing adds compute and upload as if
    they could not overlap, and can leave a list that is not in Johnson's order, whose later
    entries then wait behind its head. Optimal where every list merged with another is in that
    order: a stem with independent branches, for one. O(V^2).

    Raises:
        InputError: a layer needs more than one other, so that the graph is no out-tree.
    """
    if any(len(set(before)) > 1 for before in instance.predecessors):
        raise _wrong_shape("tree-merge", "an out-tree")
    lists: list[list[_Composite]] = [[] for _ in instance.jobs]
    for job in reversed(instance.topological):
        own = _Composite(instance.compute_s[job], instance.upload_s[job], job)
        merged = _merged([lists[child] for child in sorted(set(instance.successors[job]))])
        merged[:1] = [own.glued(head) for head in merged[:1]] or [own]
        lists[job] = merged
    roots = [lists[job] for job, before in enumerate(instance.predecessors) if not before]
    return SolverResult(_flatten([group.sequence for group in _merged(roots)]))


class _Composite(NamedTuple):
    compute_s: float
    upload_s: float
    sequence: object

    def glued(self, after: "_Composite") -> "_Composite":
        return _Composite(
            self.compute_s + after.compute_s,
            self.upload_s + after.upload_s,
            (self.sequence, after.sequence),
        )


def _merged(lists: Sequence[list[_Composite]]) -> list[_Composite]:
    """Algorithm 4: always take the smallest head, whether or not the lists are sorted."""
    if len(lists) == 1:
        return lists[0]
    return list(merge(*lists, key=lambda group: Pair(group.compute_s, group.upload_s).key))


def _flatten(sequences: list[object]) -> tuple[int, ...]:
    """The numbers in nested pairs, from left to right."""
    order: list[int] = []
    pending = sequences[::-1]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple):
            pending += item[::-1]
        elif isinstance(item, int):
            order.append(item)
    return tuple(order)


def levels(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithm 5: sort the layers nothing needs by Johnson's rule, put them last, and repeat.

    The two sets' names are swapped in print; the formulas are Algorithm 1's and are used here. A
    heuristic: when all cut points are sinks it computes everything else before the first upload.
    O(V log V + E).
    """
    waiting = [len(set(after)) for after in instance.successors]
    sinks = [job for job, count in enumerate(waiting) if count == 0]
    found: list[list[int]] = []
    key = _key_of(instance)
    while sinks:
        found.append(sorted(sinks, key=key))
        bared: list[int] = []
        for job in sinks:
            for before in set(instance.predecessors[job]):
                waiting[before] -= 1
                if waiting[before] == 0:
                    bared.append(before)
        sinks = sorted(bared)
    return SolverResult(tuple(job for level in reversed(found) for job in level))


def _key_of(instance: Instance) -> Callable[[int], Key]:
    return lambda job: Pair(instance.compute_s[job], instance.upload_s[job]).key


def _source_and_heads(instance: Instance) -> tuple[list[int], list[int]]:
    heads = [job for job, before in enumerate(instance.predecessors) if not before]
    if len(heads) == 1:
        return heads, sorted(set(instance.successors[heads[0]]))
    return [], heads


def _path(instance: Instance, head: int) -> list[int]:
    path = [head]
    while after := set(instance.successors[path[-1]]):
        if len(after) > 1:
            raise _wrong_shape("johnson", "independent paths")
        path.append(after.pop())
    return path


def _wrong_shape(solver: str, shape: str) -> InputError:
    return InputError(
        f"the solver {solver!r} needs {shape}, which this graph is not: use 'levels' or 'optimal'"
    )
