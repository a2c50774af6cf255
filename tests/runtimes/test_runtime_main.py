"""The light runtime's own commands and what stands behind them."""

import base64
import json
import os
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.errors import BundleError, InputError
from offload_runtimes import daemon as notify
from offload_runtimes import device_requirements, installation
from offload_runtimes.__main__ import main
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.proof_replay import (
    Proof,
    make_proof,
    read_proof,
    repeat_proof,
    write_proof,
)

from tests.runtimes.bundles import Made, branches

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return branches(tmp_path / "net.bundle", batch="n")


def test_a_proof_repeats_from_its_file(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "proof.npz"
    write_proof(path, make_proof(made.bundle))
    found = repeat_proof(made.bundle, read_proof(path), EngineOptions())
    assert (found.ok, found.segments) == (True, 3)
    assert found.worst <= found.allowed


def test_a_proof_is_the_whole_models_answer(made: Made) -> None:
    proofs = {proof.segment: proof for proof in make_proof(made.bundle).segments}
    x = proofs["device-0"].inputs["x"]
    y, kept = made.expected({"x": x})
    np.testing.assert_allclose(proofs["server-0"].outputs["y"], y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(proofs["device-1"].outputs["t1"], kept, rtol=1e-5, atol=1e-5)


def test_wrong_numbers_are_found(made: Made) -> None:
    first, *rest = make_proof(made.bundle).segments
    ((name, array),) = first.outputs.items()
    moved = array.copy()
    moved.flat[0] += 0.01 * np.abs(array).max()
    proofs = Proof((*rest, replace(first, outputs={name: moved})))
    found = repeat_proof(made.bundle, proofs, EngineOptions())
    assert (found.ok, found.tensor) == (False, name)
    assert found.worst == pytest.approx(0.01, rel=0.02)


def test_damaged_proofs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing or damaged"):
        read_proof(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 rotten")
    with pytest.raises(BundleError, match="missing or damaged"):
        read_proof(tmp_path / "bad.npz")


def test_run_gives_the_models_answer(made: Made, tmp_path: Path) -> None:
    feeds = made.feeds()
    np.savez(tmp_path / "in.npz", x=feeds["x"])
    out = tmp_path / "out.npz"
    assert (
        main(["run", str(made.bundle.path), f"--input={tmp_path}/in.npz", f"--output={out}"]) == 0
    )
    with np.load(out) as held:
        for value, want in zip(made.bundle.outputs, made.expected(feeds), strict=True):
            np.testing.assert_allclose(held[value.name], want, rtol=1e-5, atol=1e-5)


def test_prove_says_what_it_found(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = make_proof(made.bundle).segments
    words = ["prove", str(made.bundle.path), f"--proof={tmp_path}/proof.npz"]
    write_proof(tmp_path / "proof.npz", Proof((first, *rest)))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    outputs = {name: array + np.float32(1) for name, array in first.outputs.items()}
    write_proof(tmp_path / "proof.npz", Proof((replace(first, outputs=outputs), *rest)))
    assert main(words) == 1
    shown = capsys.readouterr()
    assert not json.loads(shown.out)["ok"]
    assert len(shown.err.splitlines()) == 1
    assert "gives other numbers" in shown.err


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path), f"--input={tmp_path}/none.npz"]) == 1
    assert main(["prove", str(tmp_path), f"--proof={tmp_path}/none.npz"]) == 1
    assert main(["serve", str(tmp_path)]) == 1
    assert main(["serve", str(tmp_path), "--batch", "0"]) == 1
    assert main(["serve", str(tmp_path), "--workers", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("error: ") for line in lines)


def test_the_commands_need_only_the_light_packages() -> None:
    code = (
        "import sys, offload_runtimes.__main__, offload_runtimes.installation,"
        " offload_runtimes.measure.proof_replay, offload_runtimes.daemon; print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in shown.stdout.split()}
    assert not loaded & {"onnx", "onnx_graphsurgeon", "networkx", "typer", "rich", "asyncssh"}


def test_the_light_packages_are_among_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = set(project["dependencies"])
    assert {text for text in device_requirements.REQUIREMENTS if "typing" not in text} < asked
    assert (
        project["requires-python"] == f">={'.'.join(map(str, device_requirements.MINIMUM_PYTHON))}"
    )


def test_the_preflight_model_is_valid() -> None:
    model = onnx.load_from_string(base64.b64decode(installation.MODEL))
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    assert ops == ["ConstantOfShape", "Conv", "Relu", "Reshape", "Transpose", "MatMul"]
    assert installation.preflight()["ok"]


def test_the_preflight_finds_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    true_answer = installation._expected
    monkeypatch.setattr(installation, "_expected", lambda x: true_answer(x) + 0.01)
    with pytest.raises(InputError, match="wrong numbers"):
        installation.preflight()


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify.notify("READY=1")
        assert ear.recv(100) == b"READY=1"


def test_the_watchdog_is_ours_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert notify.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_s() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_s() is None
