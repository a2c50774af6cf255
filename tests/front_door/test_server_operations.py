"""A server in use: certificates and tokens change while it runs, what it refuses is counted."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload_runtimes.client import OffloadSession
from offload_runtimes.security.credentials import ClientSecurity

from tests.front_door.door import Door

HOST = "127.0.0.1"
CA = ("--ca", "certs/ca.pem")
CAMERA = (*CA, "--cert", "certs/camera.pem", "--key", "certs/camera.key")


@dataclass(frozen=True)
class Running:
    """A running `offload serve --log --metrics`."""

    process: "subprocess.Popen[str]"
    told: dict[str, Any]
    stderr: Path

    @property
    def address(self) -> str:
        return str(self.told["listening"])

    def log(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind that it has logged; every line is one JSON object."""
        rows = [json.loads(line) for line in self.stderr.read_text().splitlines()]
        return [row for row in rows if row["event"] == event]

    def metric(self, series: str) -> float:
        with urllib.request.urlopen(f"http://{self.told['metrics']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{series} ")]
        return float(found[0]) if found else 0.0


@contextmanager
def running(door: Door, *words: str) -> Iterator[Running]:
    command = "from offload_cli.main import main; main()"
    more = ("--listen", f"{HOST}:0", "--metrics", f"{HOST}:0", "--log", "--format", "json")
    stderr = door.folder / "stderr"
    with stderr.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", *words, *more],
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            cwd=door.folder,
            env=door.environment(),
        )
    assert process.stdout is not None
    head = ""
    while not head.endswith("}\n"):
        line = process.stdout.readline()
        assert line, stderr.read_text()
        head += line
    try:
        yield Running(process, json.loads(head), stderr)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never happened")


@pytest.fixture
def bundle(door: Door) -> str:
    return door.split_two_layers()


def test_metrics_say_what_an_operator_asks(door: Door, bundle: str) -> None:
    with running(door, bundle, "--max-memory", "400 MB", "--max-sessions", "1") as server:
        x = {"x": np.ones((1, 8), np.float32)}
        with OffloadSession(door.folder / bundle, server.address) as session:
            session.run(None, x)
            digest = session.bundle.digest[:12]
            assert server.metric("offload_sessions") == 1
            door.refused("run", bundle, "--input", "in.npz", "--server", server.address)
            eventually(lambda: server.metric('offload_refused_sessions_total{reason="full"}') == 1)
        assert server.metric(f'offload_frame_seconds_count{{bundle="{digest}"}}') == 1
        assert server.metric('offload_memory_limit_bytes{part="models"}') == 3e8
        assert server.metric("process_resident_memory_bytes") > 1e7
        with urllib.request.urlopen(f"http://{server.told['metrics']}/metrics") as answer:
            text = answer.read().decode()
        (line,) = [row for row in text.splitlines() if row.startswith("offload_build_info{")]
        assert 'provider="cpu"' in line
        assert 'onnxruntime="' in line
        assert server.log("session refused")[0]["reason"] == "full"


@pytest.mark.door
def test_certificates_and_tokens_change_without_a_restart(door: Door, bundle: str) -> None:
    door.ok("certs", "init", "certs", "--server", HOST, "--device", "camera", "--days", "30")
    (door.folder / "token").write_text("old\n")
    tls = ("--cert", f"certs/{HOST}.pem", "--key", f"certs/{HOST}.key")
    words = (*tls, "--client-ca", "certs/ca.pem", "--token-file", "token")
    run = ("run", bundle, "--input", "in.npz", "--server")
    series = f'offload_certificate_expiry_timestamp_seconds{{file="certs/{HOST}.pem"}}'
    folder = door.folder / "certs"
    security = ClientSecurity(
        folder / "ca.pem", folder / "camera.pem", folder / "camera.key", "old"
    )
    x = {"x": np.ones((1, 8), np.float32)}
    with running(door, bundle, *words) as server:
        with OffloadSession(
            door.folder / bundle, server.address, security=security, on_server_loss="raise"
        ) as held:
            held.run(None, x)
            before_s = server.metric(series)
            assert 29 * 86400 < before_s - time.time() < 31 * 86400

            # A new certificate and a second token, while a session is open.
            door.ok("certs", "renew", "certs", HOST, "--days", "300")
            (door.folder / "token").write_text("# until all devices have it\nnew\nold\n")
            for token in ("old", "new"):
                door.ok(*run, server.address, *CAMERA, env={"OFFLOAD_TOKEN": token})
            assert server.metric(series) > before_s + 200 * 86400
            held.run(None, x)

            # One that cannot be used is reported, what was there before stays.
            (folder / f"{HOST}.pem").write_text("-----BEGIN CERTIFICATE-----\nhalf")
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: any("error" in row for row in server.log("reloaded")))
            door.ok(*run, server.address, *CAMERA, env={"OFFLOAD_TOKEN": "new"})
            held.run(None, x)
            assert held.counts.split == 3

        # The old token ends; a device is added later.
        (door.folder / "token").write_text("new\n")
        said = door.refused(*run, server.address, *CAMERA, env={"OFFLOAD_TOKEN": "old"})
        assert "refused the token" in said
        door.ok("certs", "init", "certs", "--device", "second")
        second = (*CA, "--cert", "certs/second.pem", "--key", "certs/second.key")
        door.ok(*run, server.address, *second, env={"OFFLOAD_TOKEN": "new"})

        # What was refused is one line and one count each.
        door.refused(*run, server.address, *CA, env={"OFFLOAD_TOKEN": "new"})
        eventually(lambda: server.metric('offload_refused_sessions_total{reason="tls"}') >= 1)
        assert server.metric('offload_refused_sessions_total{reason="token"}') == 1
        refused = {row["reason"]: row for row in server.log("session refused")}
        assert refused["token"]["peer"].startswith(f"ipv4:{HOST}:")
        assert refused["tls"]["detail"] == "peer_did_not_return_a_certificate"
    assert server.process.returncode == 0


@pytest.mark.door
def test_a_hangup_does_not_end_the_server(door: Door, bundle: str) -> None:
    with running(door, bundle) as server:
        server.process.send_signal(signal.SIGHUP)
        door.ok("run", bundle, "--input", "in.npz", "--server", server.address)
        assert server.process.poll() is None


@pytest.mark.door
def test_a_certificate_that_ends_soon_is_told_of(door: Door, bundle: str) -> None:
    door.ok("certs", "init", "certs", "--server", HOST, "--days", "3")
    tls = ("--cert", f"certs/{HOST}.pem", "--key", f"certs/{HOST}.key")
    with running(door, bundle, *tls) as server:
        said = f"warning: certificate certs/{HOST}.pem ends in 3.0 days"
        eventually(lambda: said in server.stderr.read_text())


@pytest.mark.door
def test_an_authority_outlives_what_it_signs(door: Door) -> None:
    from cryptography import x509

    def end(name: str) -> Any:
        pem = (door.folder / "certs" / name).read_bytes()
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc

    init = ("certs", "init", "certs", "--authority-days", "40")
    door.ok(*init, "--device", "first", "--days", "30")
    key = (door.folder / "certs/first.key").read_bytes()
    first = (end("ca.pem"), end("first.pem"))
    assert first[0] > first[1]
    written = json.loads(door.ok("certs", "renew", "certs", "--format", "json"))["written"]
    assert written == ["certs/ca.pem", "certs/first.pem"]
    assert end("ca.pem") > end("first.pem") > first[0]
    assert (door.folder / "certs/first.key").read_bytes() == key
    assert "has no certificate of 'nobody'" in door.refused("certs", "renew", "certs", "nobody")
    assert "holds no authority" in door.refused("certs", "renew", "empty")
