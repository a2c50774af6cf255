"""Options about certificates and tokens, which several verbs share."""

import os
from pathlib import Path
from typing import Annotated

import typer
from offload_runtimes.security.credentials import ClientSecurity, read_tokens

TOKEN_VARIABLE = "OFFLOAD_TOKEN"

CaOption = Annotated[
    Path | None,
    typer.Option("--ca", help="Authority (.pem) the server's certificate comes from: use TLS."),
]
CertificateOption = Annotated[
    Path | None, typer.Option("--cert", help="Own certificate (.pem), for mutual TLS.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", help="Private key of --cert.")]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", help=f"File with the token; default: ${TOKEN_VARIABLE}."),
]


def client_security(
    ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None
) -> ClientSecurity:
    """What a device was told about certificates and tokens."""
    return ClientSecurity(ca, certificate, key, read_token(token_file))


def read_token(path: Path | None) -> str | None:
    """The first token of a file, or that of the environment.

    Never of the command line, which others see.
    """
    return read_tokens(path)[0] if path else os.environ.get(TOKEN_VARIABLE) or None
