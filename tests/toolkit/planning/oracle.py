"""What cuts cost, one at a time and by the definition."""

import numpy as np
import pytest
from offload.graph.model import Graph
from offload.planning.closed_sets import closed_sets, set_costs
from offload.planning.cut import Cut, cut_at
from offload.planning.cut_costs import Costs
from offload.planning.program import scheduling_problem
from offload.scheduling.solve import solve


def solved_s(graph: Graph, costs: Costs, cut: Cut) -> float:
    """The overlapped makespan of a cut in its best order."""
    problem = scheduling_problem(graph, costs, cut)
    if problem is None:
        return costs.server_time_s(cut) + costs.download_time_s(cut)
    return solve(problem.instance).makespan_s


def assert_set_costs_are_right(graph: Graph, costs: Costs) -> None:
    """The table of all closed sets sums as the costs of each say, and bounds from below."""
    table = closed_sets(graph)
    assert table is not None
    sums = set_costs(graph, costs, table)
    for column in range(table.shape[1]):
        cut = cut_at(graph, frozenset(np.flatnonzero(table[:, column]).tolist()))
        assert [s[column] for s in sums.stages_s] == pytest.approx(costs.stages_s(cut))
        assert sums.uploads[column] == len(cut.uploads)
        assert sums.latency_s[column] <= solved_s(graph, costs, cut) + 1e-9
