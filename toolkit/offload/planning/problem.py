"""The planning problem: a graph, its costs, the objective to minimise and the limits to keep."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from offload.costs.encoding_table import EncodingTable
from offload.costs.link import Link
from offload.costs.profile import Profile
from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.cut_costs import CLIENT_BYTES, Costs, costs_of
from offload.planning.mincut import ResourceWeights

Seconds = TypeVar("Seconds", float, npt.NDArray[np.float64])


class Objective(StrEnum):
    """The quantity to minimise."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    ENERGY = "energy"

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """The objective of that name.

        Raises:
            InputError: there is none.
        """
        known = [objective.value for objective in cls]
        if text not in known:
            raise InputError(f"objective {text!r} is not known: use one of {', '.join(known)}")
        return cls(text)


@dataclass(frozen=True, slots=True)
class Power:
    """Watts of the device: at rest, and what computing and sending add to that."""

    idle_w: float
    compute_w: float
    send_w: float

    @classmethod
    def parse(cls, text: str) -> "Power":
        """From `IDLE,COMPUTE,SEND` watts, like `2.0,3.5,0.8`.

        Raises:
            InputError: not three numbers, or one below zero.
        """
        try:
            idle_w, compute_w, send_w = (float(part) for part in text.split(","))
        except ValueError as error:
            raise InputError(
                f"power {text!r} is not understood: write watts as IDLE,COMPUTE,SEND,"
                " like 2.0,3.5,0.8"
            ) from error
        return cls(idle_w, compute_w, send_w)

    def __post_init__(self) -> None:
        if min(self.idle_w, self.compute_w, self.send_w) < 0:
            raise InputError("power must not be negative: give watts for idle, compute and send")


PI_4B = Power(2.7, 3.7, 0.7)
"""Raspberry Pi 4B: idle 2.7 W, all cores busy 6.4 W; its radio adds about 0.7 W while sending."""


@dataclass(frozen=True)
class Constraints:
    """The objective and the limits.

    Attributes:
        objective: what to minimise: seconds from input to output, seconds between two outputs of
            a stream, or the device's joules per inference.
        pin_device: the first N layers stay on the device.
        keep_input: the model's inputs never leave the device.
        memory_bytes: limit on the memory of the device's process, runtime included.
        deadline_s: limit on the latency.
        period_s: limit on the time between two outputs of a stream.
        energy_j: limit on the device's energy per inference.
        power: the device's power; needed for energy.
        one_request: all uploads of an inference go in one message, when the last one is ready, so
            that nothing overlaps within an inference (a server of KServe v2).
    """

    objective: Objective = Objective.LATENCY
    pin_device: int = 0
    keep_input: bool = False
    memory_bytes: float | None = None
    deadline_s: float | None = None
    period_s: float | None = None
    energy_j: float | None = None
    power: Power | None = None
    one_request: bool = False

    def __post_init__(self) -> None:
        needs_power = self.objective is Objective.ENERGY or self.energy_j is not None
        if needs_power and self.power is None:
            raise InputError("energy needs the device's power: give --power IDLE,COMPUTE,SEND")
        for name in ("memory_bytes", "deadline_s", "period_s", "energy_j"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise InputError(f"the limit {name} must be positive, not {limit}")

    def energy(self, latency_s: Seconds, device_s: Seconds, upload_s: Seconds) -> Seconds | float:
        """Joules of the device per inference; 0 where its power isn't known."""
        if self.power is None:
            return 0.0
        power = self.power
        return latency_s * power.idle_w + device_s * power.compute_w + upload_s * power.send_w

    def value(
        self,
        latency_s: Seconds,
        device_s: Seconds,
        upload_s: Seconds,
        server_s: Seconds,
        download_s: Seconds,
    ) -> npt.NDArray[np.float64]:
        """The objective's value, one number a plan; infinite where a limit is broken.

        It grows with each argument, so that lower bounds of them give a lower bound of it.
        The memory limit is not checked here: it depends on more than seconds.
        """
        energy = np.asarray(self.energy(latency_s, device_s, upload_s))
        latency = np.asarray(latency_s)
        period = np.maximum(np.maximum(device_s, upload_s), np.maximum(server_s, download_s))
        values = {
            Objective.LATENCY: latency,
            Objective.THROUGHPUT: period,
            Objective.ENERGY: energy,
        }
        limits = ((latency, self.deadline_s), (period, self.period_s), (energy, self.energy_j))
        broken = np.zeros_like(latency, dtype=np.bool_)
        for figure, limit in limits:
            if limit is not None:
                broken |= figure > limit * (1 + 1e-9)
        return np.where(broken, np.inf, values[self.objective])

    def relaxations(self) -> tuple[ResourceWeights, ...]:
        """Weights with which the weighted sum of seconds is a lower bound on every plan's value.

        The pipelined latency is at least max(F, G) + R >= aF + (1 - a)G + R for a in 0..1, with
        F what the device computes before its last upload; the period of a stream is at least any
        mean of F, G and R, with F all that the device computes.
        """
        if self.objective is Objective.THROUGHPUT:
            shares = [(a / 4, b / 4) for a in range(5) for b in range(5 - a)]
            return tuple(ResourceWeights(a, b, 1 - a - b, 0.0) for a, b in shares)
        lines = [step / 4 for step in range(5)]
        if self.objective is Objective.LATENCY or self.power is None:
            return tuple(ResourceWeights(0.0, 1 - a, awaited=a) for a in lines)
        p = self.power
        idle = p.idle_w
        return tuple(
            ResourceWeights(p.compute_w, idle * (1 - a) + p.send_w, idle, idle, idle * a)
            for a in lines
        )

    def lead_weight(self, weights: ResourceWeights) -> float:
        """How much a second before the first upload raises a relaxation's bound."""
        if self.objective is Objective.THROUGHPUT:
            return 0.0
        if self.objective is Objective.LATENCY or self.power is None:
            return weights.upload
        return weights.upload - self.power.send_w


@dataclass(frozen=True)
class PlanningProblem:
    """A graph, its costs and the constraints: the input of every scheme and search.

    Attributes:
        graph: the layers.
        costs: of layers and tensors.
        constraints: the objective and the limits.
        link: the link of the costs; None where they were given by hand.
        client_bytes: memory of the device's process before it has loaded a model.

    Raises:
        InputError: more layers are pinned than the graph has.
    """

    graph: Graph
    costs: Costs
    constraints: Constraints = field(default_factory=Constraints)
    link: Link | None = None
    client_bytes: int = CLIENT_BYTES

    def __post_init__(self) -> None:
        count, pinned = len(self.graph.layers), self.constraints.pin_device
        if not 0 <= pinned <= count:
            raise InputError(f"{pinned} layers cannot be pinned: the model has {count}")

    @classmethod
    def of(
        cls,
        graph: Graph,
        device: Profile,
        server: Profile,
        link: Link,
        constraints: Constraints | None = None,
        table: EncodingTable | None = None,
    ) -> "PlanningProblem":
        """The problem with costs from profiles; `table` as for `costs_of`.

        Raises:
            InputError: a profile belongs to another model or version, or more layers are pinned
                than there are.
        """
        costs = costs_of(graph, device, server, link, table)
        client_bytes = device.client_bytes or CLIENT_BYTES
        return cls(graph, costs, constraints or Constraints(), link, client_bytes)

    @cached_property
    def pinned(self) -> frozenset[int]:
        """The layers that must stay on the device, with all that they need."""
        layers = set(range(self.constraints.pin_device))
        if self.constraints.keep_input:
            consumers = self.graph.consumers
            layers.update(user for name in self.graph.inputs for user in consumers.get(name, ()))
        return frozenset(self.graph.ancestors(layers))
