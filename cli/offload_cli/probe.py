"""`offload probe`: measure the link to a running server."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.link import Link, fit_link
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
    server: Annotated[str, typer.Argument(help="HOST:PORT of `offload serve`.")],
    path: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write the link to this file, for `--link`."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Messages of each size.")] = 5,
    ca: CaOption = None,
    cert: CertificateOption = None,
    key: KeyOption = None,
    token_file: TokenOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Measure what a byte costs to a server and back, each way apart.

    Messages of several sizes are timed and a line is fitted: seconds = c + bytes / b. A link too
    unsteady to model is refused rather than guessed.

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
    output.table(("direction", ">bandwidth b", ">start-up c", ">r2"), _rows(link))


def _rows(link: Link) -> list[tuple[str, str, str, str]]:
    return [
        (way, format_bps(rate_bps), format_s(start_s), f"{r2 or 0:.4f}")
        for way, rate_bps, start_s, r2 in (
            ("up", link.up_bps, link.up_start_s, link.up_r2),
            ("down", link.down_bps, link.down_start_s, link.down_r2),
        )
    ]
