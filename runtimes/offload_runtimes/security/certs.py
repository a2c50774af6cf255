"""Make a small certificate authority and certificates for servers and devices (extra `tls`)."""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from offload.errors import InputError

_BACKDATED = dt.timedelta(hours=1)  # clocks of devices are often a little behind
_ALLOWED_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")


def make_certificates(
    folder: Path,
    *,
    servers: Sequence[str] = (),
    devices: Sequence[str] = (),
    days: float = 365.0,
) -> tuple[Path, ...]:
    """Write an authority (`ca.pem`, `ca.key`), unless there is one, and certificates it signs.

    Each name gets `NAME.pem` and `NAME.key`; keys are readable by their owner only. A server's
    name is the host name or address that devices connect to.

    Returns:
        The files written.

    Raises:
        InputError: a name cannot be used or has a certificate already, or the authority's files
            are damaged.
    """
    for name in (*servers, *devices):
        if not name or not set(name) <= _ALLOWED_NAME or name in ("ca", ".", ".."):
            raise InputError(f"{name!r} cannot name a certificate: use a host name or a word")
        if (folder / f"{name}.pem").exists():
            raise InputError(f"{folder / name}.pem exists: remove it first to make a new one")
    folder.mkdir(parents=True, exist_ok=True)
    lifetime = dt.timedelta(days=days)
    authority, key, written = _authority(folder, lifetime)
    for name in servers:
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        written += _issue(folder, name, usage, authority, key, lifetime)
    for name in devices:
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        written += _issue(folder, name, usage, authority, key, lifetime)
    return tuple(written)


def _authority(
    folder: Path, lifetime: dt.timedelta
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, list[Path]]:
    paths = [folder / "ca.pem", folder / "ca.key"]
    if paths[0].exists() and paths[1].exists():
        try:
            certificate = x509.load_pem_x509_certificate(paths[0].read_bytes())
            key = serialization.load_pem_private_key(paths[1].read_bytes(), None)
        except ValueError as error:
            raise InputError(f"{paths[0]} or its key is damaged: choose a new folder") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"{paths[1]} is no key of ours: choose a new folder")
        return certificate, key, []
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("onnx-offload authority")
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    certificate = _signed(name, name, key.public_key(), key, lifetime, extensions)
    _write(paths[0], certificate, paths[1], key)
    return certificate, key, paths


def _issue(
    folder: Path,
    name: str,
    usage: x509.ObjectIdentifier,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    lifetime: dt.timedelta,
) -> list[Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority_key.public_key()
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([usage]), False),
        (x509.SubjectAlternativeName([_alternative(name)]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), False),
    ]
    certificate = _signed(
        _name(name), authority.subject, key.public_key(), authority_key, lifetime, extensions
    )
    paths = [folder / f"{name}.pem", folder / f"{name}.key"]
    _write(paths[0], certificate, paths[1], key)
    return paths


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    signing_key: ec.EllipticCurvePrivateKey,
    lifetime: dt.timedelta,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lifetime) - _BACKDATED)
        .not_valid_after(now + lifetime)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signing_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(
    certificate_path: Path,
    certificate: x509.Certificate,
    key_path: Path,
    key: ec.EllipticCurvePrivateKey,
) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
