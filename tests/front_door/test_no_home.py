"""Accounts without a home: measuring goes on without a cache, with one remark."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import helper

from tests.front_door.door import Door, save, value, weight


def model(path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    save(path, nodes, [value("x", 1, 8)], [value("y", 1, 8)], {"W": weight(8, 8)})


def check(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode == 0, done.stderr
    remarks = [line for line in done.stderr.splitlines() if "are not cached" in line]
    assert len(remarks) == 1, done.stderr
    assert why in remarks[0]
    assert ".py" not in remarks[0]


def test_a_home_that_cannot_be_written(door: Door) -> None:
    model(door.folder / "net.onnx")
    env = {"XDG_CACHE_HOME": "", "HOME": "/dev/null"}
    check(door.offload("split", "net.onnx", "-o", "b", env=env), "/dev/null")


def test_no_account_and_no_home(door: Door) -> None:
    model(door.folder / "net.onnx")
    nobody = ["unshare", "--user", "--map-user=54321"]  # a uid that no account has
    if not shutil.which("unshare") or subprocess.run([*nobody, "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    env = {**door.environment(), "XDG_CACHE_HOME": ""}
    for name in ("HOME", "USER", "LOGNAME"):
        env.pop(name, None)
    command = [sys.executable, "-c", "from offload_cli.main import main; main()"]
    done = subprocess.run(
        [*nobody, *command, "split", "net.onnx", "-o", "b"],
        capture_output=True,
        text=True,
        cwd=door.folder,
        env=env,
        check=False,
        timeout=60,
    )
    check(done, "has no home")
    assert not (door.folder / "~").exists()


def test_onnxruntime_leaves_no_device_number_and_sends_no_usage_data(door: Door) -> None:
    """Newer wheels write `Microsoft/DeveloperTools` into the cache as soon as they are imported."""
    bundle = door.split_two_layers()
    door.ok("run", bundle, "--input", "in.npz")
    door.light("preflight")
    assert not (door.folder / "cache/Microsoft").exists()
