"""What cuts cost, one at a time and by the definition; what rate a mix of plans may have."""

import itertools
from collections.abc import Iterable, Sequence

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


def best_rate_hz(uses: Iterable[Sequence[float]]) -> float:
    """The optimum of the linear program by listing its vertices.

    Each is the solution with four of the plans and slacks; the largest rate of those that use no
    resource for more than a second a second.
    """
    columns = np.unique(np.array(list(uses), dtype=float), axis=0)
    if not columns.max(axis=1).min():
        return float("inf")
    table = np.vstack([columns, np.eye(4)])
    choices = np.array(list(itertools.combinations(range(len(table)), 4)))
    bases = table[choices].transpose(0, 2, 1)
    with np.errstate(divide="ignore"):  # the elimination divides by a singular matrix's zero pivot
        is_regular = np.abs(np.linalg.det(bases)) > 1e-9
    bases, choices = bases[is_regular], choices[is_regular]
    solutions = np.linalg.solve(bases, np.ones((len(bases), 4, 1)))[:, :, 0]
    rates = np.where(choices < len(columns), solutions, 0.0).sum(axis=1)
    return float(rates[(solutions >= -1e-9).all(axis=1)].max())
