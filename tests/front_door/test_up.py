"""`offload up` and `offload down` on two directories of this machine."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offload.errors import InputError
from offload_runtimes import ClientSecurity
from offload_runtimes.agent.machine import servers
from offload_runtimes.deploy import up as up_module
from offload_runtimes.deploy.targets import find_target
from offload_runtimes.deploy.up import UpRequest, up

from tests.front_door.door import Door, two_layers
from tests.runtimes.deploy.sshd import free_port

UP = ("up", "net.onnx", "pi", "hub", "--runs", "2")


@pytest.fixture
def prepared(door: Door) -> Door:
    """A model, its inputs, and a server that takes any free port."""
    two_layers(door.folder / "net.onnx", 64)
    rows = np.random.default_rng(0).standard_normal((3, 1, 64)).astype(np.float32)
    np.savez(door.folder / "in.npz", x=rows)
    (door.folder / "devices.toml").write_text(
        f'[pi]\nroot = "pi"\n[hub]\nroot = "hub"\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    return door


def test_from_a_model_to_a_release_and_only_what_changed_again(prepared: Door) -> None:
    door = prepared
    words = ("up", "net.onnx", "pi", "hub", "--runs", "2", "--calibration", "in.npz")
    first = door.json(*words)
    assert {scheme["label"] for scheme in first["schemes"]} >= {"CO"}
    assert all(scheme["difference"] <= 1e-3 for scheme in first["schemes"])
    assert all(len(scheme["latencies_s"]) == 2 for scheme in first["schemes"])
    assert first["running"]
    assert first["secure"]
    assert (door.folder / "pi/current/manifest.json").is_file()
    page = (door.folder / "up/index.html").read_text()
    assert first["verdict"] in page
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page)
    assert page.index("Latency of every scheme") < page.index("<table>") < page.index("<details>")
    assert "cut-figure" in page
    assert all((door.folder / "up" / link).is_file() for link in re.findall('href="([^"]+)"', page))
    # The keys are the user's alone.
    assert (door.folder / "up/certs/device.key").stat().st_mode & 0o077 == 0

    again = door.json(*words)
    assert again["repeated"] == []
    assert again["schemes"] == first["schemes"]

    two_layers(door.folder / "net.onnx", 128)
    np.savez(door.folder / "in.npz", x=np.ones((2, 1, 128), np.float32))
    changed = door.json(*words)
    assert {"profile device", "profile server", "plan", "measure", "deploy"} == set(
        changed["repeated"]
    )

    text = door.ok("down", "pi", "hub", "--purge")
    assert "is removed" in text
    assert not (door.folder / "pi").exists()
    assert not (door.folder / "hub").exists()


def test_the_printed_program_runs(prepared: Door) -> None:
    """The three lines that `up` prints, with the sample input in place of the user's."""
    door = prepared
    words = (
        "up",
        "net.onnx",
        "pi",
        "hub",
        "--runs",
        "2",
        "--keep-input",
        "--calibration",
        "in.npz",
    )
    text = door.ok(*words)
    lines = text[text.index("from offload_runtimes") :].split("\n\n")[0]
    program = lines.replace("{NAME: ARRAY}", "dict(np.load('pi/sample.npz'))")
    code = f"import numpy as np\n{program}\nprint(outputs[0].shape)\nsession.close()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=door.folder, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 64)"
    door.ok("down", "pi", "hub")


def test_certificates_may_be_given_as_strings() -> None:
    security = ClientSecurity("ca.pem", "own.pem", "own.key")  # type: ignore[arg-type]
    assert security.ca == Path("ca.pem")


def test_a_try_leaves_nothing_running_and_nothing_deployed(prepared: Door) -> None:
    door = prepared
    result = door.json(*UP, "--try", "--insecure")
    assert not result["running"]
    assert "plaintext" in " ".join(result["remarks"])
    assert not (door.folder / "pi/current").exists()
    assert servers(door.folder / "hub") == []


def test_what_up_refuses(prepared: Door) -> None:
    door = prepared
    assert "does not exist" in door.refused("up", "no.onnx", "./pi", "./hub")
    assert "same folder of the same account" in door.refused("up", "net.onnx", "./pi", "./pi")
    np.savez(door.folder / "wrong.npz", y=np.ones(3, np.float32))
    said = door.refused(*UP, "--calibration", "wrong.npz")
    assert said.startswith("profiling on pi: ")
    assert "'y', which is not an input" in said
    (door.folder / "devices.toml").write_text(
        '[pi]\nroot = "pi"\n[hub]\nroot = "hub"\ncert = "own.pem"\ncert_key = "own.key"\n'
    )
    assert "certificates or tokens of its own" in door.refused("up", "net.onnx", "pi", "hub")
    said = door.refused("up", "net.onnx", "./pi", "me@127.0.0.1:1")
    assert said.startswith("preparing the runtimes: me@127.0.0.1:1")


def test_a_failed_step_is_named_and_the_next_call_goes_on_from_there(prepared: Door) -> None:
    door = prepared
    (door.folder / "devices.toml").write_text(
        '[pi]\nroot = "pi"\n[hub]\nroot = "hub"\nlisten = "192.0.2.1:50051"\n'
    )
    said = door.refused("up", "net.onnx", "pi", "hub", "--runs", "2")
    assert said.startswith("probing the link from pi to hub: hub: cannot listen on 192.0.2.1"), said
    state = json.loads(Path(door.folder / "up/state.json").read_text())
    assert "profile device" in state["steps"]
    assert "link" not in state["steps"]
    (door.folder / "devices.toml").write_text(
        f'[pi]\nroot = "pi"\n[hub]\nroot = "hub"\nlisten = "127.0.0.1:{free_port()}"\n'
    )
    result = door.json("up", "net.onnx", "pi", "hub", "--runs", "2", "--try")
    assert not {"profile device", "profile server"} & set(result["repeated"])
    assert "link" in result["repeated"]


def test_every_scheme_is_measured_on_two_targets(prepared: Door) -> None:
    door = prepared
    words = ("bench", "net.onnx", "--on", "pi,hub", "--repeats", "3", "-o", "measured")
    result = door.json(*words, "--calibration", "in.npz")
    assert {goal["measure"] for goal in result["goals"]} >= {"answers off by, most"}
    rows = json.loads((door.folder / "measured/net/measured.json").read_text())
    labels = {label for row in rows for label in row["label"].split(" = ")}
    assert labels == {"LO", "CO", "NS", "PO", "OPSS", "joint", "split"}
    assert not (door.folder / "pi/current").exists()
    assert "must name a device and a server" in door.refused("bench", "net.onnx", "--on", "pi")


def test_the_former_release_is_put_back_when_the_device_fails_with_the_new_one(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = {name: find_target(str(door.folder / name), {}) for name in ("pi", "hub")}
    request = UpRequest(
        door.folder / "net.onnx",
        device=devices["pi"],
        server=replace(devices["hub"], listen=f"127.0.0.1:{free_port()}"),
        folder=door.folder / "up",
        repeats=2,
    )
    two_layers(request.model, 64)
    up(request)
    former = (door.folder / "pi/current").readlink()
    two_layers(request.model, 32)

    async def fail(*_: object) -> None:
        raise InputError("the release does not run")

    with monkeypatch.context() as patched:
        patched.setattr(up_module._Up, "_check", fail)
        with pytest.raises(InputError, match=r"running the release from .*does not run"):
            up(request)
    assert (door.folder / "pi/current").readlink() == former
    up(request)
    assert (door.folder / "pi/current").readlink() != former


def test_the_device_s_energy_can_be_the_objective(prepared: Door) -> None:
    words = ("--objective", "energy", "--power", "2.7,3.7,0.7", "--try")
    result = prepared.json(*UP, *words)
    assert any("is best for energy" in remark for remark in result["remarks"])
