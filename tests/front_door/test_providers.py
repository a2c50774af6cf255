"""Execution providers: the one asked for does the work, or the command fails and says why."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.front_door.door import Door


@pytest.fixture
def bundle(door: Door) -> str:
    return door.split_two_layers()


def test_a_server_without_the_provider_does_not_start(door: Door, bundle: str) -> None:
    listen = ("--listen", "127.0.0.1:0")
    said = door.refused("serve", bundle, "--provider", "cuda", *listen)
    assert "CUDAExecutionProvider is not in this onnxruntime" in said
    assert "install onnxruntime-gpu in place of onnxruntime" in said
    assert "--allow-cpu" in said
    done = door.light("serve", bundle, "--provider", "cuda", *listen)
    assert (done.returncode, done.stdout) == (1, "")
    assert "install onnxruntime-gpu" in done.stderr


def test_the_number_of_a_gpu(door: Door, bundle: str) -> None:
    words = ("serve", bundle, "--listen", "127.0.0.1:0", "--provider")
    assert "install onnxruntime-gpu in place of onnxruntime" in door.refused(*words, "cuda:1")
    assert "'cuda:x': give the number of a GPU, like cuda:1" in door.refused(*words, "cuda:x")


@pytest.mark.door
def test_every_verb_refuses_a_missing_provider(door: Door, bundle: str) -> None:
    run = ("run", bundle, "--input", "in.npz")
    split = ("split", "net.onnx", "-o", "other")
    for words in (run, ("profile", "net.onnx"), split, ("verify", "net.onnx")):
        assert "install onnxruntime-gpu" in door.refused(*words, "--provider", "cuda")
    done = door.offload(*run, "--provider", "cuda", "--allow-cpu")
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "running on the CPU instead" in warnings[0]


def test_a_preflight_runs_on_the_provider(door: Door) -> None:
    done = door.light("preflight")
    assert json.loads(done.stdout)["provider"] == "cpu"
    # This provider is in the CPU's wheel, starts, and computes nothing of an ordinary model.
    done = door.light("preflight", "--provider", "AzureExecutionProvider")
    assert (done.returncode, done.stdout) == (1, "")
    assert "AzureExecutionProvider computes nothing on this machine" in done.stderr


@pytest.mark.door
def test_a_deployment_is_proved_on_the_provider(door: Door, bundle: str) -> None:
    devices = door.folder / "devices.toml"
    devices.write_text(f"[big]\nroot = '{door.folder / 'big'}'\nproviders = ['cuda']\n")
    said = door.refused("deploy", bundle, "big")
    assert "install onnxruntime-gpu" in said
    assert not (door.folder / "big/current").exists()
    with devices.open("a") as stream:
        stream.write("allow_cpu = true\n")
    assert "probe passed" in door.ok("deploy", bundle, "big")
    (shown,) = json.loads(door.ok("status", "--format", "json"))
    assert shown["current"]["probe"]["providers"] == ["cpu"]


@pytest.mark.door
def test_device_init_takes_the_wheel_of_the_provider(door: Door) -> None:
    """The house has the CPU's wheel only, so a target with `cuda` must fail and name the other."""
    (door.folder / "wheels").mkdir()
    for name in ("onnxruntime", "numpy", "grpcio", "protobuf", "zstandard", "typing_extensions"):
        write_wheel(door.folder / "wheels", name)
    root = door.folder / "big"
    (door.folder / "devices.toml").write_text(
        f"[big]\nroot = '{root}'\npython = '{sys.executable}'\nproviders = ['cuda']\n"
    )
    init = ("device", "init", "big", "--wheelhouse", "wheels", "--system-cuda")
    assert "onnxruntime-gpu" in door.refused(*init)
    assert not (door.folder / "big/runtime/current").exists()


def write_wheel(folder: Path, name: str) -> None:
    """An empty package of a version that is new enough for all requirements."""
    info = f"{name}-99.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
