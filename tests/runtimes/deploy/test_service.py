"""The server as a service of a real systemd."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from offload_runtimes.client import OffloadSession
from offload_runtimes.deploy.service import Unit

from tests.runtimes.bundles import Made, branches
from tests.runtimes.deploy.manager import Manager, user_manager
from tests.runtimes.deploy.sshd import free_port

OFFLOAD = Path(sys.executable).with_name("offload")
ODD = Unit("/srv/a b/100%net", "/opt/py thon", "[::]:50051", ("--threads", "2"), 10**9)


def test_a_unit_says_what_was_asked() -> None:
    assert ODD.name == "onnx-offload-100-net.service"
    text = ODD.text()
    assert '"/opt/py thon" -m offload_runtimes serve "/srv/a b/100%%net/current"' in text
    assert "--listen '[::]:50051'" not in text
    assert "MemoryMax=1000000000\n" in text
    assert re.findall(r"^\[(\w+)\]$", text, re.M) == ["Unit", "Service", "Install"]


@pytest.mark.slow
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    unit = Unit(str(tmp_path / "a b%"), sys.executable, "127.0.0.1:50051", ("--threads", "2"))
    path = tmp_path / unit.name
    path.write_text(unit.text())
    command = ["systemd-analyze", "verify", "--user", "--man=no", str(path)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


class Served:
    """A target whose service runs under a manager of its own."""

    def __init__(self, manager: Manager, folder: Path) -> None:
        self.manager = manager
        self.port = free_port()
        self.devices = folder / "devices.toml"
        self.root = folder / "target"
        self.unit = f"onnx-offload-{self.root.name}.service"
        self.devices.write_text(
            f"[big]\nrole = 'server'\nroot = '{self.root}'\nlisten = '127.0.0.1:{self.port}'\n"
        )

    def offload(self, *words: str) -> tuple[int, str]:
        """Run the command inside."""
        return self.manager.run([OFFLOAD, *words, "--devices", str(self.devices)])

    def answers_as(self, made: Made) -> bool:
        feeds = made.feeds()
        with OffloadSession(made.bundle, f"127.0.0.1:{self.port}") as session:
            found = session.run(None, feeds)
        pairs = zip(found, made.expected(feeds), strict=True)
        return all(np.allclose(got, want, 1e-5, 1e-5) for got, want in pairs)

    def restarts_after(self, signal: str) -> bool:
        """Whether the service is back in another process after this one got a signal."""
        before = self.manager.show(self.unit, "MainPID")["MainPID"]
        self.manager.run(["kill", f"-{signal}", before])

        def is_back() -> bool:  # both of one instant: in between, the old one may end
            now = self.manager.show(self.unit, "ActiveState", "MainPID")
            return now["ActiveState"] == "active" and now["MainPID"] != before

        return eventually(is_back)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with user_manager(tmp_path) as manager:
        yield Served(manager, tmp_path)


def eventually(holds: Callable[[], bool], timeout_s: float = 60) -> bool:
    give_up_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.slow
def test_a_service_from_install_to_uninstall(served: Served, tmp_path: Path) -> None:
    old, new = branches(tmp_path / "old.bundle"), branches(tmp_path / "new.bundle", width=32)
    assert served.offload("deploy", str(old.bundle.path), "big")[0] == 0
    code, said = served.offload("service", "install", "big")
    assert code == 0, said
    assert served.answers_as(old)

    drop_in = tmp_path / f"home/.config/systemd/user/{served.unit}.d/quick.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nWatchdogSec=5\n")
    served.manager.run(["systemctl", "--user", "daemon-reload"])
    assert served.offload("service", "start", "big")[0] == 0
    assert served.restarts_after("KILL")
    assert served.restarts_after("STOP")  # the watchdog finds it
    assert served.answers_as(old)
    drop_in.unlink()
    served.manager.run(["systemctl", "--user", "daemon-reload"])

    # A new release is served as soon as it is deployed.
    code, said = served.offload("deploy", str(new.bundle.path), "big")
    assert code == 0, said
    assert served.answers_as(new)
    code, said = served.offload("status", "--format", "json")
    (shown,) = json.loads(said)
    assert (shown["running"], shown["current"]["digest"]) == (True, new.bundle.digest)

    # One that the service can't serve is taken back, and the service with it.
    half = branches(tmp_path / "half.bundle", width=16).bundle.path
    code, said = served.offload("deploy", str(half), "big", "--side", "device")
    assert code == 1
    assert "does not come up" in said
    assert f"put back: {new.bundle.digest[:16]}" in said
    assert served.answers_as(new)

    assert served.offload("rollback", "big")[0] == 0
    assert served.answers_as(old)
    assert served.offload("service", "stop", "big")[0] == 0
    assert served.offload("service", "status", "big")[0] == 1
    assert served.offload("service", "uninstall", "big")[0] == 0
    assert not (tmp_path / f"home/.config/systemd/user/{served.unit}").exists()
