"""Security options of device and server: certificate files and bearer tokens."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from offload.errors import InputError

from offload_runtimes.address import Address


@dataclass(frozen=True)
class ClientSecurity:
    """How a device authenticates itself and the server.

    Attributes:
        ca: PEM file of the authority of the server's certificate; None: plaintext.
        certificate: PEM file of the device's own certificate, for mutual TLS.
        key: PEM file of its private key.
        token: bearer token sent with every session.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InputError("a device's certificate and its key must be given together")
        if self.certificate and not self.ca:
            raise _option_error(
                "ca",
                "a device's certificate needs the authority of the server's: give it, too",
            )

    def check(self, address: Address) -> None:
        """Raise an InputError if a token would cross a network unencrypted."""
        if self.token and not self.ca and not address.is_this_machine:
            raise _option_error(
                "ca",
                f"a token would be sent to {address} unencrypted: use TLS, give the authority of"
                " the server's certificate",
            )


@dataclass(frozen=True)
class ServerSecurity:
    """How a server authenticates itself and devices.

    Attributes:
        certificate: PEM file of the server's certificate; None: plaintext.
        key: PEM file of its private key.
        client_ca: PEM file of the authority of devices' certificates; None: devices need none.
        token: bearer token that every session must send; None: none.
        token_file: file of tokens, one a line; every session must send one of them.
        insecure: allow plaintext beyond this machine.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token: str | None = field(default=None, repr=False)
    insecure: bool = False
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InputError("the server's certificate and its key must be given together")
        if self.client_ca and not self.certificate:
            raise InputError("mutual TLS needs the server's certificate and key too")

    def check(self, listen: Address) -> None:
        """Raise an InputError if plaintext could be read from other machines."""
        if self.certificate or self.insecure or listen.is_this_machine:
            return
        raise _option_error(
            "insecure",
            f"{listen} is reachable from other machines and the connection is not encrypted: listen"
            " on 127.0.0.1, give a certificate (`offload certs init`), or allow plaintext",
        )

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call's metadata holds the token, if one is required."""
        return self.token is None or holds_token(metadata, (self.token,))


def holds_token(metadata: Iterable[tuple[str, str | bytes]], tokens: Iterable[str]) -> bool:
    """Whether a call's metadata holds one of the tokens, compared in constant time."""
    expected = [f"Bearer {token}".encode() for token in tokens]
    values = [value for key, value in metadata if key == "authorization"]
    texts = [value.encode() if isinstance(value, str) else value for value in values]
    return any(hmac.compare_digest(text, each) for text in texts for each in expected)


def read_tokens(path: Path) -> tuple[str, ...]:
    """Read the tokens of a file, one a line, without empty lines and comments (`#`).

    Raises:
        InputError: it cannot be read, or holds no token.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"{path} cannot be read ({reason}): give a text file") from error
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise InputError(f"{path} holds no token: write one into it")
    return tokens


def read_pem(path: Path) -> bytes:
    """Read a PEM file; InputError if it cannot be read or is not one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a PEM file") from error
    if b"-----BEGIN" not in data:
        raise InputError(f"{path} is not a PEM file: make one with `offload certs init`")
    return data


def _option_error(option: str, sentence: str) -> InputError:
    error = InputError(sentence)
    error.option = option
    return error
