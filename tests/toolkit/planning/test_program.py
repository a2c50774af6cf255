import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.graph.model import Graph
from offload.planning.cut import Cut, all_cloud, all_local, cut_at
from offload.planning.cut_costs import Costs
from offload.planning.plan import Action, Plan, Side
from offload.planning.planner import SIMPLE, compare, decide, error_margin_s, make_plan
from offload.planning.problem import PlanningProblem
from offload.planning.program import Program, pipelined, scheduling_problem, serial
from offload.planning.scheme import Scheme, estimate_program
from offload.scheduling.solve import solve

from tests.toolkit.graphs import closed_sets, graph_of, graphs_with_costs


def run(graph: Graph, program: Program) -> set[str]:
    """Run a program on names alone: every segment must find its inputs where it runs."""
    device, server = set(graph.inputs), set[str]()
    segments = {segment.id: segment for segment in program.segments}
    for step in program.steps:
        if step.action is Action.SEND:
            assert step.target in device, f"{step.target} is sent before it exists"
            server.add(step.target)
        else:
            segment = segments.pop(step.target)
            assert set(segment.inputs) <= device
            device.update(segment.outputs)
    for segment in segments.values():
        assert segment.side is Side.SERVER
        assert set(segment.inputs) <= server
        server.update(segment.outputs)
    return device | {send.tensor for send in program.downloads if send.tensor in server}


def predicted_s(problem: PlanningProblem, cut: Cut, program: Program) -> float:
    return estimate_program(problem, Scheme.OPSS, cut, program).latency_s


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Graph, Costs, Cut]:
    graph, costs = draw(graphs_with_costs(7))
    return graph, costs, cut_at(graph, draw(st.sampled_from(closed_sets(graph))))


@given(cuts())
def test_programs_deliver_every_output_for_every_cut(drawn: tuple[Graph, Costs, Cut]) -> None:
    graph, costs, cut = drawn
    scheduling = scheduling_problem(graph, costs, cut)
    order = solve(scheduling.instance).order if scheduling else ()
    programs = [serial(graph, costs, cut)]
    programs += [pipelined(graph, costs, cut, scheduling, order)] if scheduling else []
    for program in programs:
        assert run(graph, program) >= set(graph.outputs)
        nodes = [node for segment in program.segments for node in segment.nodes]
        assert sorted(nodes) == list(range(len(graph.layers))), "every layer runs exactly once"
        assert [send.tensor for send in program.uploads] == [
            step.target for step in program.steps if step.action is Action.SEND
        ]


@given(cuts())
def test_a_segment_ends_at_each_tensor_to_send(drawn: tuple[Graph, Costs, Cut]) -> None:
    graph, costs, cut = drawn
    scheduling = scheduling_problem(graph, costs, cut)
    if scheduling is None:
        return
    program = pipelined(graph, costs, cut, scheduling, solve(scheduling.instance).order)
    for before, after in zip(program.steps, program.steps[1:], strict=False):
        assert not (before.action is Action.RUN and after.action is Action.RUN)


@given(cuts())
def test_prediction_agrees_with_the_scheduler_and_the_serial_sum(
    drawn: tuple[Graph, Costs, Cut],
) -> None:
    graph, costs, cut = drawn
    problem = PlanningProblem(graph, costs)
    scheduling = scheduling_problem(graph, costs, cut)
    plain = predicted_s(problem, cut, serial(graph, costs, cut))
    assert plain <= sum(costs.stages_s(cut)) + 1e-9
    if scheduling:
        schedule = solve(scheduling.instance)
        program = pipelined(graph, costs, cut, scheduling, schedule.order)
        assert abs(predicted_s(problem, cut, program) - schedule.makespan_s) < 1e-9
        assert schedule.makespan_s <= plain + 1e-9


@given(graphs_with_costs(6))
def test_the_chosen_plan_is_slower_than_none_by_more_than_the_doubt(
    drawn: tuple[Graph, Costs],
) -> None:
    problem = PlanningProblem(*drawn)
    plan, choice = make_plan(problem), decide(problem)
    simple = [c.latency_s for c in choice.candidates if c.scheme in SIMPLE]
    assert plan.latency_s <= min(simple) * (1 + 1e-9)
    for other in choice.candidates:
        gain_s = plan.latency_s - other.latency_s
        assert gain_s <= error_margin_s(other, choice.chosen) + 1e-9
        if gain_s > 1e-6 * plan.latency_s:
            assert "within the prediction error" in plan.reason
    assert plan.lower_bound_s <= plan.latency_s + 1e-9
    assert plan.reason.endswith(".")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(graphs_with_costs(6))
def test_simple_schemes_are_what_they_say(drawn: tuple[Graph, Costs]) -> None:
    problem = PlanningProblem(*drawn)
    local, cloud, neurosurgeon, partition, opss, joint = compare(problem)
    assert local.cut == all_local(problem.graph)
    assert cloud.cut == all_cloud(problem.graph)
    assert partition.cut == opss.cut
    assert partition.latency_s <= neurosurgeon.latency_s + 1e-9
    assert opss.latency_s <= partition.latency_s + 1e-9
    assert joint.latency_s <= opss.latency_s + 1e-9


def test_a_segment_that_is_not_the_whole_model_costs_something_besides_its_layers() -> None:
    graph = graph_of([(0, 1), (1, 2)], 3)
    names = list(graph.tensors)
    plain = Costs((1.0,) * 3, (0.1,) * 3, dict.fromkeys(names, 2.0), dict.fromkeys(names, 0.5), {})
    produced = frozenset(graph.producer)
    parted = replace(plain, device_segment_s=0.25, server_segment_s=0.125, produced=produced)
    for cut in (all_local(graph), all_cloud(graph), cut_at(graph, {0})):
        program = serial(graph, plain, cut)
        before = predicted_s(PlanningProblem(graph, plain), cut, program)
        after = predicted_s(PlanningProblem(graph, parted), cut, program)
        extra_s = 0.375 if len(cut.device) == 1 else 0.0
        assert after == pytest.approx(before + extra_s)
        assert sum(parted.stages_s(cut)) == pytest.approx(after)
