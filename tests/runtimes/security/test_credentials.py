"""TLS, mutual TLS and tokens: the right credentials work, all others are refused."""

import datetime as dt
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from offload.errors import InputError, OffloadError, ServerError
from offload_runtimes.client import OffloadSession
from offload_runtimes.measure.probe import probe
from offload_runtimes.security.certs import make_certificates
from offload_runtimes.security.credentials import ClientSecurity, ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions

from tests.runtimes import bundles
from tests.runtimes.bundles import Made
from tests.runtimes.waiting import eventually

HOST = "127.0.0.1"
TOKEN = "correct horse"


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, servers=[HOST], devices=["camera"])
    make_certificates(folder / "other", servers=[HOST], devices=["camera"])
    make_certificates(folder, devices=["late"], servers=["localhost"], days=-0.01)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return bundles.branches(tmp_path_factory.mktemp("bundle") / "b")


def mutual(pems: Path) -> ServerSecurity:
    return ServerSecurity(pems / f"{HOST}.pem", pems / f"{HOST}.key", pems / "ca.pem", TOKEN)


def camera(pems: Path, folder: str = ".", name: str = "camera") -> ClientSecurity:
    pem, key = pems / folder / f"{name}.pem", pems / folder / f"{name}.key"
    return ClientSecurity(pems / "ca.pem", pem, key, TOKEN)


def test_the_right_pair_works(pems: Path, made: Made) -> None:
    with Server([made.bundle], "0.0.0.0:0", options=ServeOptions(security=mutual(pems))) as server:
        address = server.address.replace("0.0.0.0", HOST)
        with OffloadSession(made.bundle, address, security=camera(pems)) as session:
            feeds = made.feeds()
            np.testing.assert_allclose(
                session.run(["y"], feeds)[0], made.expected(feeds)[0], rtol=1e-5
            )
        sizes = [100]
        assert probe(address, sizes_bytes=sizes, repeats=1, security=camera(pems))


WRONG: dict[str, Callable[[Path], ClientSecurity]] = {
    "no certificate": lambda pems: ClientSecurity(pems / "ca.pem", token=TOKEN),
    "another authority's": lambda pems: camera(pems, "other"),
    "expired": lambda pems: camera(pems, name="late"),
    "a server's": lambda pems: camera(pems, name=HOST),
    "server distrusted": lambda pems: ClientSecurity(
        pems / "other" / "ca.pem", pems / "camera.pem", pems / "camera.key", TOKEN
    ),
    "plaintext": lambda _: ClientSecurity(token=TOKEN),
    "wrong token": lambda pems: ClientSecurity(
        pems / "ca.pem", pems / "camera.pem", pems / "camera.key", "wrong"
    ),
    "no token": lambda pems: ClientSecurity(
        pems / "ca.pem", pems / "camera.pem", pems / "camera.key"
    ),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_every_other_is_refused(pems: Path, made: Made, kind: str) -> None:
    with Server([made.bundle], f"{HOST}:0", options=ServeOptions(security=mutual(pems))) as server:
        security = WRONG[kind](pems)
        with pytest.raises(ServerError) as caught:
            OffloadSession(made.bundle, server.address, security=security, connect_timeout_s=3)
        assert "\n" not in str(caught.value)
        if "token" in kind:
            assert "refused the token" in str(caught.value)
            assert not caught.value.retry
            with pytest.raises(ServerError):
                probe(server.address, sizes_bytes=[10], security=security)


def test_an_expired_server_is_refused(pems: Path, made: Made) -> None:
    late = ServerSecurity(pems / "localhost.pem", pems / "localhost.key")
    with (
        Server([made.bundle], "localhost:0", options=ServeOptions(security=late)) as server,
        pytest.raises(ServerError, match="last until today"),
    ):
        OffloadSession(
            made.bundle,
            server.address,
            security=ClientSecurity(pems / "ca.pem"),
            connect_timeout_s=3,
        )


def test_certificates_are_read_for_each_connection(pems: Path, made: Made, tmp_path: Path) -> None:
    """A half-written file ends no session: the next connection reads it again."""
    own = ServerSecurity(pems / f"{HOST}.pem", pems / f"{HOST}.key")
    ca = tmp_path / "ca.pem"
    ca.write_bytes((pems / "ca.pem").read_bytes())
    with Server([made.bundle], f"{HOST}:0", options=ServeOptions(security=own)) as server:
        session = OffloadSession(
            made.bundle, server.address, security=ClientSecurity(ca), heartbeat_s=0.05
        )
    with session:
        ca.write_text("half")
        with Server([made.bundle], server.address, options=ServeOptions(security=own)):
            time.sleep(0.5)
            with pytest.warns(RuntimeWarning, match="without the server: .* is not a PEM file"):
                session.run(None, made.feeds())
            assert not session.is_split
            ca.write_bytes((pems / "ca.pem").read_bytes())
            eventually(lambda: session.is_split)
            session.run(None, made.feeds())
            assert session.counts.split == 1


def test_a_token_never_crosses_a_network_in_the_clear(made: Made) -> None:
    with pytest.raises(InputError, match="unencrypted"):
        OffloadSession(made.bundle, "192.0.2.1:1", security=ClientSecurity(token=TOKEN))
    assert TOKEN not in repr(ClientSecurity(token=TOKEN))
    assert TOKEN not in repr(ServerSecurity(token=TOKEN))


def test_files_are_private_and_signed(pems: Path) -> None:
    for path in pems.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    authority = x509.load_pem_x509_certificate((pems / "ca.pem").read_bytes())
    leaf = x509.load_pem_x509_certificate((pems / "camera.pem").read_bytes())
    leaf.verify_directly_issued_by(authority)
    left = leaf.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert 364 <= left.days <= 365


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: ClientSecurity(f / "ca.pem", f / "x.pem"), "given together"),
        (lambda f: ClientSecurity(None, f / "x.pem", f / "x.key"), "needs the authority"),
        (lambda f: ServerSecurity(f / "x.pem"), "given together"),
        (lambda f: ServerSecurity(client_ca=f / "ca.pem"), "mutual TLS needs"),
        (lambda f: make_certificates(f, devices=["../evil"]), "cannot name"),
        (lambda f: make_certificates(f, devices=["ca"]), "cannot name"),
        (lambda f: make_certificates(f, devices=["camera"]), "exists"),
        (
            lambda _: Server([], "0.0.0.0:0", options=ServeOptions(security=ServerSecurity())),
            "not encrypted",
        ),
        (
            lambda f: Server(
                [], options=ServeOptions(security=ServerSecurity(f / "none.pem", f / "none.key"))
            ),
            "cannot be read",
        ),
    ],
)
def test_wrong_options_are_one_sentence(
    pems: Path, make: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(OffloadError, match=said):
        make(pems)


def test_a_damaged_authority(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN nothing")
    (tmp_path / "ca.key").write_text("-----BEGIN nothing")
    with pytest.raises(InputError, match="damaged"):
        make_certificates(tmp_path, devices=["camera"])
