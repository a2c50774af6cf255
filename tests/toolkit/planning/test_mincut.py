from dataclasses import replace

import pytest
from hypothesis import given, settings
from offload.graph.model import Graph
from offload.planning.cut import all_cloud, all_local, cut_at
from offload.planning.cut_costs import Costs
from offload.planning.mincut import min_cut

from tests.toolkit.graphs import closed_sets, graphs_with_costs


@given(graphs_with_costs())
@settings(max_examples=300)
def test_min_cut_is_the_best_of_all_closed_sets(drawn: tuple[Graph, Costs]) -> None:
    graph, costs = drawn
    best = min(sum(costs.stages_s(cut_at(graph, device))) for device in closed_sets(graph))
    assert sum(costs.stages_s(min_cut(graph, costs))) == pytest.approx(best)


@given(graphs_with_costs())
def test_local_and_cloud_come_out_as_special_cases(drawn: tuple[Graph, Costs]) -> None:
    graph, costs = drawn
    never = replace(costs, upload_s=dict.fromkeys(costs.upload_s, 1e9))
    assert min_cut(graph, never) == all_local(graph)
    free = replace(
        costs,
        device_s=(1e9,) * len(graph.layers),
        upload_s={name: 0.0 if name == "x" else 1e9 for name in costs.upload_s},
    )
    assert min_cut(graph, free) == all_cloud(graph)


@given(graphs_with_costs())
def test_never_cuts_at_a_tensor_of_unknown_size(drawn: tuple[Graph, Costs]) -> None:
    graph, costs = drawn
    unsized = frozenset(costs.upload_s) - {"x"}
    assert not unsized & set(min_cut(graph, replace(costs, unsized=unsized)).uploads)
