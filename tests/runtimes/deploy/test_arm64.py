"""The light runtime on arm64: it imports there, and a bundle runs against an x86 server."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.bundle.write import write_bundle
from offload.costs.link import PRESETS
from offload.costs.profile import estimate_profile
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload.planning.cut import cut_after
from offload.planning.plan import Side
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload_models.zoo import ZOO
from offload_runtimes.deploy.deployment import deploy_to
from offload_runtimes.deploy.measuring import target_machine
from offload_runtimes.deploy.targets import find_target
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.profile import measure, optimized_model
from offload_runtimes.server import Server

from tests.runtimes.bundles import Made, branches, deployed
from tests.runtimes.deploy.pi import Pi, make_pi, missing_tools
from tests.runtimes.deploy.sshd import Sshd, make_user, needs_sshd, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_tools() != "", reason=missing_tools()),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> Pi:
    begun_s = time.monotonic()
    made = make_pi(tmp_path_factory.mktemp("pi"))
    size_bytes = sum(path.stat().st_size for path in made.wheels)
    print(f"\narm64: ready in {time.monotonic() - begun_s:.0f} s,", end=" ")
    print(f"{len(made.wheels)} wheels of {size_bytes / 1e6:.1f} MB")
    return made


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with running(tmp_path / "sshd", make_user(tmp_path / "home")) as server:
        yield server


def test_the_runtime_works_and_is_light(pi: Pi) -> None:
    found = json.loads(pi.run("-m", "offload_runtimes", "preflight"))
    assert found["ok"]
    names = {package["name"] for package in found["packages"]}
    assert names == {
        "numpy",
        "onnxruntime",
        "grpcio",
        "protobuf",
        "zstandard",
        "prometheus_client",
        "grpcio-health-checking",
        "typing_extensions",
        "onnx-offload-runtime",
    }
    for package in found["packages"]:
        print(
            f"arm64: {package['name']} {package['version']}: {package['size_bytes'] / 1e6:.1f} MB"
        )
    total_bytes = sum(package["size_bytes"] for package in found["packages"])
    print(f"arm64: {total_bytes / 1e6:.0f} MB installed, without onnx, networkx, typer")


def test_a_bundle_runs_there_against_a_server_here(pi: Pi, tmp_path: Path) -> None:
    made = squeezenet(tmp_path)
    half = deployed(made, Side.DEVICE, tmp_path / "half")
    feeds = made.feeds()
    np.savez(tmp_path / "in.npz", **feeds)  # type: ignore[arg-type]  # numpy takes any keyword
    begun_s = time.monotonic()
    with Server([deployed(made, Side.SERVER, tmp_path / "other")]) as served:
        words = ("-m", "offload_runtimes", "run", half, "--threads", "1")
        files = ("--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
        pi.run(*words, *files, "--server", served.address)
    seconds = time.monotonic() - begun_s
    with np.load(tmp_path / "out.npz") as held:
        pairs = zip(made.bundle.outputs, made.expected(feeds), strict=True)
        worst = max(
            float(np.abs(held[value.name] - want).max() / np.abs(want).max())
            for value, want in pairs
        )
    print(
        f"arm64: SqueezeNet, cut in the middle, against an x86 server in {seconds:.1f} s,", end=" "
    )
    print(f"outputs off by {worst:.1g}")
    assert worst < 5e-5


def squeezenet(folder: Path) -> Made:
    """A real network, cut in the middle."""
    whole = ZOO["squeezenet"].build()
    onnx.save(whole, folder / "model.onnx")
    model = load_model(folder / "model.onnx")
    graph = read_graph(model)
    profile = estimate_profile(graph, 1e9)
    situation = PlanningProblem.of(graph, profile, profile, PRESETS["wifi"])
    middle = graph.layers[len(graph.layers) // 2].outputs[0]
    plan = make_plan(situation, cut=cut_after(graph, [middle]))
    return Made(write_bundle(model, graph, plan, folder / "net.bundle"), whole)


@needs_sshd
def test_a_bundle_is_deployed_and_proved_there_over_ssh(
    pi: Pi, server: Sshd, tmp_path: Path
) -> None:
    made = branches(tmp_path / "net.bundle")
    place = replace(find_target(server.target(), {}), python=str(pi.python), threads=1)
    begun_s = time.monotonic()
    (outcome,) = deploy_to(made.bundle, [(place, (Side.DEVICE,))])
    assert outcome.ok, outcome.why
    assert outcome.verdict is not None
    assert outcome.verdict.segments == len(made.bundle.plan.on(Side.DEVICE))
    assert outcome.verdict.worst < 1e-5
    print(f"arm64: deployed over SSH and proved in {time.monotonic() - begun_s:.1f} s,", end=" ")
    print(f"off by {outcome.verdict.worst:.1g}, onnxruntime {outcome.verdict.ort}")


@needs_sshd
def test_a_model_is_profiled_there_over_ssh(pi: Pi, server: Sshd, tmp_path: Path) -> None:
    """By the target's own onnxruntime, which may fuse other layers than the one here."""
    onnx.save(branches(tmp_path / "net.bundle").whole, tmp_path / "net.onnx")
    model = load_model(tmp_path / "net.onnx")
    target = replace(find_target(server.target(), {}), python=str(pi.python), threads=1)
    begun_s = time.monotonic()
    with target_machine(target) as machine:
        optimized = optimized_model(model, tmp_path, machine=machine)
        profile = measure(optimized, EngineOptions(threads=1), runs=3, machine=machine)
    assert "aarch64" in profile.machine
    assert profile.whole_s > 0
    profile.costs_of(optimized.graph)
    print(f"arm64: profiled over SSH in {time.monotonic() - begun_s:.1f} s")
