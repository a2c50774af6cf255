"""Where the verbs that deploy find their targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from offload_runtimes.deploy.place import DEVICES, Place, find_place, read_devices

DevicesOption = Annotated[
    Path, typer.Option("--devices", help="The file that names your devices and servers.")
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        help="A name from devices.toml, `user@host[:port][/directory]`, or a directory.",
        show_default=False,
    ),
]
DEFAULT_DEVICES = Path(DEVICES)


def find_places(texts: Sequence[str], devices: Path) -> list[Place]:
    """The targets a user means, each once.

    Raises:
        InputError: one isn't understood, or the file of devices is wrong.
    """
    known = read_devices(devices)
    return list(dict.fromkeys(find_place(text, known) for text in texts))
