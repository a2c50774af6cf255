"""The schedule: an order of the device's layers, its makespan and its certificate."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from offload.scheduling.instance import Instance
from offload.scheduling.timeline import Timeline, simulate

Status = Literal["optimal", "feasible"]


@dataclass(frozen=True)
class Schedule:
    """What a solver found.

    Attributes:
        instance: what was to be scheduled.
        order: job indexes in the order of computation.
        makespan_s: seconds from the start until the result is back.
        lower_bound_s: no order is faster than this.
        status: `optimal` when the makespan is proved to be the smallest, else `feasible`.
        solver: name of the solver.
        seconds_s: seconds the solver took.
        overlap: False for the serial execution, where the device waits for each upload.
    """

    instance: Instance
    order: tuple[int, ...]
    makespan_s: float
    lower_bound_s: float
    status: Status
    solver: str
    seconds_s: float
    overlap: bool = True

    @property
    def gap(self) -> float:
        """How far the makespan can be from the smallest, relative to the lower bound."""
        excess = self.makespan_s - self.lower_bound_s
        return excess / self.lower_bound_s if self.lower_bound_s > 0 else 0.0

    @cached_property
    def timeline(self) -> Timeline:
        """Who does what from when to when; O(V log V) when first asked for."""
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


def cut_order(schedule: Schedule) -> tuple[int, ...]:
    """Indexes of the jobs that upload something, in the order of their uploads."""
    upload_s = schedule.instance.upload_s
    return tuple(index for index in schedule.order if upload_s[index] > 0)


@dataclass(frozen=True, slots=True)
class SolverResult:
    """An order and what is known about it.

    Attributes:
        order: job indexes in the order of computation.
        lower_bound_s: a proved lower bound on every makespan; 0 when none was sought.
        proved: the order is proved to be optimal.
        overlap: False for the serial execution.
    """

    order: tuple[int, ...]
    lower_bound_s: float = 0.0
    proved: bool = False
    overlap: bool = True


Solver = Callable[[Instance, float], SolverResult]
"""Takes the instance and the seconds it may spend; a quick solver ignores the latter."""


def simple_bound_s(instance: Instance) -> float:
    """No faster than the device alone, nor than the uplink with its shortest lead and tail.

    The first upload waits for its layer's compute; something uploads after the last compute of
    those that a cut point needs. O(V + E).
    """
    cuts = instance.cuts
    tail_s = instance.server_s + instance.download_s
    server_s = sum(job.compute_s for job in instance.server_jobs)
    if not cuts:
        return max(instance.total_compute_s, server_s + tail_s)
    lead_s = float(instance.times_s[0, list(cuts)].min())
    uplink_s = lead_s + instance.total_upload_s + tail_s
    return max(instance.total_compute_s, uplink_s, server_s + tail_s)
