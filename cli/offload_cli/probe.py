"""`offload probe`: measure bandwidth and delay of the link to a server."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.link import fit_link
from offload.files import write_text
from offload.units import format_bps, format_s
from offload_runtimes.measure.probe import probe as measure_link

from offload_cli.options import (
    CaOption,
    CertificateOption,
    FormatOption,
    KeyOption,
    TokenOption,
    client_security,
)
from offload_cli.output import Format, Output


def probe(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Address of `offload serve`.")],
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
    Fails if the times vary too much to fit one.

    Example: `offload probe 192.0.2.7:50051 -o link.json`, then `offload split ... --link link.json`
    """
    output = Output(form)
    security = client_security(ca, cert, key, token_file)
    with output.steps() as progress:
        progress(f"timing messages to {server}")
        link = fit_link(measure_link(server, repeats=repeats, security=security))
    if path:
        write_text(path, json.dumps(link.to_json(), indent=1))
        output.remark(f"wrote {path}")
    output.result(link.to_json(), f"link to {server}")
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
