"""`offload testbed`: a device, a link and a server on one machine."""

import os
import sys
from typing import Annotated

import typer
from offload.costs.link import parse_link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import host, testbed

from offload_cli.options import FormatOption, LinkOption
from offload_cli.output import Format, Output

app = typer.Typer(
    name="testbed",
    help="Emulate a device, a link and a server on one machine (root).",
    no_args_is_help=True,
)
NameOption = Annotated[str, typer.Option(help="Name the testbed.")]


@app.command()
def up(
    link: LinkOption = "wifi",
    name: NameOption = "lab",
    form: FormatOption = Format.TEXT,
) -> None:
    """Create a testbed; it stays until `offload testbed down`.

    Two network namespaces are joined by a veth pair; a token bucket shapes both ends. Remains of
    killed testbeds are removed first.

    Example: `offload testbed up --link wifi`, then
    `offload testbed run server -- offload serve net.bundle --listen 0.0.0.0:50051 --insecure`
    """
    output = Output(form)
    parsed = parse_link(link)
    _remove_remains(output)
    bed = testbed.up(testbed.named(name), parsed)
    output.result(_json(bed), f"{_sentence(bed)}, {parsed.describe()}")


@app.command()
def down(name: NameOption = "lab", form: FormatOption = Format.TEXT) -> None:
    """Remove a testbed and all processes in it."""
    output = Output(form)
    _remove_remains(output)
    testbed.find(name).down()
    output.result({"removed": name}, f"removed {name}")


@app.command()
def status(form: FormatOption = Format.TEXT) -> None:
    """Show whether this machine can run testbeds, and which are up."""
    output = Output(form)
    obstacle, quotas = host.obstacle(), host.cpu_controller()
    testbeds = testbed.testbeds()
    output.result(
        {
            "able": obstacle is None,
            "obstacle": obstacle,
            "cpu_quotas": quotas.version if quotas else None,
            "testbeds": [_json(bed) for bed in testbeds],
        },
        obstacle or "this machine can have testbeds",
    )
    means = f"control groups version {quotas.version}" if quotas else "none: slow down by pacing"
    output.text(f"CPU quotas: {means}")
    for bed in testbeds:
        output.text(_sentence(bed))


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    side: Annotated[Side, typer.Argument(help="`device` or `server`.")],
    command: Annotated[list[str], typer.Argument(help="The command, after `--`.")],
    name: NameOption = "lab",
    slowdown: Annotated[
        float,
        typer.Option(min=1.0, metavar="FACTOR", help="Limit the command to 1/FACTOR of one CPU."),
    ] = 1.0,
) -> None:
    """Run a command on one side of a testbed.

    `offload testbed status` shows the addresses.

    Example: `offload testbed run --slowdown 5 device -- offload run net.bundle --input in.npz
    --server 198.18.7.2:50051`
    """
    lab = testbed.find(name)
    if slowdown > 1:
        lab.slow(os.getpid(), slowdown)
    words = lab.command(side, command)
    sys.stdout.flush()
    try:
        os.execvp(words[0], words)
    except FileNotFoundError as error:
        raise InputError(f"the command {words[0]!r} is missing: install iproute2") from error


def _remove_remains(output: Output) -> None:
    for removed in testbed.sweep():
        output.remark(f"removed the remains of testbed {removed.name}")


def _json(bed: testbed.Testbed) -> dict[str, object]:
    return {
        "name": bed.name,
        "namespaces": {side.value: bed.namespace(side) for side in Side},
        "addresses": {side.value: bed.address(side) for side in Side},
    }


def _sentence(bed: testbed.Testbed) -> str:
    device, server = (bed.address(side) for side in Side)
    return f"{bed.name}: device {device}, server {server}"
