"""What operators ask of targets and servers: versions, status, services, earlier runtimes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight


@pytest.fixture
def bundle(door: Door) -> str:
    return door.split_two_layers(64)


def test_versions(door: Door) -> None:
    lines = door.ok("--version").splitlines()
    names = [line.split()[0] for line in lines]
    assert names == ["offload", "onnxruntime", "onnx", "Python", "platform", "providers"]
    assert "cpu" in lines[5]
    told = json.loads(door.light("version").stdout)
    assert lines[0] == f"offload {told['version']}"
    assert lines[1] == f"onnxruntime {told['onnxruntime']}"


def test_a_half_needs_its_server(door: Door, bundle: str) -> None:
    door.ok("deploy", bundle, "./pi", "--side", "device")
    run = ("run", "pi/current", "--input", "in.npz")
    said = door.refused(*run)
    assert "does not have the server's half" in said
    assert "--server HOST:PORT" in said
    done = door.light(*run)
    assert done.returncode == 1
    assert "--server HOST:PORT" in done.stderr


def test_the_light_run_repeats(door: Door, bundle: str) -> None:
    done = door.light("run", bundle, "--input", "in.npz", "--repeat", "5")
    told = json.loads(done.stdout)
    assert len(told["latencies_s"]) == 5
    assert told["latency_s"] == sorted(told["latencies_s"])[2]
    assert door.light("run", bundle, "--input", "in.npz", "--repeat", "0").returncode == 1


@pytest.mark.door
def test_status_shows_servers_without_systemd(door: Door, bundle: str) -> None:
    root = door.folder / "hub"
    (door.folder / "devices.toml").write_text(f"[hub]\nrole = 'server'\nroot = '{root}'\n")
    door.ok("deploy", bundle, "hub")
    (before,) = json.loads(door.ok("status", "--format", "json"))
    assert before["servers"] == []
    version = door.ok("--version").splitlines()[0].split()[1]
    assert before["runtime"]["version"] == version
    with door.serving("hub/current") as address:
        (shown,) = json.loads(door.ok("status", "--format", "json"))
        (server,) = shown["servers"]
        assert (server["listening"], server["sessions"]) == (address, 0)
        assert (server["providers"], server["version"]) == (["cpu"], version)
        assert f"{address} on cpu, 0 sessions" in door.ok("status")
    (after,) = json.loads(door.ok("status", "--format", "json"))
    assert after["servers"] == []


@pytest.mark.door
def test_a_service_without_a_manager_says_what_serves(door: Door, bundle: str) -> None:
    """There is no systemd of this user's: its folder does not exist, or no program is there."""
    root = door.folder / "hub"
    door.ok("deploy", bundle, str(root), "--side", "server")
    env = {"XDG_RUNTIME_DIR": str(door.folder / "nowhere"), "DBUS_SESSION_BUS_ADDRESS": ""}
    said = door.refused("service", "install", str(root), env=env)
    assert f"-m offload_runtimes serve {root}/current --listen 127.0.0.1:50051" in said
    assert "lingering" in said or "has no systemd" in said


@pytest.mark.door
def test_several_targets_fail_alone(door: Door, bundle: str) -> None:
    for name in ("one", "two"):
        door.ok("deploy", bundle, f"./{name}", "--side", "server")
    done = door.offload("service", "status", "./one", "./two")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all("has no service" in line for line in errors)


@pytest.mark.door
def test_a_batch_that_never_fits_says_so(door: Door) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Neg", ["x"], ["k"]),
        helper.make_node("Add", ["h", "k"], ["y"]),
    ]
    ends = [value("x", "n", 64)], [value("y", "n", 64)]
    save(door.folder / "net.onnx", nodes, *ends, {"W": weight(64, 64)})
    words = ("split", "net.onnx", "-o", "b", *ESTIMATED, "--shape", "x=1600x64", "--cut", "h,k")
    door.ok(*words, "--encoding", "raw")
    run = ("run", "b", "--input", "in.npz", "--on-server-loss", "raise")
    with door.serving("b", "--max-memory", "2 MB") as address:
        # Each of the two tensors fits, but not both.
        np.savez(door.folder / "in.npz", x=np.ones((1600, 64), np.float32))
        both = door.refused(*run, "--server", address)
        assert "this inference sends 819 kB to the server, which allows 500 kB" in both
        # One alone is not sent.
        np.savez(door.folder / "in.npz", x=np.ones((4096, 64), np.float32))
        one = door.refused(*run, "--server", address)
        assert "takes 1.05 MB, server" in one
        assert "start it with a larger --max-memory, or send smaller inputs" in one
        assert "try again" not in both + one


@pytest.mark.door
def test_the_earlier_runtime_is_kept(door: Door) -> None:
    """Two environments made here, without an index: they use the packages of this one."""
    root = door.folder / "pi"
    site = next(path for path in sys.path if path.endswith("site-packages"))
    venvs = root / "runtime/venvs"
    for name in ("20260101-000000", "20260202-000000"):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venvs / name], check=True)
        (inside,) = (venvs / name).glob("lib/python*/site-packages")
        (inside / "all.pth").write_text(f"import site; site.addsitedir({site!r})\n")
    (root / "runtime/current").symlink_to("venvs/20260202-000000")
    for runtime in ("20260101-000000", "20260202-000000"):
        told = door.json("device", "rollback", str(root))
        assert told["runtime"] == runtime
        assert (root / "runtime/current").readlink() == Path(f"venvs/{runtime}")
    # One that does not work is not taken.
    (venvs / "20260101-000000/bin/python").unlink()
    assert "the preflight" in door.refused("device", "rollback", str(root))
    assert (root / "runtime/current").readlink() == Path("venvs/20260202-000000")
    said = door.refused("device", "rollback", str(door.folder / "empty"))
    assert "has no earlier runtime" in said
