"""The paper's Algorithms 1 to 5 as printed, for comparison with `optimal`."""

from heapq import merge
from typing import Any

from offload.errors import InputError
from offload.scheduling.cut_point_reduction import expand, reduce_to_cut_points
from offload.scheduling.exact import CompositeJob
from offload.scheduling.instance import Instance
from offload.scheduling.schedule import SolverResult


def johnson(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithm 1: Johnson's rule (1954) on independent paths, one common source allowed.

    A path counts as one job of its total compute and upload; the source is not part of a path.
    Optimal if only the last layer of each path uploads. O(V log V).

    Raises:
        InputError: the layers do not form independent paths.
    """
    source, heads = _source_and_heads(instance)
    if any(len(set(before)) > 1 for before in instance.predecessors):
        raise _wrong_shape("johnson", "independent paths")
    paths: list[CompositeJob] = []
    for head in heads:
        path = [head]
        while after := set(instance.successors[path[-1]]):
            if len(after) > 1:
                raise _wrong_shape("johnson", "independent paths")
            path.append(after.pop())
        compute_s = sum(instance.compute_s[job] for job in path)
        upload_s = sum(instance.upload_s[job] for job in path)
        paths.append(CompositeJob(compute_s, upload_s, tuple(path)))
    paths.sort(key=lambda path: path.key)
    return SolverResult((*source, *(job for path in paths for job in path.jobs)))


def pathwise(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithm 2, then Algorithm 1; layers that paths share run once, in the first of them.

    Each cut point with copies of all its ancestors is a path; a single source is not part of a
    path. Algorithm 2 is printed from the root down, where copying a layer makes its parent branch
    again; from the leaves up it gives these paths. On general graphs, which the paper leaves
    open, the same reading is used. Not optimal, already on trees of 4 layers: layers that a path
    shares with an earlier one cost nothing, but are counted. O(V + E) operations on masks.
    """
    reduced = reduce_to_cut_points(instance)
    source, _ = _source_and_heads(instance)
    source_s = sum(instance.compute_s[job] for job in source)
    paths: list[CompositeJob] = []
    for bit, job in enumerate(reduced.cuts):
        compute_s = reduced.set_compute_s(1 << bit) - (0.0 if job in source else source_s)
        paths.append(CompositeJob(compute_s, instance.upload_s[job], (bit,)))
    paths.sort(key=lambda path: path.key)
    return SolverResult(expand(instance, reduced, [path.jobs[0] for path in paths]))


def tree_merge(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithms 3 and 4: merge the children's lists by their heads, glue the root to the head.

    Printed as optimal on trees (Theorem 1), which is false: gluing adds compute and upload as if
    they could not overlap, and can leave a list that is not in Johnson's order, whose later
    entries then wait behind its head. Optimal if every list that is merged with another is in
    that order, for example on a stem with independent branches. O(V^2).

    Raises:
        InputError: a layer has more than one predecessor, so the graph is not an out-tree.
    """
    if any(len(set(before)) > 1 for before in instance.predecessors):
        raise _wrong_shape("tree-merge", "an out-tree")
    # A list holds pairs of a glued job and its layers, linked as (first layer, the others).
    lists: list[list[tuple[CompositeJob, Any]]] = [[] for _ in instance.jobs]

    def merged(jobs: list[int]) -> list[tuple[CompositeJob, Any]]:
        """Algorithm 4: always take the smallest head, whether or not the lists are sorted."""
        if len(jobs) == 1:
            return lists[jobs[0]]
        return list(merge(*[lists[job] for job in jobs], key=lambda glued: glued[0].key))

    for job in reversed(instance.topological):
        glued = merged(sorted(set(instance.successors[job])))
        compute_s, upload_s, layers = instance.compute_s[job], instance.upload_s[job], ()
        if glued:
            head, layers = glued[0]
            compute_s, upload_s = compute_s + head.a, upload_s + head.b
        glued[:1] = [(CompositeJob(compute_s, upload_s), (job, layers))]
        lists[job] = glued
    order: list[int] = []
    for _, layers in merged([j for j, before in enumerate(instance.predecessors) if not before]):
        while layers:
            job, layers = layers
            order.append(job)
    return SolverResult(tuple(order))


def levels(instance: Instance, _budget_s: float = 0.0) -> SolverResult:
    """Algorithm 5: sort the sinks by Johnson's rule, put them last, remove them, and repeat.

    The two sets' names are swapped in print; the formulas are Algorithm 1's and are used here. A
    heuristic: if all cut points are sinks, it computes everything else before the first upload.
    O(V log V + E).
    """
    waiting = [len(set(after)) for after in instance.successors]
    sinks = [job for job, count in enumerate(waiting) if count == 0]
    levels: list[list[int]] = []
    times_s = list(zip(instance.compute_s, instance.upload_s, strict=True))
    while sinks:
        levels.append(sorted(sinks, key=lambda job: CompositeJob(*times_s[job]).key))
        next_sinks: list[int] = []
        for job in sinks:
            for before in set(instance.predecessors[job]):
                waiting[before] -= 1
                if waiting[before] == 0:
                    next_sinks.append(before)
        sinks = sorted(next_sinks)
    return SolverResult(tuple(job for level in reversed(levels) for job in level))


def _source_and_heads(instance: Instance) -> tuple[list[int], list[int]]:
    """The single source, if there is one, and the first job of each path."""
    heads = [job for job, before in enumerate(instance.predecessors) if not before]
    if len(heads) == 1:
        return heads, sorted(set(instance.successors[heads[0]]))
    return [], heads


def _wrong_shape(solver: str, shape: str) -> InputError:
    return InputError(
        f"the solver {solver!r} needs {shape}, which this graph is not: use 'levels' or 'optimal'"
    )
