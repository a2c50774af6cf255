"""Addresses as users write them, and why a server cannot be reached: one sentence for each."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from offload_runtimes import InputError, OffloadSession, ServerError, probe
from offload_runtimes.security.certs import make_certificates
from offload_runtimes.security.credentials import ClientSecurity, ServerSecurity
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions

from tests.front_door.apps import frame, split_chain
from tests.front_door.door import Door

PROXIES = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "grpc", "all")}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A folder with a model and its bundle."""
    made = Door(tmp_path_factory.mktemp("chain"))
    split_chain(made)
    return made


@pytest.fixture
def bundle(chain: Door) -> Path:
    return chain.folder / "b"


def refused(bundle: Path, address: str, security: ClientSecurity | None = None) -> str:
    """The sentence of a session and of a probe that cannot be opened."""
    with pytest.raises(ServerError) as caught:
        OffloadSession(bundle, address, security=security, connect_timeout_s=2)
    with pytest.raises(ServerError) as probed:
        probe(address, sizes_bytes=[10], timeout_s=2, security=security)
    assert str(probed.value) == str(caught.value)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "--" not in sentence, "a flag of the command in an error of the Python API"
    return sentence


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "not understood"),
        ("127.0.0.1", "has no port: write it like 127.0.0.1:50051"),
        ("::1", r"has no port: write it like \[::1\]:50051"),
        ("server", "has no port"),
        ("localhost:0", "has no port"),
        (":50051", "not understood"),
        ("127.0.0.1:99999", "not understood"),
        ("127.0.0.1:50051:1", "not understood"),
        ("127.0.0.1:50051/", "not understood"),
        ("fe80::1:50051x", "not understood"),
        ("http://127.0.0.1:50051", "leave out http:// and write it like 127.0.0.1:50051"),
        ("grpc://server:50051/", "leave out grpc:// and write it like server:50051"),
        ("unix:", "names no socket"),
    ],
)
def test_what_is_no_address_is_told_how_to_be_written(
    bundle: Path, address: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        OffloadSession(bundle, address, require_server=False)
    with pytest.raises(InputError, match=said):
        probe(address)


def test_each_reason_has_its_sentence(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = {
            "silent": refused(bundle, f"127.0.0.1:{port}"),
            "no host": refused(bundle, "no-such-host.invalid:50051"),
            "socket": refused(bundle, f"unix:{tmp_path}/none"),
        }
    said["refused"] = refused(bundle, f"127.0.0.1:{port}")
    assert "does not answer" in said["silent"]
    assert "no host named 'no-such-host.invalid'" in said["no host"]
    assert "no such socket" in said["socket"]
    assert "nothing listens there" in said["refused"]
    assert len({sentence.partition("cannot be reached")[2] for sentence in said.values()}) == 4


def test_no_route(bundle: Path) -> None:
    try:
        socket.create_connection(("fe80::1%lo", 50051), 2).close()
    except TimeoutError:
        pytest.skip("this machine gives no error for an address without a route")
    except OSError as error:
        if isinstance(error, ConnectionRefusedError):
            pytest.skip("this machine refuses connections to addresses without a route")
    assert "no route to that host" in refused(bundle, "[fe80::1%lo]:50051")


def test_tls_expected_or_not(chain: Door, bundle: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "pems", servers=["127.0.0.1"], devices=[])
    pems = tmp_path / "pems"
    ca = ClientSecurity(pems / "ca.pem")
    with Server([bundle]) as plain:
        assert "it does not speak TLS" in refused(bundle, plain.address, ca)
    security = ServerSecurity(pems / "127.0.0.1.pem", pems / "127.0.0.1.key")
    with Server([bundle], options=ServeOptions(security=security)) as secure:
        said = refused(bundle, secure.address)
        assert "it speaks TLS: give the authority of its certificate" in said
        (chain.folder / "in.npz").write_bytes(b"")
        assert chain.refused("probe", secure.address) == f"{said} (--ca)"
        with OffloadSession(bundle, secure.address, security=ca) as session:
            assert session.is_split


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "unix:{}/s"])
def test_addresses_of_every_kind_work(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    """Names of several records too: localhost; with proxies in the environment that go nowhere."""
    for name, proxy in PROXIES.items():
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        server = Server([bundle], listen.format(tmp_path)).start()
    except InputError:
        if "::1" not in listen:
            raise
        pytest.skip("no IPv6 here")
    try:
        with OffloadSession(bundle, server.address) as session:
            assert session.is_split
            assert session.run(None, frame(1))
    finally:
        server.stop()
    assert not list(tmp_path.iterdir()), "the socket was left behind"


def test_the_command_serves_a_unix_socket(chain: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain.folder)
    with chain.serving("b", listen="unix:server.sock") as address:
        assert address == "unix:server.sock"
        with OffloadSession("b", address) as session:
            assert session.is_split


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that refuses; its address, and what it was asked."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(1000).decode().partition("\r")[0])
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)


def test_a_message_names_the_proxy(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[str]]
) -> None:
    url, asked = proxy
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", url)
    said = refused(bundle, "no-such-host.invalid:50051")
    assert url in said
    assert "no_proxy=no-such-host.invalid" in said
    assert asked[0].startswith("CONNECT no-such-host.invalid:50051")
    monkeypatch.setenv("no_proxy", "elsewhere,.invalid")
    assert "no host named" in refused(bundle, "no-such-host.invalid:50051")


def test_probe_of_a_server_that_never_answers(door: Door) -> None:
    """A server that takes the connection and every message, and says nothing."""
    done = threading.Event()

    def silent(*_: object) -> Iterator[bytes]:
        done.wait(30)
        yield from ()

    handler: Any = grpc.stream_stream_rpc_method_handler(silent)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("onnx_offload.v1.Runtime", {"Probe": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        said = door.refused("probe", f"127.0.0.1:{port}", timeout_s=30)
        assert f"127.0.0.1:{port} is connected but did not answer a probe in 5.00 s" in said
    finally:
        done.set()
        server.stop(0).wait()
