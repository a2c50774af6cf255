"""`offload certs`: a small certificate authority for devices and servers of one's own."""

from pathlib import Path
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
    days: Annotated[float, typer.Option(min=0.01, help="How long they last.")] = 365.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Make an authority, unless the folder has one, and certificates it signs.

    Give devices `ca.pem` and their own pair, the server `ca.pem` and its own pair; `ca.key`
    stays here.

    Example: `offload certs init certs --server 192.0.2.7 --device camera`, then
    `offload serve ... --cert certs/192.0.2.7.pem --key certs/192.0.2.7.key --client-ca
    certs/ca.pem` and `offload run ... --ca certs/ca.pem --cert certs/camera.pem --key
    certs/camera.key`
    """
    try:
        from offload_runtimes.security.certs import make_certificates
    except ModuleNotFoundError as error:
        raise InputError(
            "certificates need the cryptography library: pip install 'onnx-offload[tls]'"
        ) from error
    output = Output(form)
    written = make_certificates(folder, servers=server, devices=device, days=days)
    names = [str(path) for path in written]
    output.result({"written": names}, "wrote " + (", ".join(names) or "nothing new"))
