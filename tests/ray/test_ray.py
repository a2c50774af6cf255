"""Ray Serve as the server: sessions on two replicas, killed replicas, updates, wrong requests."""

import json
import os
import queue
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from offload_runtimes.client import OffloadSession
from offload_runtimes.measure.probe import probe
from offload_runtimes.protocol import messages as wire
from offload_runtimes.transport import SESSION

from tests.ray.cluster import (
    PYTHON,
    RayServer,
    has_ray,
    left_over,
    offload,
    processes,
    ray_server,
    wait_until,
)
from tests.runtimes import bundles
from tests.runtimes.bundles import Made

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_ray(), reason="build/ray is missing: make test-ray installs it"),
    pytest.mark.timeout(280),
]
SESSIONS = 12
SEEDS = 16
INFERENCES, KILLS = 2000, 10
BACK_S = 2.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return bundles.branches(tmp_path_factory.mktemp("old") / "b")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return bundles.there_and_back(tmp_path_factory.mktemp("new") / "b")


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[RayServer]:
    with ray_server([made.bundle.path]) as running:
        yield running
    assert not left_over()


@dataclass
class Device:
    """Runs inferences on a thread of its own and checks every answer.

    Attributes:
        runs: inferences answered.
        wrong: answers that differ from the whole model's.
        errors: what was raised.
        split_s: when the last answer came that the server took part in.
        lost_s: when the first answer came without it since then; None: none did.
        gaps: such pairs of times: without the server from, with it again from.
    """

    session: OffloadSession
    made: Made
    pause_s: float = 0.02
    runs: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    lost_s: float | None = None
    gaps: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cases = [
            (self.made.feeds(s), self.made.expected(self.made.feeds(s))) for s in range(SEEDS)
        ]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self.pause_s):
            feeds, expected = self._cases[self.runs % SEEDS]
            before, before_s = self.session.counts, time.monotonic()
            try:
                answers = self.session.run(None, feeds)
            except Exception as error:  # noqa: BLE001  any error at all is a finding
                self.errors.append(repr(error))
                continue
            self.runs += 1
            pairs = zip(answers, expected, strict=True)
            self.wrong += not all(np.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)
            if self.session.counts.split == before.split:
                self.lost_s = self.lost_s or before_s
            elif self.lost_s is not None:
                self.gaps.append((self.lost_s, time.monotonic()))
                self.lost_s = None


@contextmanager
def running(made: Made, address: str, count: int, **options: Any) -> Iterator[list[Device]]:
    """Devices that run until the block ends; then none may have seen an error or a wrong answer."""
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(OffloadSession(made.bundle, address, threads=1, **options))
            for _ in range(count)
        ]
        devices = [Device(session, made) for session in sessions]
        for device in devices:
            stack.callback(device.stop)
        yield devices
    assert not [error for device in devices for error in device.errors]
    assert not sum(device.wrong for device in devices)


def hello(made: Made) -> bytes:
    return wire.message(hello=pb.Hello(protocol=wire.PROTOCOL, bundle=made.bundle.digest))


def begin(channel: grpc.Channel, made: Made) -> tuple[Any, "queue.SimpleQueue[bytes | None]"]:
    """A session of bare messages on a channel that others use, too."""
    outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    outgoing.put(hello(made))
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SESSION)
    replies = method(iter(outgoing.get, None))
    assert wire.parse(next(replies))[0].WhichOneof("body") == "welcome"
    return replies, outgoing


def test_streams_of_one_channel_spread_over_both_replicas(server: RayServer, made: Made) -> None:
    with grpc.insecure_channel(server.address) as channel:
        streams = [begin(channel, made) for _ in range(SESSIONS)]
        assert server.sessions() == [SESSIONS / 2] * 2
        for number, (replies, outgoing) in enumerate(streams):
            outgoing.put(wire.message(ping=pb.Ping(number=number, sent=2)))
            assert wire.parse(next(replies))[0].pong.number == number
            outgoing.put(None)
    wait_until(lambda: server.sessions() == [0, 0], "the sessions have ended")


def test_sessions_spread_over_both_replicas(server: RayServer, made: Made) -> None:
    with running(made, server.address, SESSIONS) as devices:
        wait_until(lambda: all(device.runs > 20 for device in devices), "all devices run")
        assert server.sessions() == [SESSIONS / 2] * 2
    assert all(device.session.counts.split == device.runs for device in devices)


def test_the_link_is_probed(server: RayServer) -> None:
    assert probe(server.address, sizes_bytes=(1000, 1_000_000), repeats=3)


def test_killed_replicas_lose_nothing(server: RayServer, made: Made) -> None:
    """A replica is killed whenever both are ready; sessions go on with the other one."""
    kills: list[float] = []
    replicas: set[str] = set()
    with running(made, server.address, SESSIONS, heartbeat_s=0.1) as devices:
        while len(kills) < KILLS or sum(device.runs for device in devices) < INFERENCES:
            replicas = wait_for_two_replicas(server, replicas)
            wait_until(lambda: all(device.lost_s is None for device in devices), "all split again")
            os.kill(server.replicas()[len(kills) % 2], signal.SIGKILL)
            kills.append(time.monotonic())
        wait_until(lambda: all(device.lost_s is None for device in devices), "all split again")
    back_s = sorted(
        back - max(kill_s for kill_s in kills if kill_s <= back)
        for device in devices
        for _, back in device.gaps
    )
    runs = sum(device.runs for device in devices)
    print(
        f"\n{len(kills)} replicas killed, {runs} inferences, 0 wrong, 0 lost; split again after"
        f" {statistics.median(back_s):.2f} s (median), {back_s[int(0.9 * len(back_s))]:.2f} s"
        f" (90 %), {back_s[-1]:.2f} s (worst) in {len(back_s)} cases"
    )
    assert runs >= INFERENCES
    assert statistics.median(back_s) < BACK_S


def wait_for_two_replicas(server: RayServer, before: set[str]) -> set[str]:
    """Names of the replicas, once two are ready that are not those before."""
    wait_until(
        lambda: (
            len(server.ready()) == 2 and server.ready() != before and len(server.replicas()) == 2
        ),
        "two replicas",
    )
    return server.ready()


def test_devices_run_through_an_update(server: RayServer, made: Made, newer: Made) -> None:
    """The replicas are replaced one by one by those with both bundles."""
    with grpc.insecure_channel(server.address) as channel:
        replies, outgoing = begin(channel, made)
        before = set(server.replicas())
        with running(made, server.address, 6) as devices:
            done = offload(
                *("serve", newer.bundle.path, made.bundle.path, "--engine", "ray"),
                *("--replicas", "2", "--threads", "1", "--ray-address", server.cluster),
                *("--metrics", "127.0.0.1:9200", "--format", "json"),
            )
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert told["bundles"] == [newer.bundle.digest, made.bundle.digest]
            assert told["listening"] == server.address
            assert not before & set(server.replicas())
            with running(newer, server.address, 6) as new_devices:
                wait_until(lambda: all(device.runs > 20 for device in new_devices), "they run")
            runs = sum(device.session.counts.split for device in devices)
            wait_until(
                lambda: sum(device.session.counts.split for device in devices) > runs + 60,
                "the old bundle is served",
            )
        assert all(device.session.counts.split for device in new_devices)
        bodies = [wire.parse(reply)[0].WhichOneof("body") for reply in replies]
        assert bodies[0] == "goodbye"
        outgoing.put(None)


def test_ports_of_haproxy_are_on_loopback_only(server: RayServer) -> None:
    listening = open_ports()
    port = int(server.address.rpartition(":")[2])
    assert {listening[port], listening[9101], listening[8404]} == {"127.0.0.1"}


def open_ports() -> dict[int, str]:
    """Where this network namespace listens: address by port."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state == "0A":
            address, port = local.split(":")
            found[int(port, 16)] = socket.inet_ntoa(bytes.fromhex(address)[::-1])
    return found


def refused(*words: str | Path) -> str:
    """The sentence of a command that fails."""
    done = offload(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def test_a_second_server_says_which_port_is_taken(server: RayServer, made: Made) -> None:
    words = ("serve", made.bundle.path, "--engine", "ray")
    assert "cannot be taken for the ingress" in refused(*words, "--listen", server.address)
    assert "9101" in refused(*words, "--listen", "127.0.0.1:0")


def test_no_cluster_at_the_address(made: Made) -> None:
    said = refused("serve", made.bundle.path, "--engine", "ray", "--ray-address", "127.0.0.1:1")
    assert "there is no Ray cluster at 127.0.0.1:1" in said


def test_more_gpus_than_there_are(server: RayServer, made: Made) -> None:
    words = ("serve", made.bundle.path, "--engine", "ray", "--ray-address", server.cluster)
    said = refused(*words, "--gpus", "4")
    assert "4 GPUs" in said
    assert "has 0" in said


def test_options_that_ray_does_not_know(made: Made) -> None:
    words = ("serve", made.bundle.path, "--engine", "ray")
    assert "Ray does not take" in refused(*words, "--ray-option", "colour=red")
    said = refused(
        *words, "--replicas", "1..4", "--ray-option", "autoscaling_config.min_replicas=9"
    )
    assert "Ray does not take" in said


def test_ctrl_c_ends_everything(server: RayServer, made: Made) -> None:
    """The last test of this server: its sessions end by Goodbye, and no process is left."""
    with grpc.insecure_channel(server.address) as channel:
        replies, outgoing = begin(channel, made)
        server.interrupt()
        bodies = [wire.parse(reply)[0].WhichOneof("body") for reply in replies]
        assert bodies[0] == "goodbye"
        outgoing.put(None)
    assert server.process.returncode == 0
    wait_until(lambda: not left_over(), "no process is left", 10.0)


@contextmanager
def cluster_of_others() -> Iterator[str]:
    """A cluster that `ray start` made; its address."""
    words = ("start", "--head", "--port", "6390", "--node-ip-address", "127.0.0.1", "--block")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [PYTHON.with_name("ray"), *words, "--include-dashboard", "false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        yield "127.0.0.1:6390"
    finally:
        process.terminate()
        process.wait(60)


def test_an_application_stays_in_a_cluster_of_others(made: Made) -> None:
    with cluster_of_others() as cluster:
        words = ("serve", made.bundle.path, "--engine", "ray", "--ray-address", cluster)
        wait_until(lambda: can_connect(6390), "the cluster listens")
        with socket.create_server(("127.0.0.1", 9101)):
            assert "HAProxy cannot listen on 0.0.0.0:9101" in refused(*words)
        done = offload(*words, "--listen", "127.0.0.1:50051", "--replicas", "1..2")
        assert done.returncode == 0, done.stderr
        assert "on 127.0.0.1:50051" in done.stdout
        with running(made, "127.0.0.1:50051", 2) as devices:
            wait_until(lambda: all(device.runs > 20 for device in devices), "all devices run")
        assert all(device.session.counts.split == device.runs for device in devices)
        assert [command for _, command in processes() if "bin/haproxy" in command]
    wait_until(lambda: not left_over(), "no process is left", 30.0)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


_DEPLOY = """
import shutil, sys
from offload.errors import OffloadError
from offload_runtimes.address import parse_address
from offload_runtimes.ray import app
from offload_runtimes.ray.cluster import deploy, joined_cluster
application = app([sys.argv[1]])
shutil.rmtree(sys.argv[1])
with joined_cluster(sys.argv[2], parse_address("127.0.0.1:0")):
    try:
        deploy(application, 1, {})
    except OffloadError as error:
        print(type(error).__name__, error)
"""


def test_a_node_without_the_bundle_says_so(made: Made, tmp_path: Path) -> None:
    with ray_server([made.bundle.path], replicas=1) as server:
        shutil.copytree(made.bundle.path, tmp_path / "gone")
        done = subprocess.run(
            [PYTHON, "-c", _DEPLOY, tmp_path / "gone", server.cluster],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout.startswith("BundleError node ")
        assert "has no bundle at" in done.stdout
