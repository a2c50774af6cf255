"""What a person asks for, in words of the model; `demand_of` puts it in terms of its layers."""

from dataclasses import dataclass

from offload.errors import InputError
from offload.graph.model import Graph
from offload.partition.demand import Demand, Objective, Power


@dataclass(frozen=True)
class Wish:
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


def demand_of(wish: Wish, graph: Graph) -> Demand:
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
    return Demand(
        objective=Objective(wish.objective),
        pinned=frozenset(pinned),
        memory_bytes=wish.memory_bytes,
        deadline_s=wish.deadline_s,
        energy_j=wish.energy_j,
        power=wish.power,
    )
