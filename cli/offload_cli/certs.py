"""`offload certs`: make and renew TLS certificates for devices and servers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from offload.errors import InputError

from offload_cli.options import FormatOption
from offload_cli.output import Format, Output

app = typer.Typer(
    name="certs",
    help="Make and renew TLS certificates for devices and servers.",
    no_args_is_help=True,
)


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(help="Write the files to this folder.", show_default=False)
    ],
    server: Annotated[
        list[str],
        typer.Option(
            metavar="HOST", help="Make a certificate for this server name or address; repeatable."
        ),
    ] = [],  # noqa: B006  typer wants a list and copies it
    device: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Make a certificate for this device; repeatable."),
    ] = [],  # noqa: B006
    days: Annotated[
        float, typer.Option(min=0.01, metavar="DAYS", help="Let certificates last DAYS.")
    ] = 365.0,
    authority_days: Annotated[
        float, typer.Option(min=0.01, metavar="DAYS", help="Let the authority last DAYS.")
    ] = 3650.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Make a certificate authority, if the folder has none, and certificates it signs.

    Run it again with another --server or --device to add one. Copy `ca.pem` and its own pair of
    .pem and .key to each machine; keep `ca.key` here.

    Example: `offload certs init certs --server 192.0.2.7 --device camera`, then
    `offload serve ... --cert certs/192.0.2.7.pem --key certs/192.0.2.7.key --client-ca
    certs/ca.pem` and `offload run ... --ca certs/ca.pem --cert certs/camera.pem --key
    certs/camera.key`
    """
    with _cryptography():
        from offload_runtimes.security.certs import make_certificates
    written = make_certificates(
        folder, servers=server, devices=device, days=days, authority_days=authority_days
    )
    _report(written, form)


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="The folder of `certs init`.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(help="Servers and devices to renew; default: all.")
    ] = None,
    days: Annotated[
        float,
        typer.Option(min=0.01, metavar="DAYS", help="Let certificates last DAYS from now on."),
    ] = 365.0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Sign certificates again for the same keys: only `.pem` files change.

    Copy each file to its machine. A server reads it without a restart, a device when it connects.

    Example: `offload certs renew certs`, then copy `certs/192.0.2.7.pem` to the server
    """
    with _cryptography():
        from offload_runtimes.security.certs import renew_certificates
    _report(renew_certificates(folder, names or (), days=days), form)


@contextmanager
def _cryptography() -> Iterator[None]:
    """Explain how to install cryptography if the import in the block fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            "certificates need the cryptography library: pip install 'onnx-offload[tls]'"
        ) from error


def _report(written: Sequence[Path], form: Format) -> None:
    names = [str(path) for path in written]
    Output(form).result({"written": names}, "wrote " + (", ".join(names) or "nothing new"))
