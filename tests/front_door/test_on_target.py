"""`--on TARGET`: measure on a device that has only the light runtime."""

import json
import socket
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from offload_runtimes import ServerError
from offload_runtimes.deploy.measuring import probe_between
from offload_runtimes.deploy.targets import find_target
from offload_runtimes.measure.target_machine import TargetMachine

from tests.front_door.door import ESTIMATED, Door, two_layers
from tests.front_door.ssh import SshServer, ssh_server


@pytest.fixture
def server(door: Door) -> Iterator[SshServer]:
    with ssh_server(door.folder / "home") as started:
        yield started


def test_a_directory_is_profiled_and_planned_for(door: Door) -> None:
    two_layers(door.folder / "net.onnx", 64)
    text = door.ok("profile", "net.onnx", "--on", "./pi", "--runs", "3", "-o", "pi.json")
    assert "a run on" in text
    profile = json.loads((door.folder / "pi.json").read_text())
    assert profile["estimated"] is False
    assert profile["layers"]
    door.ok("split", "net.onnx", "--device", "pi.json", "--server", "1e11", "-o", "b")


def test_a_device_is_profiled_over_ssh(door: Door, server: SshServer) -> None:
    two_layers(door.folder / "net.onnx", 64)
    (door.folder / "devices.toml").write_text(
        f'[pi]\nhost = "127.0.0.1"\nport = {server.port}\npython = "{sys.executable}"\n'
        "threads = 1\n"
    )
    words = ("profile", "net.onnx", "--on", "pi", "--runs", "3", "--format", "json")
    profile = json.loads(door.ok(*words, env=server.environment))
    assert profile["threads"] == 1
    assert profile["provider"] == "cpu"


def test_cuts_are_verified_on_a_device(door: Door, server: SshServer) -> None:
    two_layers(door.folder / "net.onnx")
    (door.folder / "devices.toml").write_text(
        f'[pi]\nhost = "127.0.0.1"\nport = {server.port}\npython = "{sys.executable}"\n'
    )
    text = door.ok("verify", "net.onnx", "--on", "pi", env=server.environment)
    assert "bit-equal without optimisations" in text
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED)
    assert "`offload deploy b pi` proves it" in door.refused("verify", "b", "--on", "pi")


def test_a_bundle_runs_on_a_device(door: Door, server: SshServer) -> None:
    """Over SSH, alone and against a server; the outputs come back and equal those from here."""
    bundle = door.split_two_layers(64)
    (door.folder / "devices.toml").write_text(
        f'[pi]\nhost = "127.0.0.1"\nport = {server.port}\npython = "{sys.executable}"\n'
    )
    words = ("run", bundle, "--input", "in.npz", "--output")
    door.ok(*words, "here.npz")
    alone = door.json(*words, "alone.npz", "--on", "pi", "--repeat", "3", env=server.environment)
    assert len(alone["latencies_s"]) == 3
    with door.serving(bundle, "--insecure") as address:
        door.ok(*words, "split.npz", "--on", "pi", "--server", address, env=server.environment)
    here, *others = (
        np.load(door.folder / name)["y"] for name in ("here.npz", "alone.npz", "split.npz")
    )
    for other in others:
        np.testing.assert_array_equal(other, here)
    said = door.refused(*words, "x.npz", "--on", "pi", "--link", "wifi", env=server.environment)
    assert "leave out --link" in said


def test_a_target_without_a_runtime_says_what_installs_it(door: Door, server: SshServer) -> None:
    two_layers(door.folder / "net.onnx")
    bare = door.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    (door.folder / "devices.toml").write_text(
        f'[pi]\nhost = "127.0.0.1"\nport = {server.port}\npython = "{bare}"\n'
    )
    said = door.refused("profile", "net.onnx", "--on", "pi", env=server.environment)
    assert said == "pi has no runtime to measure with: run `offload device init pi` first"


def test_a_target_that_is_not_there(door: Door) -> None:
    two_layers(door.folder / "net.onnx")
    said = door.refused("profile", "net.onnx", "--on", "pi@127.0.0.1:1")
    assert "pi@127.0.0.1" in said


def test_the_link_between_two_targets(door: Door, server: SshServer) -> None:
    """The device's side over SSH, the server's side in a directory; certificates by default."""
    (door.folder / "devices.toml").write_text(
        f'[pi]\nhost = "127.0.0.1"\nport = {server.port}\npython = "{sys.executable}"\n'
        '[hub]\nroot = "hub"\nlisten = "127.0.0.1:0"\n'
    )
    words = ("probe", "--from", "pi", "--to", "hub", "-o", "link.json", "--format", "json")
    link = json.loads(door.ok(*words, env=server.environment))
    assert link["up_bps"] > 1e6
    assert json.loads((door.folder / "link.json").read_text()) == link
    door.ok("probe", "--from", "hub", "--to", "pi", "--insecure", env=server.environment)


def test_a_probe_needs_a_server_or_two_targets(door: Door) -> None:
    for words in ((), ("--from", "a"), ("--to", "b"), ("h:1", "--from", "a", "--to", "b")):
        assert "--from DEVICE --to SERVER" in door.refused("probe", *words)


def test_a_port_that_is_taken_on_the_server(door: Door) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (door.folder / "devices.toml").write_text(
            f'[pi]\nroot = "pi"\n[hub]\nroot = "hub"\nlisten = "127.0.0.1:{port}"\n'
        )
        said = door.refused("probe", "--from", "pi", "--to", "hub")
    assert said.startswith(f"hub: cannot listen on 127.0.0.1:{port}: the port is in use")


def test_a_server_on_a_unix_socket_cannot_be_probed(door: Door) -> None:
    (door.folder / "devices.toml").write_text('[hub]\nroot = "hub"\nlisten = "unix:s"\n')
    said = door.refused("probe", "--from", "./pi", "--to", "hub")
    assert "hub listens on a Unix socket" in said


def test_a_port_that_only_this_machine_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that speaks no gRPC: this machine connects, the device's probe fails."""
    pi, hub = (find_target(name, {}) for name in ("./pi", "./hub"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(TargetMachine, "serve", lambda *_: address)
        with pytest.raises(ServerError, match="reached from here but not from") as caught:
            probe_between(pi, hub, 1)
        assert address in str(caught.value)
    with pytest.raises(ServerError, match=r"neither .*pi nor this machine reaches"):
        probe_between(pi, hub, 1)
