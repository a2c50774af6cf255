"""The user's own SSH configuration, known hosts and login shells, as OpenSSH takes them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight
from tests.front_door.ssh import SshServer, ssh_server


@pytest.fixture
def server(door: Door) -> Iterator[SshServer]:
    with ssh_server(door.folder / "home") as found:
        yield found


def releases(door: Door, server: SshServer, target: str = "") -> str:
    """Reach the server; nothing was deployed there."""
    said = door.ok("releases", target or server.target, env=server.environment)
    assert "nothing was deployed yet" in said
    return said


def refused(door: Door, server: SshServer, *words: str) -> str:
    return door.refused(*(words or ("releases", server.target)), env=server.environment)


# What OpenSSH takes without a word and asyncssh refuses.
TAKEN = """
Match sessiontype shell
  Port 1
Host *   # every host
  ConnectTimeout 1m
  RequestTTY force
  RemoteCommand ls
  ServerAliveInterval 1m
  UnknownToEverybody yes
  User someone # the command line says who
Host other
  Port abc
Match final all
  Compression maybe
"""


def test_lines_that_openssh_takes_do_not_end_it(door: Door, server: SshServer) -> None:
    server.config(TAKEN)
    known = server.home / ".ssh/known_hosts"
    known.write_text(f"rubbish\n@what 192.0.2.1 ssh-ed25519 x\n{known.read_text()}")
    done = door.offload("releases", server.target, env=server.environment)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split("/.ssh/")[1] for line in warnings] == [
        "config line 2: the condition 'sessiontype' is not known, so it does not match",
        "known_hosts line 1 is not understood and skipped",
        "known_hosts line 2 is not understood and skipped",
    ]


@pytest.mark.door
@pytest.mark.parametrize(
    ("text", "line"),
    [("Port abc\n", 1), ("# mine\n\nUser 'me\n", 3), ("Include more\n", 2)],
)
def test_a_line_that_is_wrong_is_named(door: Door, server: SshServer, text: str, line: int) -> None:
    server.config(text)
    (server.home / ".ssh/more").write_text("User me\nPort abc\n")
    name = "more" if "Include" in text else "config"
    said = refused(door, server)
    assert f"{server.home}/.ssh/{name} line {line} is not understood" in said


@pytest.mark.door
def test_aliases_includes_and_jumps_are_followed(door: Door, server: SshServer) -> None:
    alias = f"  HostName 127.0.0.1\n  Port {server.port}\n  User me\n"
    server.config("Host a b\n  Include part*\n  User me\nHost pi\n" + alias)
    (server.home / ".ssh/part1").write_text("Host elsewhere\n  User nobody\n")
    releases(door, server, "me@pi")


@pytest.mark.door
def test_a_jump_that_leads_to_itself_is_named(door: Door, server: SshServer) -> None:
    server.config(f"Host *\n  ProxyJump me@127.0.0.1:{server.port}\n")
    assert "ProxyJump" in refused(door, server)


@pytest.mark.door
def test_no_file_of_known_hosts_admits_nobody(door: Door, server: SshServer) -> None:
    for files in ("none", "/no/such/file"):
        server.config(f"UserKnownHostsFile {files}\n")
        assert "host key" in refused(door, server)


@pytest.mark.door
@pytest.mark.parametrize("shell", ["sh", "tcsh", "fish"])
def test_any_login_shell(door: Door, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here: apt-get install {shell}")
    model(door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--encoding", "raw")
    with ssh_server(door.folder / "home", shell) as server:
        door.ok("deploy", "b", server.target, env=server.environment)
        devices = f"[pi]\nhost = '127.0.0.1'\nport = {server.port}\nuser = 'me'\n"
        (door.folder / "devices.toml").write_text(f"{devices}python = 'python9'\n")
        said = refused(door, server, "releases", "pi")
        assert "does not start python9, exit code" in said


def test_messages_in_another_language(door: Door, server: SshServer) -> None:
    """What a shell says is not read: only that it ended, and how."""
    python = server.home / "python9"
    python.write_text("#!/bin/sh\necho 'Befehl nicht gefunden' >&2\nexit 127\n")
    python.chmod(0o755)
    devices = f"[pi]\nhost = '127.0.0.1'\nport = {server.port}\nuser = 'me'\n"
    (door.folder / "devices.toml").write_text(f"{devices}python = '{python}'\n")
    said = refused(door, server, "releases", "pi")
    assert "exit code 127 (Befehl nicht gefunden): install Python 3.11 or newer there" in said


def test_an_address_with_a_zone(door: Door) -> None:
    """It is understood: what fails is the connection, for nobody listens."""
    (door.folder / "home").mkdir()
    env = {"HOME": str(door.folder / "home")}
    done = door.offload("releases", "pi@[fe80::1%lo]:1", env=env)
    assert done.returncode == 1
    assert "pi@[fe80::1%lo]:1 can't be reached" in done.stderr


def model(path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    save(path, nodes, [value("x", 1, 8)], [value("y", 1, 8)], {"W": weight(8, 8)})
