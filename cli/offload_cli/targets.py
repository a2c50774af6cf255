"""Where the verbs that deploy find their targets."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from offload.errors import OffloadError, sentence
from offload_runtimes.deploy.place import DEVICES, Place, find_place, read_devices

from offload_cli.output import Output

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
TargetsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Names from devices.toml, `user@host[:port][/directory]`, or directories.",
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


Found = TypeVar("Found")


def on_each(places: Sequence[Place], do: Callable[[Place], Found]) -> list[Found | OffloadError]:
    """Do something at each target, all at once; why it failed stands in a target's place."""

    def one(place: Place) -> Found | OffloadError:
        try:
            return do(place)
        except OffloadError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(places))) as pool:
        return list(pool.map(one, places))


def report_errors(output: Output, errors: Sequence[OffloadError]) -> None:
    """Print one sentence for each target that failed; exits with 1 if any did.

    Raises:
        OffloadError: the only one.
    """
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        output.error(sentence(error))
    if errors:
        raise typer.Exit(1)
