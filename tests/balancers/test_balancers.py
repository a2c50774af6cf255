"""Run two replicas behind a balancer with the files of docs/scale; kill and restart replicas."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from offload_runtimes import ClientSecurity, OffloadSession, ServerError

from tests.front_door.door import Door, plain_onnxruntime

DOCS = Path(__file__).parent.parent.parent / "docs/scale"
SESSIONS = 12
FEW = 4  # of 12 sessions, each replica has at least this many: 6 unless this machine is very busy
PATIENCE_S = 120  # for what takes a second on a machine that is not busy
TOKEN = "let-me-in"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Recipe:
    """A file of the documentation.

    Attributes:
        name: of the file.
        command: starts the balancer in the foreground with the file CONFIG.
        ends_tls: whether the balancer ends TLS; else the replicas do.
        paths: absolute paths in the file, and the files of the test that replace them.
    """

    name: str
    command: tuple[str, ...]
    ends_tls: bool = True
    paths: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


HAPROXY = ("haproxy", "-db", "-f", "CONFIG")
PAIR = {"/etc/offload/hub.pem": "127.0.0.1.pem", "/etc/offload/hub.key": "127.0.0.1.key"}
CA = {"/etc/offload/ca.pem": "ca.pem"}
RECIPES = (
    Recipe(
        "nginx.conf",
        ("nginx", "-e", "stderr", "-g", "daemon off;", "-c", "CONFIG"),
        paths={**PAIR, **CA, "/run/nginx.pid": "nginx.pid"},
    ),
    Recipe("haproxy.cfg", HAPROXY, paths={"/etc/offload/both.pem": "both.pem", **CA}),
    Recipe("haproxy-tcp.cfg", HAPROXY, ends_tls=False),
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def eventually(holds: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s, f"it never happened: {what}"
        time.sleep(0.1)


class Replica:
    """An `offload serve` process that can be killed and started again on its port."""

    def __init__(self, door: Door, words: Sequence[str]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self._door = door
        self._words = ("--listen", self.address, "--metrics", self.metrics, *words)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = "from offload_cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "b", "--no-optimize", *self._words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._door.folder,
            env=self._door.environment(),
        )
        assert self.process.stdout is not None
        assert "serving" in self.process.stdout.readline()

    def stop(self, number: signal.Signals) -> None:
        """Send a signal and wait until the process has ended."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def sessions(self) -> int:
        """Sessions open now, by its metrics."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as reply:
            found = re.search(r"^offload_sessions (\S+)$", reply.read().decode(), re.MULTILINE)
        assert found
        return int(float(found[1]))


@dataclass(frozen=True)
class Site:
    """Two replicas behind a balancer, and what devices need.

    Attributes:
        door: the folder with the bundle `b`, its device's half `pi/current` and `certs`.
        replicas: the two.
        address: of the balancer.
        security: of the devices.
    """

    door: Door
    replicas: tuple[Replica, Replica]
    address: str
    security: ClientSecurity

    def sessions(self) -> list[int]:
        return [replica.sessions() for replica in self.replicas]


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    found: Recipe = request.param
    if shutil.which(found.command[0]) is None:
        pytest.skip(f"needs {found.command[0]}: `make test-balancers` installs it")
    return found


@pytest.fixture
def site(recipe: Recipe, tmp_path: Path) -> Iterator[Site]:
    door = Door(tmp_path)
    door.split_two_layers()
    door.ok("deploy", "b", "pi", "--side", "device")
    door.ok("certs", "init", "certs", "--server", "127.0.0.1", "--device", "camera")
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    certs = tmp_path / "certs"
    pair = (certs / "127.0.0.1.pem", certs / "127.0.0.1.key")
    (certs / "both.pem").write_text("".join(path.read_text() for path in pair))
    words = ["--token-file", "tokens"]
    if not recipe.ends_tls:
        words += ["--cert", str(pair[0]), "--key", str(pair[1])]
        words += ["--client-ca", str(certs / "ca.pem")]
    replicas = Replica(door, words), Replica(door, words)
    with ExitStack() as stack:
        for replica in replicas:
            replica.start()
            stack.callback(ended, replica)
        address = stack.enter_context(balancer(recipe, certs, replicas))
        device = (certs / "camera.pem", certs / "camera.key")
        security = ClientSecurity(certs / "ca.pem", *device, token=TOKEN)
        yield Site(door, replicas, address, security)


def ended(replica: Replica) -> None:
    if replica.process is not None and replica.process.poll() is None:
        replica.stop(signal.SIGKILL)


@contextmanager
def balancer(recipe: Recipe, certs: Path, replicas: tuple[Replica, Replica]) -> Iterator[str]:
    """Run the balancer with the documented file; only addresses and paths are replaced."""
    port = free_port()
    text = (DOCS / recipe.name).read_text()
    paths = {before: str(certs / after) for before, after in recipe.paths.items()}
    changes = {
        "10.0.0.11:50051": replicas[0].address,
        "10.0.0.12:50051": replicas[1].address,
        " :50050" if " :50050" in text else " 50050": f" 127.0.0.1:{port}",
        **paths,
    }
    for before, after in changes.items():
        assert text.count(before) == 1, f"{before} in {recipe.name}"
        text = text.replace(before, after)
    config = certs / recipe.name
    config.write_text(text)
    command = [str(config) if word == "CONFIG" else word for word in recipe.command]
    log = (certs / "balancer.log").open("w+")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=certs)

    def listens() -> bool:
        assert process.poll() is None, (certs / "balancer.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens, f"{recipe.name} listens")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        log.close()


def x(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 8)).astype(np.float32)


class Cameras:
    """12 sessions that run frames until `stop`, each on a thread, and check every answer."""

    def __init__(self, site: Site, bundle: str) -> None:
        """`bundle`: the whole one can finish a frame without a server."""
        self._right = [
            plain_onnxruntime(site.door.folder / "net.onnx", {"x": x(seed)})["y"]
            for seed in range(SESSIONS)
        ]
        self._over = threading.Event()
        self.wrong: list[object] = []
        self.sessions: list[OffloadSession] = []
        self._threads: list[threading.Thread] = []
        for seed in range(SESSIONS):
            session = OffloadSession(
                site.door.folder / bundle,
                site.address,
                security=site.security,
                optimize=False,
                connect_timeout_s=PATIENCE_S,
                threads=1,
            )
            self.sessions.append(session)
            thread = threading.Thread(target=self._film, args=(session, seed), daemon=True)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def _film(self, session: OffloadSession, seed: int) -> None:
        try:
            while not self._over.is_set():
                (y,) = session.run(None, {"x": x(seed)})
                if not np.allclose(y, self._right[seed], rtol=1e-5, atol=1e-6):
                    self.wrong.append(y)
                time.sleep(0.02)
        except Exception as error:  # noqa: BLE001  the test fails by it
            self.wrong.append(error)

    def answered_by_servers(self) -> list[int]:
        return [session.counts.split for session in self.sessions]

    def go_on_with_servers(self) -> None:
        """Wait until a server has answered three more frames of each session."""
        before = self.answered_by_servers()
        eventually(
            lambda: all(
                now >= earlier + 3
                for now, earlier in zip(self.answered_by_servers(), before, strict=True)
            ),
            f"all sessions use a server: {self.wrong}",
        )

    def stop(self) -> int:
        """End the threads, then the sessions; the number of frames that were answered."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        answered = sum(session.counts.runs for session in self.sessions)
        for session in self.sessions:
            session.close()
        return answered


@contextmanager
def cameras(site: Site, bundle: str = "b") -> Iterator[Cameras]:
    filming = Cameras(site, bundle)
    try:
        yield filming
    finally:
        filming.stop()


def test_sessions_are_spread_and_strangers_refused(site: Site, recipe: Recipe) -> None:
    """Every answer needs a replica: the devices have their half only."""
    with cameras(site, "pi/current") as filming:
        filming.go_on_with_servers()
        assert sum(site.sessions()) == SESSIONS
        assert min(site.sessions()) >= FEW
        assert all(session.counts.losses == 0 for session in filming.sessions)
    assert filming.wrong == []
    certs = site.door.folder / "certs"
    np.savez(site.door.folder / "in.npz", x=x(0))
    run = ["run", "pi/current", "--input", "in.npz", "--server", site.address]
    run += ["--ca", str(certs / "ca.pem")]
    assert "certificate" in site.door.refused(*run, "--token-file", "tokens")
    device = ("--cert", str(certs / "camera.pem"), "--key", str(certs / "camera.key"))
    said = site.door.refused(*run, *device)
    hides_reason = recipe.name == "haproxy.cfg"
    assert ("hides why: see the server's log" if hides_reason else "refused the token") in said
    site.door.ok(*run, *device, "--token-file", "tokens")


def test_one_of_two_replicas_is_killed(site: Site) -> None:
    """No answer is wrong or missing, and all sessions use the other replica soon."""
    first, second = site.replicas
    with cameras(site) as filming:
        filming.go_on_with_servers()
        first.stop(signal.SIGKILL)
        eventually(lambda: second.sessions() == SESSIONS, "all sessions on the other replica")
        filming.go_on_with_servers()
        first.start()
        second.stop(signal.SIGKILL)
        eventually(lambda: first.sessions() == SESSIONS, "all sessions on the first replica")
        filming.go_on_with_servers()
        assert sum(session.counts.losses for session in filming.sessions) >= SESSIONS
    assert filming.wrong == []


def is_used(site: Site, replica: Replica) -> bool:
    """Whether a new session goes to a replica, which has the fewest."""
    before = replica.sessions()
    with OffloadSession(site.door.folder / "b", site.address, security=site.security):
        return replica.sessions() > before


def test_a_rolling_restart(site: Site) -> None:
    """SIGTERM drains a replica: its sessions move to the other one, nobody gets an error."""
    with cameras(site) as filming:
        for replica in site.replicas:
            filming.go_on_with_servers()
            replica.stop(signal.SIGTERM)
            assert replica.process is not None
            assert replica.process.returncode == 0
            filming.go_on_with_servers()
            replica.start()
            eventually(lambda: sum(site.sessions()) == SESSIONS, "all sessions are back")
            eventually(partial(is_used, site, replica), "the balancer uses the replica again")
        # Sessions stay where they are; new ones go to the replica that has the fewest.
        with cameras(site) as more:
            more.go_on_with_servers()
            assert min(site.sessions()) >= FEW
        assert more.wrong == []
    assert filming.wrong == []


def test_no_replica_is_running(site: Site) -> None:
    for replica in site.replicas:
        replica.stop(signal.SIGTERM)
    with pytest.raises(ServerError) as caught:
        OffloadSession(site.door.folder / "b", site.address, security=site.security)
    assert str(caught.value).startswith(f"server {site.address} cannot be reached")
    assert caught.value.retry
