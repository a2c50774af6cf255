"""The device set whose best order is best: chosen for the overlapped latency, not for the sum."""

from dataclasses import dataclass
from typing import Literal

from offload.graph.model import Graph
from offload.partition.branch import branch_and_bound
from offload.partition.costs import Costs
from offload.partition.cut import Cut
from offload.partition.demand import Demand
from offload.partition.incumbent import Incumbent, LatencyOf
from offload.partition.sets import closed_sets

LATENCY = Demand()


@dataclass(frozen=True)
class Joint:
    """The cut found.

    Attributes:
        cut: None when no cut keeps the limits.
        value: what was to be smallest, of this cut.
        lower_bound: no cut has a smaller value.
        status: `optimal` when the bound is met, else `feasible`.
        priced: how many cuts were ordered to the end.
        near: some cuts of several tensors that are not much worse.
    """

    cut: Cut | None
    value: float
    lower_bound: float
    status: Literal["optimal", "feasible"]
    priced: int
    near: tuple[Cut, ...] = ()


def joint(
    graph: Graph,
    costs: Costs,
    latency_of: LatencyOf,
    demand: Demand = LATENCY,
    limit: int = 50_000,
    budget_s: float = 1.0,
) -> Joint:
    """Find the device set with the smallest value when its layers are ordered best.

    Where there are few closed sets all are listed, bounded at once (`tally`) and ordered in
    order of their bounds until the next bound passes the best: exact. Above the limit, branch
    and bound on "this layer stays" / "this layer leaves", bounded by minimum cuts; it ends with
    the best found and a lower bound when the budget does.

    Args:
        graph: the layers.
        costs: their seconds.
        latency_of: the latency of a cut with its best order, and a lower bound on it.
        demand: the objective and the limits.
        limit: the most sets to list.
        budget_s: seconds that the search may take.
    """
    best = Incumbent(graph, costs, latency_of, demand, budget_s)
    pinned = graph.ancestors(demand.pinned)
    table = closed_sets(graph, pinned, limit)
    bound = branch_and_bound(best, pinned) if table is None else best.offer_by_bounds(table)
    bound = min(bound, best.proved_floor)
    status: Literal["optimal", "feasible"] = "optimal" if best.beats(bound) else "feasible"
    return Joint(best.cut, best.value, bound, status, len(best.priced), tuple(best.near))
