"""`offload testbed`: a device, a link and a server out of one machine."""

import os
import sys
from typing import Annotated

import typer
from offload.costs.link import parse_link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import host
from offload_runtimes.emulation import testbed as bed

from offload_cli.options import FormatOption, LinkOption
from offload_cli.output import Format, Output

app = typer.Typer(
    name="testbed",
    help="Two machines out of one: network namespaces, a shaped link, a slow device. Needs root.",
    no_args_is_help=True,
)
NameOption = Annotated[str, typer.Option(help="The testbed's name.")]


@app.command()
def up(
    link: LinkOption = "wifi",
    name: NameOption = "lab",
    form: FormatOption = Format.TEXT,
) -> None:
    """Make a testbed; it stays until `offload testbed down`.

    Two namespaces are joined by a veth pair whose both ends are shaped by a token bucket. What
    killed runs have left behind is removed first.

    Example: `offload testbed up --link wifi`, then
    `offload testbed run server -- offload serve net.bundle --listen 0.0.0.0:50051 --insecure`
    """
    output = Output(form)
    asked = parse_link(link)
    for gone in bed.sweep():
        output.remark(f"removed what {gone.name} had left behind")
    made = bed.up(bed.named(name), asked)
    output.result(_json(made), f"{_sentence(made)}, {asked.describe()}")


@app.command()
def down(name: NameOption = "lab", form: FormatOption = Format.TEXT) -> None:
    """Take a testbed down, with all that runs in it."""
    output = Output(form)
    for gone in bed.sweep():
        output.remark(f"removed what {gone.name} had left behind")
    found = bed.find(name)
    found.down()
    output.result({"removed": name}, f"removed {name}")


@app.command()
def status(form: FormatOption = Format.TEXT) -> None:
    """Say whether this machine can have testbeds, and which are up."""
    output = Output(form)
    why_not, quotas = host.obstacle(), host.cpu_controller()
    found = bed.testbeds()
    output.result(
        {
            "able": why_not is None,
            "obstacle": why_not,
            "cpu_quotas": quotas.version if quotas else None,
            "testbeds": [_json(layout) for layout in found],
        },
        why_not or "this machine can have testbeds",
    )
    kept = f"control groups version {quotas.version}" if quotas else "none: slow by pacing"
    output.text(f"CPU quotas: {kept}")
    for layout in found:
        output.text(_sentence(layout))


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    side: Annotated[Side, typer.Argument(help="`device` or `server`.")],
    command: Annotated[list[str], typer.Argument(help="What to run there, after `--`.")],
    name: NameOption = "lab",
    slowdown: Annotated[
        float, typer.Option(min=1.0, help="Give it this fraction of one CPU: 5 means a fifth.")
    ] = 1.0,
) -> None:
    """Run a command on a side of a testbed, in place of this process.

    Example: `offload testbed run --slowdown 5 device -- offload run net.bundle --input in.npz
    --server 198.18.7.2:50051` (`offload testbed status` shows the addresses)
    """
    found = bed.find(name)
    if slowdown > 1:
        found.slow(os.getpid(), slowdown)
    words = found.command(side, command)
    sys.stdout.flush()
    try:
        os.execvp(words[0], words)
    except FileNotFoundError as error:
        raise InputError(f"the command {words[0]!r} is missing: install iproute2") from error


def _json(layout: bed.Testbed) -> dict[str, object]:
    return {
        "name": layout.name,
        "namespaces": {side.value: layout.namespace(side) for side in Side},
        "addresses": {side.value: layout.address(side) for side in Side},
    }


def _sentence(layout: bed.Testbed) -> str:
    device, server = (layout.address(side) for side in Side)
    return f"{layout.name}: device {device}, server {server}"
