"""`offload certs`: a small certificate authority for devices and servers of one's own."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from offload.errors import InputError

from offload_cli.options import FormatOption
from offload_cli.output import Format, Output

app = typer.Typer(
    name="certs",
    help="Certificates for TLS between devices and servers.",
    no_args_is_help=True,
)


@app.callback()
def group() -> None:
    """Certificates for TLS between devices and servers."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write.", show_default=False)],
    server: Annotated[
        list[str],
        typer.Option(help="Host name or address devices connect to; repeatable."),
    ] = [],  # noqa: B006  typer wants a list and copies it
    device: Annotated[list[str], typer.Option(help="Name of a device; repeatable.")] = [],  # noqa: B006
    days: Annotated[float, typer.Option(min=0.01, help="Days that certificates last.")] = 365.0,
    authority_days: Annotated[
        float, typer.Option(min=0.01, help="Days that the authority lasts.")
    ] = 3650.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Make an authority, unless the folder has one, and certificates it signs.

    Run it again with another --server or --device to add one later.

    Give devices `ca.pem` and their own pair, the server `ca.pem` and its own pair; `ca.key`
    stays here.

    Example: `offload certs init certs --server 192.0.2.7 --device camera`, then
    `offload serve ... --cert certs/192.0.2.7.pem --key certs/192.0.2.7.key --client-ca
    certs/ca.pem` and `offload run ... --ca certs/ca.pem --cert certs/camera.pem --key
    certs/camera.key`
    """
    certs = _library()
    written = certs.make_certificates(
        folder, servers=server, devices=device, days=days, authority_days=authority_days
    )
    _report(written, form)


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="What `certs init` filled.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(help="Whose certificates; default: all.")
    ] = None,
    days: Annotated[
        float, typer.Option(min=0.01, help="Days that certificates last from now on.")
    ] = 365.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Sign certificates again for their own keys: only `.pem` files change.

    Copy each to its machine. A server reads it without a restart; a device reads it when it
    connects.

    Example: `offload certs renew certs`, then copy `certs/192.0.2.7.pem` to the server
    """
    _report(_library().renew_certificates(folder, names or (), days=days), form)


def _library() -> ModuleType:
    """The part that needs cryptography."""
    try:
        from offload_runtimes.security import certs
    except ModuleNotFoundError as error:
        raise InputError(
            "certificates need the cryptography library: pip install 'onnx-offload[tls]'"
        ) from error
    return certs


def _report(written: Sequence[Path], form: Format) -> None:
    names = [str(path) for path in written]
    Output(form).result({"written": names}, "wrote " + (", ".join(names) or "nothing new"))
