"""Comparing, limits, early start and the front of plans."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.cut import Cut, cut_at
from offload.planning.cut_costs import (
    CLIENT_BYTES,
    SPARE_BYTES,
    TENSOR_COPIES,
    UPLOAD_COPIES,
    WEIGHT_COPIES,
    Costs,
    peak_bytes,
    process_bytes,
)
from offload.planning.plan import Side
from offload.planning.planner import (
    SIMPLE,
    compare,
    decide,
    make_plan,
    pareto,
    search,
    serial_cut,
)
from offload.planning.problem import Constraints, Objective, PlanningProblem, Power
from offload.planning.scheme import Scheme, estimate, start_early
from offload.units import format_bytes

from tests.toolkit.graphs import closed_sets, graph_of, graphs_with_costs

# Two streams that meet at the end: the server can serve the first while the second is sent.
STREAMS = graph_of([(0, 1), (2, 3), (1, 4), (3, 4)], 5)
COSTS = Costs(
    (1.0, 50.0, 1.0, 50.0, 50.0),
    (1.0, 4.0, 1.0, 4.0, 1.0),
    {"x": 90.0, "t0": 3.0, "t1": 30.0, "t2": 3.0, "t3": 30.0, "t4": 1.0},
    dict.fromkeys(("x", "t0", "t1", "t2", "t3", "t4"), 0.0),
    dict.fromkeys(("x", "t0", "t1", "t2", "t3", "t4"), 32),
)
PROBLEM = PlanningProblem(STREAMS, COSTS)


def test_the_server_starts_on_the_first_arrival_where_that_pays() -> None:
    plan = make_plan(PROBLEM)
    assert [s.id for s in plan.on(Side.SERVER)] == ["server-0", "server-1"]
    assert plan.latency_s == pytest.approx(1 + 3 + 4 + 4 + 1), "served: t0's half, t2's, the end"
    assert plan.lower_bound_s <= plan.latency_s
    first, second = plan.on(Side.SERVER)
    assert first.inputs == ("t0",)
    assert first.outputs == ("t1",)
    assert set(second.inputs) == {"t1", "t2"}


def test_a_cut_of_several_tensors_is_one_segment_when_nothing_overlaps() -> None:
    """Two branches and what joins them: PO does not compute the join to save a segment."""
    joined = graph_of([(0, 2), (1, 2), (2, 3)], 4)
    sent_s = {"x": 90.0, "t0": 2.0, "t1": 2.0, "t2": 4.0, "t3": 1.0}
    costs = Costs(
        (5.0, 5.0, 0.3, 80.0),
        (4.0, 4.0, 0.1, 1.0),
        sent_s,
        dict.fromkeys(sent_s, 0.0),
        dict.fromkeys(sent_s, 32),
        device_segment_s=0.5,
        produced=frozenset(sent_s) - {"x"},
    )
    problem = PlanningProblem(joined, costs)
    assert serial_cut(problem).uploads == ("t0", "t1")
    estimates = {c.scheme: c for c in compare(problem)}
    assert estimates[Scheme.PARTITION].latency_s == pytest.approx(5 + 5 + 0.5 + 2 + 2 + 0.1 + 1)
    assert estimates[Scheme.OPSS].latency_s == pytest.approx(5 + 5 + 2 * 0.5 + 2 + 0.1 + 1)


def test_one_server_segment_where_starting_early_gains_too_little() -> None:
    quick = replace(COSTS, server_s=(1e-3,) * 5)
    assert len(make_plan(PlanningProblem(STREAMS, quick)).on(Side.SERVER)) == 1


@given(graphs_with_costs(7))
@settings(deadline=None)
def test_starting_early_never_costs_and_runs_every_layer_once(
    drawn: tuple[Graph, Costs],
) -> None:
    problem = PlanningProblem(*drawn)
    plain = estimate(problem, Scheme.JOINT, search_cut(problem))
    early = start_early(problem, plain)
    assert early.latency_s <= plain.latency_s + 1e-9
    layers = [layer for segment in early.program.segments for layer in segment.layers]
    assert sorted(layers) == sorted(layer.name for layer in problem.graph.layers)
    have = {send.tensor for send in early.program.uploads}
    for segment in early.program.segments:
        if segment.side is Side.SERVER:
            assert have.issuperset(segment.inputs)
            have.update(segment.outputs)


def search_cut(problem: PlanningProblem) -> Cut:
    cut = search(problem).cut
    assert cut is not None
    return cut


def test_equal_latencies_go_to_the_simpler_scheme() -> None:
    far = replace(COSTS, upload_s=dict.fromkeys(COSTS.upload_s, 1e6))
    assert make_plan(PlanningProblem(STREAMS, far)).scheme == "local"


@given(graphs_with_costs(6), st.sampled_from(list(Objective)))
@settings(deadline=None, max_examples=50)
def test_the_chosen_plan_is_best_in_what_was_asked(
    drawn: tuple[Graph, Costs], objective: Objective
) -> None:
    problem = PlanningProblem(*drawn, Constraints(objective, power=Power(1.0, 2.0, 1.0)))
    plan = make_plan(problem)
    key = {"latency": "latency_s", "throughput": "period_s", "energy": "energy_j"}[objective]
    chosen = next(a for a in plan.alternatives if a.scheme == plan.scheme)
    simple = [getattr(a, key) for a in plan.alternatives if a.scheme in SIMPLE]
    assert getattr(chosen, key) <= min(simple) * (1 + 1e-9)
    if getattr(chosen, key) > min(getattr(a, key) for a in plan.alternatives) * (1 + 1e-6):
        assert "within the prediction error" in plan.reason
    assert plan.reason.endswith(".")


@given(graphs_with_costs(6), st.integers(500, 3000))
@settings(deadline=None, max_examples=50)
def test_a_plan_under_a_memory_limit_keeps_it(drawn: tuple[Graph, Costs], room: int) -> None:
    limit = SPARE_BYTES + room
    problem = PlanningProblem(*drawn, Constraints(memory_bytes=limit), client_bytes=0)
    able = [c.alternative for c in compare(problem) if c.value < float("inf")]
    if not able:
        with pytest.raises(InputError, match="no plan keeps the limits memory"):
            make_plan(problem)
        return
    plan = make_plan(problem)
    chosen = next(a for a in plan.alternatives if a.scheme == plan.scheme)
    assert chosen.memory_bytes <= limit


def test_a_memory_limit_that_no_plan_keeps_names_the_least_that_would_do() -> None:
    """Also where that is a cut which none of the schemes would choose."""
    chain = graph_of([(0, 1), (1, 2)], 3)
    light, *heavy = chain.layers
    layers = (light, *(replace(layer, weight_bytes=10**8) for layer in heavy))
    costs = replace(COSTS, device_s=(1.0,) * 3, server_s=(1.0,) * 3)  # staying is quickest
    constraints = Constraints(pin_device=1, memory_bytes=1)
    problem = PlanningProblem(replace(chain, layers=layers), costs, constraints)
    least = process_bytes(problem.graph, cut_at(problem.graph, {0}), (0,))
    with pytest.raises(InputError, match=f"least found: memory {format_bytes(least)}"):
        make_plan(problem)


def test_memory_counts_weights_and_the_most_live_tensors() -> None:
    weighty = replace(STREAMS.layers[0], weight_bytes=1000)
    graph = replace(STREAMS, layers=(weighty, *STREAMS.layers[1:]))
    local = estimate(PlanningProblem(graph, COSTS), Scheme.LOCAL, search_cut(PROBLEM))
    order = local.program.device_order(graph)
    # x stays (32); t0 and t2 are to be sent, so both stay.
    assert peak_bytes(graph, local.cut, order) == 32 * 3
    copies = WEIGHT_COPIES * 1000 + TENSOR_COPIES * 96 + UPLOAD_COPIES * 64
    assert process_bytes(graph, local.cut, order, 7) == 7 + SPARE_BYTES + copies
    assert local.alternative.memory_bytes == CLIENT_BYTES + SPARE_BYTES + copies


def test_pinned_layers_forbid_cloud_and_stay() -> None:
    plan = make_plan(PlanningProblem(STREAMS, COSTS, Constraints(pin_device=2)))
    assert "cloud" not in [a.scheme for a in plan.alternatives]
    device = {name for segment in plan.on(Side.DEVICE) for name in segment.layers}
    assert {"l0", "l1"} <= device


def test_impossible_limits_are_one_sentence_with_what_is_needed() -> None:
    constraints = Constraints(deadline_s=1.0, memory_bytes=10)
    with pytest.raises(InputError, match=r"no plan keeps the limits memory 10 B, deadline 1.00 s"):
        make_plan(PlanningProblem(STREAMS, COSTS, constraints))
    slow = PlanningProblem(STREAMS, COSTS, Constraints(deadline_s=20.0))
    with pytest.raises(
        InputError, match=r"scheme 'local' does not keep the limits deadline 20\.0 s"
    ):
        make_plan(slow, "local")


def test_the_front_trades_latency_for_throughput() -> None:
    front = pareto(PROBLEM)
    latencies = [c.alternative.latency_s for c in front]
    periods = [c.alternative.period_s for c in front]
    assert latencies == sorted(latencies)
    assert periods == sorted(periods, reverse=True)
    fastest = make_plan(PROBLEM)
    assert latencies[0] == pytest.approx(fastest.latency_s)
    best = min(c.alternative.period_s for c in compare(as_stream()))
    assert periods[-1] == pytest.approx(best)


def as_stream() -> PlanningProblem:
    return replace(PROBLEM, constraints=Constraints(Objective.THROUGHPUT))


@given(graphs_with_costs(6), st.sampled_from([Objective.LATENCY, Objective.THROUGHPUT]))
@settings(deadline=None, max_examples=100)
def test_one_request_is_best_among_all_cuts_with_nothing_overlapped(
    drawn: tuple[Graph, Costs], objective: Objective
) -> None:
    graph, costs = drawn
    problem = PlanningProblem(graph, costs, Constraints(objective, one_request=True))
    plan = make_plan(problem)
    kinds = [step.action for step in plan.steps]
    assert kinds == sorted(kinds), "all runs before all sends"
    assert len(plan.on(Side.SERVER)) <= 1

    def value(device: frozenset[int]) -> float:
        stages_s = costs.stages_s(cut_at(graph, device))
        return max(stages_s) if objective is Objective.THROUGHPUT else sum(stages_s)

    least = min(map(value, closed_sets(graph)))
    assert min(c.value for c in compare(problem)) == pytest.approx(least)


def test_one_request_leaves_out_what_overlaps() -> None:
    problem = replace(PROBLEM, constraints=Constraints(one_request=True))
    assert {estimate.scheme for estimate in compare(problem)} == set(SIMPLE)
    cut = cut_at(STREAMS, frozenset({0, 2}))
    assert make_plan(problem, cut=cut).scheme == "partition"
    for scheme in ("joint", "opss"):
        with pytest.raises(InputError, match="overlaps uploads with computation, which one"):
            make_plan(problem, scheme)


def test_a_deadline_that_only_one_plan_just_keeps() -> None:
    """The search for the most frames per second within the deadline misses it."""
    graph = graph_of([(0, 1), (0, 3), (2, 3)], 4)
    names = (*graph.inputs, *(layer.outputs[0] for layer in graph.layers))
    download_s = {name: {"t1": 2.0, "t3": 1.0}.get(name, 0.0) for name in names}
    costs = Costs(
        (0.0, 0.0, 2.0, 2.0),
        (0.0, 0.0, 1.0, 0.0),
        dict.fromkeys(names, 1.0),
        download_s,
        dict.fromkeys(names, 1),
    )
    stream = Constraints(Objective.THROUGHPUT)
    free = PlanningProblem(graph, costs, stream)
    fastest_s = min(candidate.latency_s for candidate in decide(free).candidates)
    limited = replace(free, constraints=replace(stream, deadline_s=fastest_s))
    assert decide(limited).chosen.latency_s <= fastest_s
