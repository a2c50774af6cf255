"""The schedule: an order of the device's layers, its makespan and its lower bound."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from offload.scheduling.instance import Instance
from offload.scheduling.timeline import Timeline, simulate


@dataclass(frozen=True)
class Schedule:
    """The result of `solve`.

    Attributes:
        instance: the instance that was solved.
        order: job indexes in the order of computation.
        makespan_s: seconds from the start until the result is back.
        lower_bound_s: no order has a smaller makespan.
        status: `optimal` if the makespan is proved to be the smallest, else `feasible`.
        solver: name of the solver.
        seconds_s: seconds that the solver took.
        overlap: False for serial execution, where the device waits for each upload.
    """

    instance: Instance
    order: tuple[int, ...]
    makespan_s: float
    lower_bound_s: float
    status: Literal["optimal", "feasible"]
    solver: str
    seconds_s: float
    overlap: bool = True

    @property
    def gap(self) -> float:
        """Largest possible distance from the optimum, relative to the lower bound."""
        excess = self.makespan_s - self.lower_bound_s
        return excess / self.lower_bound_s if self.lower_bound_s > 0 else 0.0

    @cached_property
    def timeline(self) -> Timeline:
        """The simulated timeline; O(V log V) at the first access."""
        return simulate(self.instance, self.order, self.overlap)

    @property
    def names(self) -> tuple[str, ...]:
        """The order as layer names."""
        return tuple(self.instance.jobs[index].name for index in self.order)

    def to_json(self) -> dict[str, Any]:
        """`{"order", "makespan_s", "lower_bound_s", "status", "solver"}`, the order as names."""
        return {
            "order": list(self.names),
            "makespan_s": self.makespan_s,
            "lower_bound_s": self.lower_bound_s,
            "status": self.status,
            "solver": self.solver,
        }


@dataclass(frozen=True, slots=True)
class SolverResult:
    """The order that a solver found and what it proved.

    Attributes:
        order: job indexes in the order of computation.
        lower_bound_s: a proved lower bound on every makespan; 0 if the solver has none.
        proved: whether the order is proved to be optimal.
        overlap: False for serial execution.
    """

    order: tuple[int, ...]
    lower_bound_s: float = 0.0
    proved: bool = False
    overlap: bool = True


Solver = Callable[[Instance, float], SolverResult]
"""A function of the instance and a time limit in seconds; fast solvers ignore the limit."""


def simple_bound_s(instance: Instance) -> float:
    """A lower bound on the makespan from total device, uplink and server times.

    The first upload waits for the computation of its layer, so the shortest compute time of a cut
    point is added to the total upload time. O(V + E).
    """
    cuts = instance.cuts
    tail_s = instance.server_s + instance.download_s
    server_s = sum(job.compute_s for job in instance.server_jobs)
    if not cuts:
        return max(instance.total_compute_s, server_s + tail_s)
    lead_s = float(instance.times_s[0, list(cuts)].min())
    uplink_s = lead_s + instance.total_upload_s + tail_s
    return max(instance.total_compute_s, uplink_s, server_s + tail_s)
