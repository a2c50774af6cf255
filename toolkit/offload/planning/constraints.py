"""What a plan is asked for: the objective, and the limits it must keep."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from offload.errors import InputError
from offload.graph.model import Graph
from offload.planning.mincut import ResourceWeights

Seconds = TypeVar("Seconds", float, npt.NDArray[np.float64])


class Objective(StrEnum):
    """What is to be smallest."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    ENERGY = "energy"


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


@dataclass(frozen=True)
class Constraints:
    """The objective and the limits.

    Attributes:
        objective: what is to be smallest: seconds from input to answer, seconds between two
            answers of a stream, or the device's joules per inference.
        pinned: layers that stay on the device, with all that they need.
        memory_bytes: the device's process must fit, runtime included.
        deadline_s: the latency must not exceed it.
        period_s: nor the time between two answers of a stream this.
        energy_j: nor the device's energy this.
        power: the device's power; energy can't be told without.
    """

    objective: Objective = Objective.LATENCY
    pinned: frozenset[int] = frozenset()
    memory_bytes: float | None = None
    deadline_s: float | None = None
    period_s: float | None = None
    energy_j: float | None = None
    power: Power | None = None

    def __post_init__(self) -> None:
        wants_energy = self.objective is Objective.ENERGY or self.energy_j is not None
        if wants_energy and self.power is None:
            raise InputError("energy needs the device's power: give --power IDLE,COMPUTE,SEND")
        for name in ("memory_bytes", "deadline_s", "period_s", "energy_j"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise InputError(f"the limit {name} must be positive, not {limit}")

    def energy(self, latency_s: Seconds, compute_s: Seconds, upload_s: Seconds) -> Seconds | float:
        """Joules of the device per inference; 0 where its power isn't known."""
        if self.power is None:
            return 0.0
        power = self.power
        return latency_s * power.idle_w + compute_s * power.compute_w + upload_s * power.send_w

    def value(
        self,
        latency_s: Seconds,
        compute_s: Seconds,
        upload_s: Seconds,
        server_s: Seconds,
        result_s: Seconds,
    ) -> npt.NDArray[np.float64]:
        """What is to be smallest, one number a plan; infinite where a limit is broken.

        It grows with each argument, so that lower bounds of them give a lower bound of it.
        Memory is not seen here: it depends on more than seconds.
        """
        energy = np.asarray(self.energy(latency_s, compute_s, upload_s))
        latency = np.asarray(latency_s)
        period = np.maximum(np.maximum(compute_s, upload_s), np.maximum(server_s, result_s))
        values = {
            Objective.LATENCY: latency,
            Objective.THROUGHPUT: period,
            Objective.ENERGY: energy,
        }
        limits = ((latency, self.deadline_s), (period, self.period_s), (energy, self.energy_j))
        broken = np.zeros_like(latency, dtype=np.bool_)
        for found, limit in limits:
            if limit is not None:
                broken |= found > limit * (1 + 1e-9)
        return np.where(broken, np.inf, values[self.objective])

    def relaxations(self) -> tuple[ResourceWeights, ...]:
        """Weights whose weighted sum of seconds no plan's value is below.

        The pipelined latency is at least max(F, G) + R >= aF + (1 - a)G + R for a in 0..1, with
        F what the device computes before its last upload; the period of a stream at least any
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
        """How much a second that the uplink idles at first raises a relaxation's bound."""
        if self.objective is Objective.THROUGHPUT:
            return 0.0
        if self.objective is Objective.LATENCY or self.power is None:
            return weights.upload
        return weights.upload - self.power.send_w


@dataclass(frozen=True)
class PlanRequest:
    """The objective and the limits before a graph is known.

    Attributes:
        objective: `latency`, `throughput` or `energy`.
        pin_device: so many first layers stay on the device.
        keep_input: the model's inputs never leave the device.
        memory_bytes: the device's process must fit, runtime included.
        deadline_s: the latency must not exceed it.
        energy_j: nor the device's joules per inference this.
        power: the device's power.
    """

    objective: str = Objective.LATENCY.value
    pin_device: int = 0
    keep_input: bool = False
    memory_bytes: float | None = None
    deadline_s: float | None = None
    energy_j: float | None = None
    power: Power | None = None


def constraints_of(wish: PlanRequest, graph: Graph) -> Constraints:
    """The wish for one graph: pinned layers by index.

    Raises:
        InputError: an unknown objective, more layers pinned than there are, or energy asked for
            without the device's power.
    """
    known = [objective.value for objective in Objective]
    if wish.objective not in known:
        raise InputError(
            f"objective {wish.objective!r} is not known: use one of {', '.join(known)}"
        )
    if not 0 <= wish.pin_device <= len(graph.layers):
        raise InputError(
            f"{wish.pin_device} layers cannot be pinned: the model has {len(graph.layers)}"
        )
    pinned = set(range(wish.pin_device))
    if wish.keep_input:
        pinned.update(user for name in graph.inputs for user in graph.consumers.get(name, ()))
    return Constraints(
        objective=Objective(wish.objective),
        pinned=frozenset(pinned),
        memory_bytes=wish.memory_bytes,
        deadline_s=wish.deadline_s,
        energy_j=wish.energy_j,
        power=wish.power,
    )
