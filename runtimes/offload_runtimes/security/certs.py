"""Make a small certificate authority and certificates for servers and devices (extra `tls`)."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from offload.errors import InputError
from offload.files import write_bytes

AUTHORITY_DAYS = 3650.0
_AUTHORITY = ("ca.pem", "ca.key")
_KEY_MODE = 0o600
_BACKDATED = dt.timedelta(hours=1)  # clocks of devices are often a little behind
_ALLOWED_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")
KeyPair: TypeAlias = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def make_certificates(
    folder: Path,
    *,
    servers: Sequence[str] = (),
    devices: Sequence[str] = (),
    days: float = 365.0,
    authority_days: float = AUTHORITY_DAYS,
) -> tuple[Path, ...]:
    """Write certificates, and an authority (`ca.pem`, `ca.key`) unless the folder has one.

    Each name gets `NAME.pem` and `NAME.key`; keys are readable by their owner only. A server's
    name is the host name or address that devices connect to. An existing authority that would end
    before the certificates is signed again with its key.

    Args:
        folder: the folder; devices and servers can be added later.
        servers: names of servers.
        devices: names of devices.
        days: how long certificates last.
        authority_days: how long the authority lasts.

    Returns:
        The files written.

    Raises:
        InputError: a name is invalid or has a certificate already, or the authority's files are
            damaged.
    """
    for name in (*servers, *devices):
        if not name or not set(name) <= _ALLOWED_NAME or name in ("ca", ".", ".."):
            raise InputError(f"{name!r} cannot name a certificate: use a host name or a word")
        if (folder / f"{name}.pem").exists():
            raise InputError(
                f"{folder / name}.pem exists: renew it with `offload certs renew {folder} {name}`"
            )
    folder.mkdir(parents=True, exist_ok=True)
    lifetime = dt.timedelta(days=days)
    written: list[Path] = []
    if not all((folder / name).exists() for name in _AUTHORITY):
        key = ec.generate_private_key(ec.SECP256R1())
        write_bytes(folder / _AUTHORITY[1], _private(key), _KEY_MODE)
        longest = max(lifetime, dt.timedelta(days=authority_days))
        written += [_sign_authority(folder, key, longest), folder / _AUTHORITY[1]]
    authority, renewed = _renew_authority(folder, lifetime)
    written += renewed
    usages = [(name, ExtendedKeyUsageOID.SERVER_AUTH) for name in servers]
    usages += [(name, ExtendedKeyUsageOID.CLIENT_AUTH) for name in devices]
    for name, usage in usages:
        key = ec.generate_private_key(ec.SECP256R1())
        write_bytes(folder / f"{name}.key", _private(key), _KEY_MODE)
        written += [_issue(folder, name, usage, key, authority, lifetime), folder / f"{name}.key"]
    return tuple(written)


def renew_certificates(
    folder: Path, names: Sequence[str] = (), *, days: float = 365.0
) -> tuple[Path, ...]:
    """Sign certificates again for their own keys, from now on; only `.pem` files change.

    An authority that would end before them is signed again, too: then all machines need the new
    `ca.pem` before the old one ends.

    Args:
        folder: what `make_certificates` filled.
        names: the certificates' names; none: all.
        days: how long they last from now on.

    Returns:
        The files written.

    Raises:
        InputError: there is no authority or no such certificate, or a file is damaged.
    """
    _read_authority(folder)
    paths = {path.stem: path for path in sorted(folder.glob("*.pem")) if path.name != _AUTHORITY[0]}
    for name in names:
        if name not in paths:
            raise InputError(
                f"{folder} has no certificate of {name!r}: it has {', '.join(paths) or 'none'}"
            )
    lifetime = dt.timedelta(days=days)
    chosen = list(dict.fromkeys(names or paths))
    pairs = {name: _read_pair(paths[name], folder / f"{name}.key") for name in chosen}
    authority, written = _renew_authority(folder, lifetime)
    for name, (certificate, key) in pairs.items():
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        written.append(_issue(folder, name, next(iter(usages)), key, authority, lifetime))
    return tuple(written)


def _renew_authority(folder: Path, lifetime: dt.timedelta) -> tuple[KeyPair, list[Path]]:
    """Read the authority, signed again if it would end before `lifetime`; the files written."""
    certificate, key = _read_authority(folder)
    if certificate.not_valid_after_utc >= dt.datetime.now(dt.UTC) + lifetime:
        return (certificate, key), []
    longer = max(lifetime, dt.timedelta(days=AUTHORITY_DAYS))
    path = _sign_authority(folder, key, longer)
    return _read_authority(folder), [path]


def _read_authority(folder: Path) -> KeyPair:
    certificate, key = (folder / name for name in _AUTHORITY)
    if not certificate.exists() or not key.exists():
        raise InputError(f"{folder} holds no authority: make one with `offload certs init`")
    return _read_pair(certificate, key)


def _read_pair(certificate_path: Path, key_path: Path) -> KeyPair:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{certificate_path} or {key_path} is damaged: choose a new folder"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{key_path} is not an elliptic-curve key: choose a new folder")
    if key.public_key() != certificate.public_key():
        raise InputError(f"{key_path} is not the key of {certificate_path}: choose a new folder")
    return certificate, key


def _sign_authority(folder: Path, key: ec.EllipticCurvePrivateKey, lifetime: dt.timedelta) -> Path:
    name = _name("onnx-offload authority")
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    return _sign(folder / _AUTHORITY[0], name, key.public_key(), name, key, lifetime, extensions)


def _issue(
    folder: Path,
    name: str,
    usage: x509.ObjectIdentifier,
    key: ec.EllipticCurvePrivateKey,
    authority: KeyPair,
    lifetime: dt.timedelta,
) -> Path:
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    certificate, signing_key = authority
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([usage]), False),
        (x509.SubjectAlternativeName([alternative]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False),
    ]
    path, issuer = folder / f"{name}.pem", certificate.subject
    return _sign(path, _name(name), key.public_key(), issuer, signing_key, lifetime, extensions)


def _sign(
    path: Path,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    signing_key: ec.EllipticCurvePrivateKey,
    lifetime: dt.timedelta,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> Path:
    """Sign a certificate and write it; returns its path. Extensions: whether each is critical."""
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
    certificate = builder.sign(signing_key, hashes.SHA256())
    write_bytes(path, certificate.public_bytes(serialization.Encoding.PEM))
    return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
