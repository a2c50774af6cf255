"""Every solver against exhaustive search on small instances, and the paper's counter-examples."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.errors import InputError
from offload.scheduling.instance import Instance, Job
from offload.scheduling.solve import SOLVERS, solve

from tests.toolkit.scheduling.check import check, cut_order

SECONDS = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 5.0, 0.1])


@st.composite
def instances(draw: st.DrawFn, most: int = 6) -> Instance:
    count = draw(st.integers(1, most))
    jobs = tuple(Job(f"l{k}", draw(SECONDS), draw(SECONDS)) for k in range(count))
    number = draw(st.permutations(range(count)))
    pairs = [(number[a], number[b]) for b in range(count) for a in range(b)]
    edges = tuple(pair for pair in pairs if draw(st.integers(0, 2)) == 0)
    return Instance(jobs, edges, draw(SECONDS), draw(SECONDS))


def smallest_makespan_s(instance: Instance) -> float:
    """Exhaustive search over all orders by the recurrence of the paper's Proposition 1."""
    jobs, best = instance.jobs, float("inf")
    for order in itertools.permutations(range(len(jobs))):
        place = {job: k for k, job in enumerate(order)}
        if any(place[a] > place[b] for a, b in instance.edges):
            continue
        computed = sent = 0.0
        for job in order:
            computed += jobs[job].compute_s
            sent = max(computed, sent) + jobs[job].upload_s if jobs[job].upload_s else sent
        best = min(best, max(computed, sent + instance.server_s + instance.download_s))
    return best


@settings(max_examples=1500, deadline=None)
@given(instances())
def test_optimal_is_optimal_on_small_graphs(instance: Instance) -> None:
    schedule = solve(instance)
    check(schedule)
    assert schedule.status == "optimal"
    assert schedule.makespan_s == pytest.approx(smallest_makespan_s(instance))


@settings(max_examples=300, deadline=None)
@given(instances(), st.sampled_from(sorted(SOLVERS)))
def test_every_solver_gives_a_valid_schedule(instance: Instance, solver: str) -> None:
    try:
        schedule = solve(instance, solver)
    except InputError:
        return
    check(schedule)
    optimum_s = smallest_makespan_s(instance)
    assert schedule.lower_bound_s <= optimum_s + 1e-9
    assert schedule.makespan_s >= optimum_s - 1e-9
    if schedule.status == "optimal":
        assert schedule.makespan_s == pytest.approx(optimum_s)


def test_cut_order_is_the_order_of_uploads() -> None:
    instance = Instance((Job("x", 0.0, 3.0), Job("a", 1.0), Job("b", 2.0, 1.0)), ((1, 2),))
    assert cut_order(solve(instance)) == (0, 2)


def test_unknown_solver_is_refused() -> None:
    with pytest.raises(InputError, match="choose from serial"):
        solve(Instance((Job("a", 1.0),)), "best")


def test_an_edge_to_nowhere_is_refused() -> None:
    jobs = (Job("a", 1.0), Job("b", 1.0))
    for edges in (((0, 1), (1, 2)), ((0, 1), (-1, 0))):
        with pytest.raises(InputError, match=r"edge \(-?1, [02]\) .* outside 0\.\.1"):
            Instance(jobs, edges)


def test_times_that_add_up_to_infinity_are_refused_without_a_warning() -> None:
    with pytest.raises(InputError, match="add up to infinity"):
        Instance(tuple(Job(name, 1e308) for name in "abc"))
