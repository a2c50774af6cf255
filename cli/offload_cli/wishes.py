"""Options that say what a plan shall be best in and what it must keep."""

from typing import Annotated

import typer
from offload.planning.constraints import Power, Wish
from offload.units import parse_bytes, parse_duration_s, parse_energy_j

DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="The device's profile, or its FLOP/s like `5e9` for an estimate; default: measured"
        " here."
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        help="The server's profile, or its FLOP/s like `1e11` for an estimate; default: measured"
        " here."
    ),
]
ObjectiveOption = Annotated[
    str,
    typer.Option(
        help="What shall be best: `latency` of one inference, `throughput` of a stream of frames,"
        " or the device's `energy` (needs --power)."
    ),
]
PinOption = Annotated[
    int, typer.Option("--pin-device", min=0, help="So many first layers stay on the device.")
]
KeepInputOption = Annotated[
    bool, typer.Option("--keep-input", help="The model's inputs never leave the device.")
]
MemoryOption = Annotated[
    str, typer.Option(help="The device's process must fit in this, like '256 MB'.")
]
DeadlineOption = Annotated[
    str, typer.Option(help="The predicted latency must not exceed this, like '100 ms'.")
]
EnergyOption = Annotated[
    str, typer.Option(help="The device's energy per inference must not exceed this, like '250 mJ'.")
]
PowerOption = Annotated[
    str,
    typer.Option(
        help="The device's watts at rest, and what computing and sending add: IDLE,COMPUTE,SEND."
    ),
]


def wish(
    objective: str,
    pin_device: int,
    keep_input: bool,
    memory: str,
    deadline: str,
    energy: str,
    power: str,
) -> Wish:
    """The wish of the options.

    Raises:
        InputError: a quantity is not understood.
    """
    return Wish(
        objective=objective,
        pin_device=pin_device,
        keep_input=keep_input,
        memory_bytes=parse_bytes(memory) if memory else None,
        deadline_s=parse_duration_s(deadline) if deadline else None,
        energy_j=parse_energy_j(energy) if energy else None,
        power=Power.parse(power) if power else None,
    )
