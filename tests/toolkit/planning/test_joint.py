"""The joint search against every closed set with every order."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.closed_sets import articulations, closed_sets, neurosurgeon, set_costs
from offload.planning.cut import Cut, all_cloud, all_local, cut_at
from offload.planning.cut_costs import Costs
from offload.planning.joint import LatencyOf, joint
from offload.planning.problem import Constraints, Objective, PlanningProblem, Power

from tests.toolkit.graphs import closed_sets as all_closed_sets
from tests.toolkit.graphs import graph_of, graphs_with_costs
from tests.toolkit.planning.oracle import assert_set_costs_are_right, solved_s


def best_order_s(graph: Graph, costs: Costs, cut: Cut) -> float:
    """Latency of the best order of a cut's layers: states are sets of layers already computed.

    t(X) = min over the last layer v of max(F(X), t(X - v)) + g(v), g the upload of v's tensors;
    written from the definition, sharing nothing with the scheduler or the search.
    """
    sent = {-1: 0.0}
    for name in cut.uploads:
        maker = graph.producer.get(name, -1)
        sent[maker] = sent.get(maker, 0.0) + costs.upload_s[name]
    finish = {frozenset[int](): sent[-1]}
    for _ in cut.device:
        longer: dict[frozenset[int], float] = {}
        for done, sent_s in finish.items():
            for layer in cut.device - done:
                if done.issuperset(graph.predecessors[layer]):
                    state = done | {layer}
                    ready_s = sum(costs.device_s[index] for index in state)
                    upload_s = sent.get(layer, 0.0)
                    s = max(ready_s, sent_s) + upload_s if upload_s else sent_s
                    longer[state] = min(longer.get(state, np.inf), s)
        finish = longer
    (uploaded_s,) = finish.values()
    return max(
        costs.device_time_s(cut), uploaded_s + costs.server_time_s(cut) + costs.download_time_s(cut)
    )


def priced(graph: Graph, costs: Costs) -> LatencyOf:
    return lambda cut: (solved_s(graph, costs, cut),) * 2


def brute_force_s(graph: Graph, costs: Costs) -> float:
    cuts = (cut_at(graph, device) for device in all_closed_sets(graph))
    return min(best_order_s(graph, costs, cut) for cut in cuts)


def random_graph(random: np.random.Generator, layers: int) -> tuple[Graph, Costs]:
    """Mostly branching DAGs with times that make computing, sending and serving compete."""
    density = random.uniform(0.5, 2.0) / layers
    edges = [
        (a, b)
        for a, b in itertools.combinations(range(layers), 2)
        if random.random() < density or (b == a + 1 and random.random() < 0.4)
    ]
    graph = graph_of(edges, layers, [int(random.integers(layers))])
    device_s = random.lognormal(0, 1, layers)
    upload_s = random.lognormal(random.uniform(-1, 2), 1, layers + 1)
    names = ("x", *(f"t{i}" for i in range(layers)))
    return graph, Costs(
        tuple(device_s.tolist()),
        tuple((device_s / random.uniform(1, 20)).tolist()),
        dict(zip(names, upload_s.tolist(), strict=True)),
        dict.fromkeys(names, 0.1),
        dict.fromkeys(names, 32),
    )


@pytest.mark.parametrize("seed", range(20))
def test_joint_is_brute_force_on_random_graphs(seed: int) -> None:
    """Twenty times fifty graphs of up to twelve layers, by listing the sets."""
    random = np.random.default_rng(seed)
    for _ in range(50):
        layers = int(random.choice((3, 5, 7, 8, 9, 12), p=(0.1, 0.3, 0.3, 0.2, 0.08, 0.02)))
        graph, costs = random_graph(random, layers)
        result = joint(PlanningProblem(graph, costs), priced(graph, costs))
        assert result.status == "optimal"
        assert result.value == pytest.approx(brute_force_s(graph, costs))


def sending(costs: Costs) -> Costs:
    """The scheduler does not wait for an upload that takes no time; links have none such."""
    return replace(costs, upload_s={name: s + 0.5 for name, s in costs.upload_s.items()})


@given(graphs_with_costs(6))
@settings(max_examples=50, deadline=None)
def test_branching_agrees_with_listing(drawn: tuple[Graph, Costs]) -> None:
    graph, costs = drawn[0], sending(drawn[1])

    listed = joint(PlanningProblem(graph, costs), priced(graph, costs))
    branched = joint(PlanningProblem(graph, costs), priced(graph, costs), 0, budget_s=60)
    assert branched.status == listed.status == "optimal"
    assert branched.value == pytest.approx(listed.value)
    assert branched.lower_bound <= branched.value * (1 + 1e-9) + 1e-12


def test_out_of_time_still_gives_a_cut_and_a_bound() -> None:
    graph, costs = random_graph(np.random.default_rng(1), 40)
    result = joint(PlanningProblem(graph, costs), priced(graph, costs), 0, budget_s=0.0)
    assert result.cut is not None
    assert result.lower_bound <= result.value
    assert result.status == ("optimal" if result.lower_bound == result.value else "feasible")


@given(graphs_with_costs())
def test_listed_sets_are_all_the_closed_ones(drawn: tuple[Graph, Costs]) -> None:
    graph, _ = drawn
    table = closed_sets(graph)
    assert table is not None
    listed = [frozenset(np.flatnonzero(column).tolist()) for column in table.T]
    assert sorted(map(sorted, listed)) == sorted(map(sorted, all_closed_sets(graph)))
    pinned = graph.ancestors((0,))
    with_pinned = closed_sets(graph, pinned)
    assert with_pinned is not None
    assert with_pinned.shape[1] == sum(device >= pinned for device in listed)
    assert closed_sets(graph, limit=len(listed) - 1) is None


@given(graphs_with_costs(7))
def test_set_costs_sum_like_costs_and_bounds_from_below(drawn: tuple[Graph, Costs]) -> None:
    graph, costs = drawn
    assert_set_costs_are_right(graph, costs)
    table = closed_sets(graph)
    assert table is not None
    uploads_s = set_costs(graph, costs, table).stages_s[1]
    for column, members in enumerate(table.T):
        cut = cut_at(graph, frozenset(np.flatnonzero(members).tolist()))
        assert uploads_s[column] == pytest.approx(costs.upload_time_s(cut))


@given(graphs_with_costs(5), st.sampled_from([Objective.THROUGHPUT, Objective.ENERGY]))
@settings(max_examples=40, deadline=None)
def test_other_objectives_are_brute_force_too(
    drawn: tuple[Graph, Costs], objective: Objective
) -> None:
    graph, costs = drawn[0], sending(drawn[1])
    constraints = Constraints(objective, power=Power(1.0, 2.0, 0.5))
    problem = PlanningProblem(graph, costs, constraints)

    def value(cut: Cut) -> float:
        stages = costs.stages_s(cut)
        if objective is Objective.THROUGHPUT:
            return max(stages)
        return solved_s(graph, costs, cut) + 2.0 * stages[0] + 0.5 * stages[1]

    best = min(value(cut_at(graph, device)) for device in all_closed_sets(graph))
    for limit in (50_000, 0):
        result = joint(problem, priced(graph, costs), limit, budget_s=60)
        assert result.value == pytest.approx(best)


@given(graphs_with_costs(6), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_pinned_layers_stay_and_limits_hold(drawn: tuple[Graph, Costs], pin: int) -> None:
    graph, costs = drawn[0], sending(drawn[1])
    count = min(pin, len(graph.layers))
    pinned = frozenset(range(count))
    problem = PlanningProblem(graph, costs, Constraints(pin_device=count, deadline_s=30.0))
    for limit in (50_000, 0):
        result = joint(problem, priced(graph, costs), limit)
        if result.cut is not None:
            assert result.cut.device >= pinned
            assert result.value <= 30.0
        else:
            allowed = [d for d in all_closed_sets(graph) if d >= pinned]
            assert all(solved_s(graph, costs, cut_at(graph, d)) > 30.0 for d in allowed)


def test_energy_without_power_and_limits_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="give --power"):
        Constraints(Objective.ENERGY)
    with pytest.raises(InputError, match="memory_bytes must be positive"):
        Constraints(memory_bytes=0)
    with pytest.raises(InputError, match="power must not be negative"):
        Power(-1, 0, 0)


CHAIN = graph_of([(0, 1), (1, 2)], 3)
FORK = graph_of([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)], 5)


def test_articulations_are_where_one_layer_is_all_that_is_read() -> None:
    assert list(articulations(CHAIN)) == [0, 1, 2]
    assert list(articulations(FORK)) == [0, 3, 4]
    skip = replace(FORK.layers[3], inputs=("t1", "t2", "x"))
    reading = replace(FORK, layers=(*FORK.layers[:3], skip, FORK.layers[4]))
    assert list(articulations(reading)) == [3, 4]


@given(graphs_with_costs())
def test_neurosurgeon_is_the_best_cut_of_at_most_one_tensor_below_a_gate(
    drawn: tuple[Graph, Costs],
) -> None:
    graph, costs = drawn
    gates = [graph.ancestors((layer,)) for layer in articulations(graph)]
    cuts = [cut_at(graph, gate) for gate in gates]
    cuts = [all_local(graph), all_cloud(graph), *(c for c in cuts if len(c.uploads) <= 1)]
    cut = neurosurgeon(PlanningProblem(graph, costs))
    assert cut is not None
    best_s = min(sum(costs.stages_s(other)) for other in cuts)
    assert sum(costs.stages_s(cut)) == pytest.approx(best_s)
