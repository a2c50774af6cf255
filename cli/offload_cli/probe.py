"""`offload probe`: measure bandwidth and delay of the link to a server."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.link_fit import fit_link
from offload.errors import InputError
from offload.files import write_text
from offload.units import format_bps, format_s
from offload_runtimes.deploy.measuring import probe_between
from offload_runtimes.deploy.targets import DEVICES
from offload_runtimes.measure.probe import probe as measure_link
from offload_runtimes.measure.probe import until_steady

from offload_cli.options import (
    CaOption,
    CertificateOption,
    DevicesOption,
    FormatOption,
    KeyOption,
    TokenOption,
    client_security,
    find_targets,
)
from offload_cli.output import Format, Output


def probe(
    server: Annotated[
        str,
        typer.Argument(metavar="HOST:PORT", help="Address of `offload serve`.", show_default=False),
    ] = "",
    device: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TARGET",
            help="Send from this target instead of this machine: a name of devices.toml, user@host"
            " or a directory.",
        ),
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="With --from, instead of HOST:PORT: a target on which a server answers probes as"
            " long as this takes.",
        ),
    ] = "",
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="With --to: plaintext instead of certificates made for it."
        ),
    ] = False,
    devices: DevicesOption = Path(DEVICES),
    path: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Also write the link to this file, for `split --link`."
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Time N messages of each size.")
    ] = 5,
    ca: CaOption = None,
    cert: CertificateOption = None,
    key: KeyOption = None,
    token_file: TokenOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Measure bandwidth and delay of the link to a server.

    Times messages of several sizes in each direction and fits a line: seconds = c + bytes / b.
    If the times vary too much to fit one, it times more, and fails after three attempts.

    With --from and --to both ends are targets, which need the runtime (`offload device init`).

    Example: `offload probe 192.0.2.7:50051 -o link.json` or
    `offload probe --from pi --to hub -o link.json`, then `offload split ... --link link.json`
    """
    output = Output(form)
    if bool(server) == bool(to) or (to and not device) or (device and not to):
        raise InputError("give HOST:PORT of a server, or two targets: --from DEVICE --to SERVER")
    security = client_security(ca, cert, key, token_file)
    with output.steps() as progress:
        if to:
            (sender,), (receiver,) = (find_targets([name], devices) for name in (device, to))
            progress(f"timing messages from {device} to {to}")
            samples = until_steady(
                lambda: probe_between(sender, receiver, repeats, insecure=insecure)
            )
        else:
            progress(f"timing messages to {server}")
            samples = until_steady(lambda: measure_link(server, repeats=repeats, security=security))
        link = fit_link(samples)
    if path:
        write_text(path, json.dumps(link.to_json(), indent=1))
        output.remark(f"wrote {path}")
    output.result(link.to_json(), f"link from {device} to {to}" if to else f"link to {server}")
    directions = (
        ("up", link.up_bps, link.up_start_s, link.up_r2),
        ("down", link.down_bps, link.down_start_s, link.down_r2),
    )
    output.table(
        ("direction", ">bandwidth b", ">start-up c", ">r2"),
        (
            (direction, format_bps(rate_bps), format_s(start_s), f"{r2 or 0:.4f}")
            for direction, rate_bps, start_s, r2 in directions
        ),
    )
