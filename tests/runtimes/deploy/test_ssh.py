"""Deployments over real SSH: three machines, cut wires, killed deployers, wrong keys."""

import fcntl
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.bundle.bundle import MANIFEST, PLAN, Bundle, open_bundle
from offload.bundle.write import write_bundle
from offload.costs.link import PRESETS
from offload.costs.profile import estimate_profile
from offload.errors import OffloadError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload.planning.cut import cut_after
from offload.planning.plan import Side
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload_runtimes.deploy import deployment
from offload_runtimes.deploy.deployment import deploy_to
from offload_runtimes.deploy.stages import DeploymentOutcome, DeploymentProgress, Stage
from offload_runtimes.deploy.targets import TargetConfig, find_target
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import proof_replay as proof
from onnx import numpy_helper

from tests.runtimes.bundles import branches
from tests.runtimes.deploy.sshd import (
    Scissors,
    Sshd,
    User,
    free_port,
    make_key,
    make_user,
    needs_sshd,
    running,
)
from tests.toolkit.models import two_branches

pytestmark = [pytest.mark.slow, needs_sshd]
BOTH = tuple(Side)
KILLS = 50


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return make_user(tmp_path / "home")


@pytest.fixture
def server(tmp_path: Path, user: User) -> Iterator[Sshd]:
    with running(tmp_path / "sshd", user) as server:
        yield server


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return branches(tmp_path / "net.bundle").bundle


def place(text: str) -> TargetConfig:
    """A target whose Python is this one, which has the runtime."""
    return replace(find_target(text, {}), python=sys.executable)


def deploy(bundle: Bundle, target: str, sides: tuple[Side, ...] = BOTH) -> DeploymentOutcome:
    (outcome,) = deploy_to(bundle, [(place(target), sides)])
    return outcome


def told(outcome: DeploymentOutcome) -> str:
    """The sentence about a failure; there is one, and it is one line."""
    assert not outcome.ok
    text = str(outcome.why)
    assert text
    assert "\n" not in text
    return text


def test_three_machines_at_once(tmp_path: Path, user: User, bundle: Bundle) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(running(tmp_path / f"sshd{n}", user)) for n in range(3)]
        halves = [(Side.DEVICE,), (Side.SERVER,), BOTH]
        places = [place(server.target()) for server in servers]
        outcomes = deploy_to(bundle, list(zip(places, halves, strict=True)))
        assert [outcome.stage for outcome in outcomes] == [Stage.COMMITTED] * 3
        for server, sides, outcome in zip(servers, halves, outcomes, strict=True):
            current = server.folder / "target/current"
            wanted = {file.name for file in bundle.files if set(sides) & set(file.sides)}
            assert {path.name for path in current.iterdir()} == {MANIFEST, *wanted}
            assert not any(path.is_symlink() for path in current.iterdir())
            assert outcome.verdict is not None
            assert outcome.verdict.worst <= outcome.verdict.allowed
            assert open_bundle(current, sides).digest == bundle.digest


def test_a_changed_weight_file_travels_alone(tmp_path: Path, server: Sshd) -> None:
    old, new = weighted(tmp_path / "old", 0), weighted(tmp_path / "new", 1)
    assert deploy(old, server.target()).ok
    outcome = deploy(new, server.target())
    assert outcome.ok
    changed = {f.name for f in new.files if f.sides and f not in old.files}
    assert changed == {PLAN, "server.weights"}
    assert set(outcome.sent) == {MANIFEST, *changed}
    sizes = {file.name: file.size_bytes for file in new.files}
    assert sizes["server.weights"] > 0.9 * outcome.sent_bytes > 1e6
    assert deploy(new, server.target()).sent == ()


def weighted(folder: Path, variant: int) -> Bundle:
    """A model with its weights outside; variants differ in one weight of the server's half."""
    folder.mkdir()
    source = onnx.load(two_branches(folder / "inline.onnx", size=512))
    held = next(tensor for tensor in source.graph.initializer if tensor.name == "w2")
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) + variant, "w2"))
    path = folder / "model.onnx"
    onnx.save(source, path, save_as_external_data=True, location="model.data", size_threshold=0)
    model = load_model(path)
    graph = read_graph(model)
    profile = estimate_profile(graph, 1e9)
    situation = PlanningProblem.of(graph, profile, profile, PRESETS["wifi"])
    plan = make_plan(situation, cut=cut_after(graph, ["stem"]))
    return write_bundle(model, graph, plan, folder / "net.bundle")


def test_other_numbers_leave_the_old_release_in_use(
    bundle: Bundle, server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy(bundle, server.target()).ok
    true_proof = proof.proof_of

    def other(made: Bundle) -> proof.Proof:
        first, *rest = true_proof(made).segments
        outputs = {name: array + np.float32(1) for name, array in first.outputs.items()}
        return proof.Proof((replace(first, outputs=outputs), *rest))

    monkeypatch.setattr(deployment, "proof_of", other)
    newer = branches(tmp_path / "newer.bundle", width=32).bundle
    outcome = deploy(newer, server.target())
    assert outcome.stage is Stage.REFUSED
    assert "gives other numbers" in told(outcome)
    assert open_bundle(server.folder / "target/current", BOTH).digest == bundle.digest


@pytest.mark.timeout(1200)
def test_killed_at_any_instant_the_target_has_a_whole_working_release(
    tmp_path: Path, server: Sshd
) -> None:
    made = [weighted(tmp_path / f"v{variant}", variant) for variant in (0, 1)]
    proofs = {bundle.digest: proof.make_proof(bundle) for bundle in made}
    devices = tmp_path / "devices.toml"
    devices.write_text(
        f"[pi]\nhost = '127.0.0.1'\nport = {server.port}\nroot = '{server.folder / 'target'}'\n"
        f"python = '{sys.executable}'\n"
    )

    def run(bundle: Bundle, kill_after_s: float | None) -> float | None:
        """Deploy; the seconds it took from when it began its work, or None when killed before."""
        offload = str(Path(sys.executable).with_name("offload"))
        command = [offload, "deploy", str(bundle.path), "pi", "--keep", "1"]
        command += ["--devices", str(devices)]
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},  # what is killed leaves its files
        ) as process:
            assert process.stderr is not None
            process.stderr.readline()
            begun_s = time.monotonic()
            try:
                assert process.wait(kill_after_s) in (0, 1)
            except subprocess.TimeoutExpired:
                process.kill()
                return None
            return time.monotonic() - begun_s

    whole_s = run(made[0], None)
    assert whole_s is not None
    rng, seen, finished = random.Random(8), [], 0
    for number in range(1, KILLS + 1):
        finished += run(made[number % 2], rng.uniform(0, 1.05) * whole_s) is not None
        seen.append(in_use(server.folder / "target/current", proofs))
    assert finished < KILLS
    wait_for_lock(server, made[0])
    print(f"{KILLS} runs killed within {whole_s:.1f} s: {finished} had finished,", end=" ")
    print(f"{sum(a != b for a, b in itertools.pairwise(seen))} changes of release, all whole")


def in_use(current: Path, proofs: Mapping[str, proof.Proof]) -> str:
    """Digest of the release in use, which gives its numbers; looked at anew if it changes."""
    while True:
        place = current.resolve()
        try:
            bundle = open_bundle(place, BOTH)
            assert proof.repeat_proof(bundle, proofs[bundle.digest], EngineOptions()).ok
            return bundle.digest
        except (OffloadError, OSError, AssertionError):
            if current.resolve() == place:
                raise


def wait_for_lock(server: Sshd, bundle: Bundle) -> None:
    """Deploy when the last killed deployer's agent has noticed; nothing is in the way then."""
    for _ in range(20):
        if deploy(bundle, server.target()).ok:
            break
        time.sleep(0.5)
    current = server.folder / "target/current"
    assert open_bundle(current, BOTH).digest == bundle.digest


@pytest.mark.parametrize("seed", range(4))
def test_cut_at_any_byte_it_goes_on_from_there(
    tmp_path: Path, server: Sshd, user: User, bundle: Bundle, seed: int
) -> None:
    rng = random.Random(seed)
    assert deploy(bundle, server.target()).ok
    newer = weighted(tmp_path / "new", 0)
    total = sum(file.size_bytes for file in newer.files)
    with Scissors(server.port) as wire:
        through = replace(server, port=wire.port)
        user.know(through)
        for _ in range(3):
            wire.cut_after_bytes = rng.randrange(1_000, total + 60_000)
            outcome = deploy(newer, through.target())
            if outcome.ok:
                break
            assert outcome.why is not None
            assert outcome.why.retry
            assert "cut" in told(outcome) or "can't be reached" in told(outcome)
            current = open_bundle(server.folder / "target/current", BOTH)
            assert current.digest == bundle.digest
            wait_until_unlocked(server)
        wire.cut_after_bytes = 1 << 60
        arrived = sum(
            path.stat().st_size
            for path in (server.folder / "target/staging").rglob("*")
            if path.is_file()
        )
        outcome = deploy(newer, through.target())
    assert outcome.ok
    assert outcome.sent_bytes <= total + (newer.path / MANIFEST).stat().st_size - arrived


def wait_until_unlocked(server: Sshd) -> None:
    """Until the agent of the connection that was cut has gone."""
    with (server.folder / "target/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_a_machine_with_another_host_key_gets_nothing(
    tmp_path: Path, server: Sshd, user: User, bundle: Bundle
) -> None:
    (user.home / ".ssh/known_hosts").write_text("")
    assert "host key" in told(deploy(bundle, server.target()))
    make_key(tmp_path / "other")
    user.know(server, (tmp_path / "other.pub").read_text().split(" ", 2)[1])
    assert "host key" in told(deploy(bundle, server.target()))
    assert not (server.folder / "target").exists()


def test_without_a_key_that_fits_nothing_happens(
    tmp_path: Path, server: Sshd, user: User, bundle: Bundle
) -> None:
    make_key(tmp_path / "other")
    (tmp_path / "other").replace(user.home / ".ssh/id_ed25519")
    (tmp_path / "other.pub").replace(user.home / ".ssh/id_ed25519.pub")
    assert "none of your keys" in told(deploy(bundle, server.target()))
    missing = place(server.target())
    assert missing.ssh is not None
    (outcome,) = deploy_to(
        bundle, [(replace(missing, ssh=replace(missing.ssh, key="/no/such/key")), BOTH)]
    )
    assert "key" in told(outcome)


@pytest.mark.usefixtures("user")
def test_nobody_listens(bundle: Bundle) -> None:
    outcome = deploy(bundle, f"root@127.0.0.1:{free_port()}/tmp/never")
    assert "can't be reached" in told(outcome)


def test_odd_pythons_are_told(tmp_path: Path, server: Sshd, bundle: Bundle) -> None:
    old = tmp_path / "oldpython"
    old.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 7, 3)\nexec(sys.argv[2])\n"
    )
    old.chmod(0o755)
    target = find_target(server.target(), {})
    for python, words in (
        (str(old), "Python 3.7 is too old"),
        ("python9", "does not start python9, exit code 127"),
    ):
        (outcome,) = deploy_to(bundle, [(replace(target, python=python), BOTH)])
        assert words in told(outcome)


def test_a_login_script_that_prints_is_told(server: Sshd, user: User, bundle: Bundle) -> None:
    noisy = user.home / "noisy"
    noisy.write_text(f'#!/bin/sh\necho Welcome\nexec {sys.executable} "$@"\n')
    noisy.chmod(0o755)
    (outcome,) = deploy_to(
        bundle, [(replace(find_target(server.target(), {}), python=str(noisy)), BOTH)]
    )
    assert "says 'Welcome'" in told(outcome)


def test_a_full_disk_is_told(server: Sshd, tmp_path: Path, bundle: Bundle) -> None:
    target = server.folder / "target"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(target)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    try:
        assert deploy(bundle, server.target()).ok
        large = weighted(tmp_path / "large", 0)
        assert "no space in" in told(deploy(large, server.target()))
        assert open_bundle(target / "current", BOTH).digest == bundle.digest
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_two_deployers_at_once(server: Sshd, tmp_path: Path, bundle: Bundle) -> None:
    newer = weighted(tmp_path / "new", 0)
    first: list[DeploymentOutcome] = []
    sending, refused = threading.Event(), threading.Event()

    def hold(progress: DeploymentProgress) -> None:
        if progress.stage is Stage.SEND and not sending.is_set():
            sending.set()
            refused.wait(30)

    def run() -> None:
        first.extend(deploy_to(newer, [(place(server.target()), BOTH)], hold))

    thread = threading.Thread(target=run)
    thread.start()
    sending.wait(30)
    second = deploy(bundle, server.target())
    refused.set()
    thread.join()
    assert "being changed by another process" in told(second)
    assert first[0].ok
    assert open_bundle(server.folder / "target/current", BOTH).digest == newer.digest


def test_a_file_changed_on_the_target_is_mended(server: Sshd, bundle: Bundle) -> None:
    assert deploy(bundle, server.target()).ok
    (server.folder / "target/current/device-0.onnx").write_bytes(b"rotten")
    outcome = deploy(bundle, server.target())
    assert outcome.sent == ("device-0.onnx",)
    assert open_bundle(server.folder / "target/current", BOTH).digest == bundle.digest
