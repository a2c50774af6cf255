"""Exact algorithms, and the search for the third stage, against exhaustive search."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from offload.scheduling import exact
from offload.scheduling.cut_point_reduction import reduce_to_cut_points
from offload.scheduling.exact import (
    CompositeForest,
    CompositeJob,
    Floats,
    Nodes,
    forest_order,
    series_parallel_order,
    subset_order,
)
from offload.scheduling.instance import Instance, Job, ServerJob
from offload.scheduling.solve import SOLVERS, solve
from offload.scheduling.timeline import makespan_s, simulate

from tests.toolkit.scheduling.check import check, cut_order

SECONDS = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 5.0, 0.1])
ANY_SECONDS = SECONDS | st.floats(0.0, 10.0)
Forest = tuple[Nodes, Floats, Floats]


@st.composite
def forests(draw: st.DrawFn, most: int) -> Forest:
    """Parents, compute and upload; wide as often as deep."""
    count = draw(st.integers(1, most))
    reach = draw(st.sampled_from([1, 3, most]))
    parent = [draw(st.integers(max(-1, k - reach), k - 1)) for k in range(count)]
    compute_s, upload_s = ([draw(ANY_SECONDS) for _ in range(count)] for _ in range(2))
    return np.array(parent, dtype=np.intp), np.array(compute_s), np.array(upload_s)


def in_rounds(forest: Forest) -> CompositeForest:
    combined = CompositeForest(*forest)
    with patch.object(exact, "_MIN_ROUND", 1):
        combined.combine_in_rounds()
    return combined


def peak_s(forest: Forest, order: list[int]) -> float:
    _, compute_s, upload_s = forest
    sent = np.append(0.0, np.cumsum(upload_s[order]))[:-1]
    return float((np.cumsum(compute_s[order]) - sent)[upload_s[order] > 0].max(initial=0.0))


def lowest_peak_s(forest: Forest) -> float:
    """By dynamic programming over the closed sets of nodes."""
    parent, compute_s, upload_s = forest
    best = {0: 0.0}
    for _ in parent:
        grown: dict[int, float] = {}
        for done, peak in best.items():
            nodes = [v for v in range(len(parent)) if done >> v & 1]
            height = compute_s[nodes].sum() - upload_s[nodes].sum()
            for v, above in enumerate(parent.tolist()):
                if not done >> v & 1 and (above < 0 or done >> above & 1):
                    after = max(peak, height + compute_s[v] if upload_s[v] else 0.0)
                    key = done | 1 << v
                    grown[key] = min(grown.get(key, np.inf), after)
        best = grown
    return best[(1 << len(parent)) - 1]


@settings(max_examples=500, deadline=None)
@given(forests(60))
def test_rounds_settle_every_job_as_one_by_one_would(forest: Forest) -> None:
    combined, one_by_one = in_rounds(forest), CompositeForest(*forest)
    assert not len(combined.unsorted)
    one_by_one.combine_rest()
    assert combined.order().tolist() == one_by_one.order().tolist()
    assert forest_order(*forest).tolist() == one_by_one.order().tolist()


@settings(max_examples=300, deadline=None)
@given(forests(7))
def test_rounds_are_optimal(forest: Forest) -> None:
    order = in_rounds(forest).order().tolist()
    place = {v: k for k, v in enumerate(order)}
    assert sorted(order) == list(range(len(forest[0])))
    assert all(place[a] < place[v] for v, a in enumerate(forest[0].tolist()) if a >= 0)
    assert peak_s(forest, order) == pytest.approx(lowest_peak_s(forest))


def test_what_rounds_leave_goes_one_by_one() -> None:
    """A hundred long chains: as they end, fewer are ready than a round is worth."""
    count, width = 5000, 100
    parent = np.maximum(np.arange(count) - width, -1)
    times = np.random.default_rng(0).lognormal(size=(2, count))
    never, sometimes = CompositeForest(parent, *times), in_rounds((parent, *times))
    assert 0 < len(sometimes.unsorted) < len(never.unsorted)
    never.combine_rest()
    sometimes.combine_rest()
    assert sometimes.order().tolist() == never.order().tolist()


@st.composite
def trees(draw: st.DrawFn, most: int = 11, out: bool = True) -> Instance:
    count = draw(st.integers(1, most))
    jobs = tuple(Job(f"l{k}", draw(SECONDS), draw(SECONDS)) for k in range(count))
    number = draw(st.permutations(range(count)))
    above = [draw(st.integers(-1, k - 1)) for k in range(count)]
    edges = [(number[a], number[b]) for b, a in enumerate(above) if a >= 0]
    return Instance(jobs, tuple(edges if out else [(b, a) for a, b in edges]))


@st.composite
def series_parallel(draw: st.DrawFn) -> Instance:
    """Random compositions of up to ten layers, side by side or one after the other."""
    parts: list[tuple[list[int], list[tuple[int, int]]]] = [
        ([k], []) for k in range(draw(st.integers(2, 10)))
    ]
    count = len(parts)
    while len(parts) > 1:
        (left, a), (right, b) = parts.pop(draw(st.integers(0, len(parts) - 2))), parts.pop()
        seam = list(itertools.product(left, right)) if draw(st.booleans()) else []
        parts.append((left + right, a + b + seam))
    jobs = tuple(Job(f"l{k}", draw(SECONDS), draw(SECONDS)) for k in range(count))
    return Instance(jobs, tuple(parts[0][1]))


def by_subsets_s(instance: Instance) -> float:
    """The two-stage optimum by dynamic programming, itself checked against exhaustion."""
    reduced = reduce_to_cut_points(instance)
    _, peak_s = subset_order(reduced.upload_s, reduced.blocks, reduced.need)
    return max(instance.total_compute_s, instance.total_upload_s + peak_s)


@settings(max_examples=1000, deadline=None)
@given(trees())
def test_composite_jobs_are_optimal_on_out_trees(instance: Instance) -> None:
    schedule = solve(instance)
    check(schedule)
    assert schedule.makespan_s == pytest.approx(by_subsets_s(instance))


@settings(max_examples=500, deadline=None)
@given(st.one_of(series_parallel(), trees(out=False)))
def test_composite_jobs_are_optimal_on_series_parallel_graphs(instance: Instance) -> None:
    reduced = reduce_to_cut_points(instance)
    assume(reduced.blocks)
    order = series_parallel_order(reduced)
    assert order is not None
    place = {bit: k for k, bit in enumerate(order)}
    for bit, need in enumerate(reduced.need):
        assert all(place[b] < place[bit] for b in range(len(order)) if need >> b & 1)
    chosen, sent, peak = 0, 0.0, 0.0
    for bit in order:
        chosen |= 1 << bit
        peak = max(peak, reduced.set_compute_s(chosen) - sent)
        sent += reduced.upload_s[bit]
    assert peak == pytest.approx(subset_order(reduced.upload_s, reduced.blocks, reduced.need)[1])


def test_an_n_is_no_series_parallel_graph() -> None:
    jobs = tuple(Job(name, 1.0, 1.0) for name in "abcd")
    instance = Instance(jobs, ((0, 2), (1, 2), (1, 3)))
    assert series_parallel_order(reduce_to_cut_points(instance)) is None
    assert solve(instance).status == "optimal"


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6))
def test_a_sequence_acts_as_its_composite_job(pairs: list[tuple[float, float]]) -> None:
    composite = CompositeJob(*pairs[0])
    for a, b in pairs[1:]:
        composite = composite.then(CompositeJob(a, b))
    jobs = tuple(Job(f"l{k}", a, b) for k, (a, b) in enumerate(pairs))
    sent = computed = 0.0
    for job in jobs:
        computed += job.compute_s
        sent = max(computed, sent) + job.upload_s
    assert composite.a == pytest.approx(sent - sum(job.upload_s for job in jobs))
    assert composite.b == pytest.approx(sent - computed)


@st.composite
def three_stages(draw: st.DrawFn) -> Instance:
    device = draw(trees(most=5))
    count = draw(st.integers(1, 4))
    some = st.lists(st.integers(0, len(device.jobs) - 1), max_size=2, unique=True).map(tuple)
    server = tuple(
        ServerJob(
            f"s{k}",
            draw(SECONDS),
            draw(some),
            tuple(draw(st.lists(st.integers(0, k - 1), max_size=2, unique=True))) if k else (),
        )
        for k in range(count)
    )
    return Instance(device.jobs, device.edges, draw(SECONDS), draw(SECONDS), server)


def served_s(instance: Instance, order: tuple[int, ...]) -> float:
    """The best the server can do for a device order, over every order of its own."""
    computed = sent = 0.0
    arrival = {}
    for job in order:
        computed += instance.jobs[job].compute_s
        if upload_s := instance.jobs[job].upload_s:
            sent = max(computed, sent) + upload_s
        arrival[job] = sent if upload_s else computed
    best = float("inf")
    for served in itertools.permutations(range(len(instance.server_jobs))):
        free, ends = 0.0, dict[int, float]()
        for index in served:
            job_ = instance.server_jobs[index]
            if any(before not in ends for before in job_.after):
                break
            free = max([free, *(arrival[need] for need in job_.needs)]) + job_.compute_s
            ends[index] = free
        else:
            best = min(best, free)
    return max(computed, max(best, sent) + instance.server_s + instance.download_s)


@settings(max_examples=300, deadline=None)
@given(three_stages())
def test_a_server_that_starts_on_partial_arrival(instance: Instance) -> None:
    schedule = solve(instance)
    check(schedule)
    edges = set(instance.edges)
    orders = [
        order
        for order in itertools.permutations(range(len(instance.jobs)))
        if all(order.index(a) < order.index(b) for a, b in edges)
    ]
    best_s = min(served_s(instance, order) for order in orders)
    assert makespan_s(instance, orders[0]) == pytest.approx(served_s(instance, orders[0]))
    assert schedule.lower_bound_s <= best_s + 1e-9
    if schedule.status == "optimal":
        assert schedule.makespan_s == pytest.approx(best_s)
    assert simulate(instance, schedule.order).makespan_s == pytest.approx(schedule.makespan_s)


def test_many_cut_points_with_a_busy_server_keep_a_valid_bound() -> None:
    """The server wants the last layer first: moving its upload to the front pays."""
    jobs = (Job("r", 1.0), *(Job(f"l{k}", 1.0, 1.0) for k in range(9)))
    edges = tuple((0, k) for k in range(1, 10))
    server = (ServerJob("long", 20.0, needs=(9,)),)
    schedule = solve(Instance(jobs, edges, server_jobs=server))
    check(schedule)
    assert cut_order(schedule)[0] == 9
    assert schedule.makespan_s == 23.0
    assert schedule.lower_bound_s <= 23.0


def test_every_solver_has_a_docstring_that_says_what_it_is() -> None:
    assert all(solver.__doc__ for solver in SOLVERS.values())
