"""Certificates and tokens of devices and servers: options, files, and reloading."""

import hmac
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from offload.errors import InputError

from offload_runtimes.address import Address

T = TypeVar("T")
Reloaded = Callable[[str, str], None]
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


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
        _as_paths(self, "ca", "certificate", "key")
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
        _as_paths(self, "certificate", "key", "client_ca", "token_file")
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


def _as_paths(options: object, *names: str) -> None:
    """Let applications give paths as strings, too."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, str):
            object.__setattr__(options, name, Path(value))


def _option_error(option: str, sentence: str) -> InputError:
    error = InputError(sentence)
    error.option = option
    return error


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


@dataclass(frozen=True, slots=True)
class Certificates:
    """Certificates of a server, as PEM texts.

    Attributes:
        certificate: the server's certificate chain, without its authority.
        key: its private key.
        client_ca: the authority of the devices' certificates; None: devices need none.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class WatchedFiles(Generic[T]):
    """A value read from files, reloaded when one of them changes.

    An unusable change (a half-written file, a key of another certificate) is reported once, and the
    value before stays.
    """

    def __init__(
        self, what: str, paths: Sequence[Path], read: Callable[[], T], reloaded: Reloaded
    ) -> None:
        """Read the files; `reloaded` is called with `what` and an error after each reload.

        Raises:
            InputError: the files cannot be used.
        """
        self._what = what
        self._paths = paths
        self._read = read
        self._reloaded = reloaded
        self._lock = threading.Lock()
        self._signature = self._signed()
        self._value = read()

    def current(self, *, force: bool = False) -> T:
        """The value of the files' current content."""
        with self._lock:
            signature = self._signed()
            if signature != self._signature or force:
                self._signature = signature
                try:
                    self._value = self._read()
                except InputError as error:
                    self._reloaded(self._what, str(error))
                else:
                    self._reloaded(self._what, "")
            return self._value

    def _signed(self) -> tuple[object, ...]:
        signed: list[object] = []
        for path in self._paths:
            try:
                stat = path.stat()
                signed.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError as error:
                signed.append(error.errno)
        return tuple(signed)


class ServerCredentials:
    """Certificates and tokens of a server, up to date with their files."""

    def __init__(self, security: ServerSecurity, reloaded: Reloaded) -> None:
        """Read all files.

        Raises:
            InputError: a file is missing or damaged, or the key is not the certificate's.
        """
        self._security = security
        self._certificates: WatchedFiles[Certificates] | None = None
        self._tokens: WatchedFiles[tuple[str, ...]] | None = None
        if security.certificate and security.key:
            files = [security.certificate, security.key, security.client_ca]
            paths = [path for path in files if path is not None]
            self._certificates = WatchedFiles(
                "certificates", paths, lambda: read_certificates(security), reloaded
            )
        if security.token_file:
            path = security.token_file
            self._tokens = WatchedFiles("tokens", [path], lambda: read_tokens(path), reloaded)

    def certificates(self) -> Certificates | None:
        """The current certificates; None: plaintext."""
        return self._certificates.current() if self._certificates else None

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call's metadata holds one of the tokens, if any are required.

        Tokens are compared in constant time.
        """
        if self._tokens is not None:
            tokens = self._tokens.current()
        elif self._security.token is not None:
            tokens = (self._security.token,)
        else:
            return True
        expected = [f"Bearer {token}".encode() for token in tokens]
        values = [value for key, value in metadata if key == "authorization"]
        texts = [value.encode() if isinstance(value, str) else value for value in values]
        return any(hmac.compare_digest(text, token) for text in texts for token in expected)

    def reload(self) -> None:
        """Read all files again, changed or not."""
        for watched in (self._certificates, self._tokens):
            if watched is not None:
                watched.current(force=True)

    def expiries_s(self) -> Mapping[str, float]:
        """When each certificate ends, seconds since 1970, by its file."""
        certificates, security = self.certificates(), self._security
        if certificates is None:
            return {}
        expiries = {str(security.certificate): expires_at_s(certificates.certificate)}
        if certificates.client_ca:
            expiries[str(security.client_ca)] = expires_at_s(certificates.client_ca)
        return expiries


def read_certificates(security: ServerSecurity) -> Certificates:
    """Read a server's certificate, its key and the devices' authority.

    Raises:
        InputError: a file is missing or damaged, or the key is another certificate's.
    """
    assert security.certificate is not None
    assert security.key is not None
    certificates = Certificates(
        read_pem(security.certificate),
        read_pem(security.key),
        read_pem(security.client_ca) if security.client_ca else None,
    )
    for path, pem in (
        (security.certificate, certificates.certificate),
        (security.client_ca, certificates.client_ca),
    ):
        if pem is not None:
            try:
                expires_at_s(pem)
            except (ValueError, IndexError, ssl.SSLError) as error:
                raise InputError(f"{path} holds no readable certificate: give another") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            security.certificate, security.key, lambda: ""
        )
    except (ssl.SSLError, ValueError) as error:
        raise InputError(
            f"{security.key} is not the key of {security.certificate}: give a pair that was made"
            " together"
        ) from error
    return certificates


def expires_at_s(pem: bytes) -> float:
    """Expiry of the first certificate of a PEM text, in seconds since 1970.

    Python's `ssl` has no public reader of certificates, and the runtime has no library for them;
    the date is at a fixed place of the certificate's DER (RFC 5280, 4.1).

    Raises:
        ValueError: no certificate.
    """
    text = pem.decode("ascii", "replace")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = text.index(begin)
    der = ssl.PEM_cert_to_DER_cert(text[start : text.index(end, start) + len(end)])
    _, at, _ = _element(der, 0)  # the certificate
    _, at, _ = _element(der, at)  # its signed part
    tag, _, after = _element(der, at)
    if tag == _VERSION:
        at = after
    for _ in range(3):  # serial number, algorithm, issuer
        _, _, at = _element(der, at)
    tag, at, _ = _element(der, at)  # validity
    if tag != _SEQUENCE:
        raise ValueError("no certificate")
    _, _, at = _element(der, at)  # start
    tag, at, after = _element(der, at)
    when = der[at:after].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        when = ("19" if when[:2] >= "50" else "20") + when
    return datetime.strptime(when, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the contents of one element."""
    tag, size, start = der[at], der[at + 1], at + 2
    if size >= 0x80:
        count = size & 0x7F
        size, start = int.from_bytes(der[start : start + count], "big"), start + count
    return tag, start, start + size
