"""`--on TARGET`: measure on a target instead of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.machine import THIS_MACHINE, Machine

from offload_cli.options import MACHINES, find_targets

OnOption = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="TARGET",
        help="Measure on a target: a name of devices.toml, user@host or a directory.",
        rich_help_panel=MACHINES,
    ),
]


@contextmanager
def machine_on(
    text: str, devices: Path, options: EngineOptions
) -> Iterator[tuple[Machine, EngineOptions]]:
    """The machine that `--on` names and how it runs models; this machine if it names none.

    Raises:
        InputError: the target is not understood, refuses the login, or has no runtime.
        ServerError: it cannot be reached.
    """
    if not text:
        yield THIS_MACHINE, options
        return
    from offload_runtimes.deploy.measuring import target_machine

    (target,) = find_targets([text], devices)
    options = EngineOptions(
        options.providers or target.providers,
        options.threads or target.threads,
        allow_cpu=options.allow_cpu or target.allow_cpu,
    )
    with target_machine(target) as machine:
        yield machine, options
