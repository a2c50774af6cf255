"""What a solver is: a function from an instance and a budget to an order with a certificate."""

from collections.abc import Callable
from dataclasses import dataclass

from offload.schedule.instance import Instance


@dataclass(frozen=True, slots=True)
class Found:
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


Solver = Callable[[Instance, float], Found]
"""Takes the instance and the seconds it may spend; a quick solver ignores the latter."""
