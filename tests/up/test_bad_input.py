"""What can be wrong with a machine or a link: `offload up` names the step and says what to do."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from offload.costs.link import PRESETS
from offload.planning.plan import Side
from offload_runtimes.emulation import host

from tests.front_door.door import two_layers
from tests.runtimes.deploy.sshd import needs_sshd
from tests.up.machines import Machines, two_machines

pytestmark = [pytest.mark.slow, needs_sshd]
UP = ("up", "net.onnx", "pi", "hub", "--runs", "2", "--try")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with two_machines(tmp_path_factory.mktemp("up")) as started:
        two_layers(started.folder / "net.onnx", 64)
        yield started


@pytest.fixture
def machines(shared: Machines) -> Iterator[Machines]:
    shared.configure()
    shutil.rmtree(shared.folder / "up", ignore_errors=True)
    yield shared
    for name in ("pi", "hub"):
        current = shared.root(name) / "current"
        assert not current.exists(), "a refused `up` changed a release"


def python_with(folder: Path, code: str) -> str:
    """A Python that first runs some code; what it is started with sees a changed machine."""
    (folder / "sitecustomize.py").write_text(code)
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import struct; struct.calcsize = lambda _: 4", "its system is 32-bit"),
        ("import sys; sys.version_info = (3, 9, 1, 'final', 0)", "its Python is 3.9.1: 3.11 is"),
        (
            "import shutil\nshutil.disk_usage = lambda _: shutil._ntuple_diskusage(9, 9, 1000)",
            "its disk has 0 MB free",
        ),
        (
            "import os; old = os.sysconf\n"
            "os.sysconf = lambda name: 1000 if name == 'SC_PHYS_PAGES' else old(name)",
            "MB of memory: 256 MB are needed",
        ),
        ("import time; old = time.time; time.time = lambda: old() + 9000", "its clock is off by"),
        ("import platform; platform.libc_ver = lambda: ('musl', '1.2')", "its C library is musl"),
    ],
    ids=["32-bit", "old Python", "no disk", "no memory", "clock", "musl"],
)
def test_a_machine_that_cannot_run_models(
    machines: Machines, tmp_path: Path, code: str, sentence: str
) -> None:
    machines.configure(pi=f'python = "{python_with(tmp_path, code)}"')
    said = machines.refused(*UP)
    assert said.startswith("preparing the runtimes: pi cannot run models: ")
    assert sentence in said


def test_a_machine_without_python(machines: Machines) -> None:
    machines.configure(pi='python = "/nowhere/python3"')
    said = machines.refused(*UP)
    assert said.startswith("preparing the runtimes: pi does not start /nowhere/python3")
    assert "install Python 3.11" in said


def test_a_host_that_cannot_be_reached(machines: Machines) -> None:
    machines.configure(hub="port = 1")
    said = machines.refused(*UP)
    assert said.startswith("preparing the runtimes: 127.0.0.1:1 can't be reached")


def test_a_host_key_that_is_not_known(machines: Machines) -> None:
    known = machines.user.home / ".ssh/known_hosts"
    kept = known.read_text()
    try:
        known.write_text("")
        assert "host key" in machines.refused(*UP)
    finally:
        known.write_text(kept)


def test_a_port_that_is_taken(machines: Machines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        machines.configure(hub=f'listen = "127.0.0.1:{port}"')
        said = machines.refused(*UP)
    assert said.startswith("probing the link from pi to hub: hub: cannot listen on")
    assert "the port is in use" in said


@pytest.mark.netns
def test_a_port_that_the_device_does_not_reach(tmp_path: Path) -> None:
    """The device has no route to the server's address."""
    if host.obstacle():
        pytest.skip(str(host.obstacle()))
    with two_machines(tmp_path, link=PRESETS["wifi"]) as machines:
        two_layers(machines.folder / "net.onnx", 64)
        assert machines.testbed is not None
        device, address = (
            machines.testbed.namespace(Side.DEVICE),
            machines.testbed.address(Side.SERVER),
        )
        route = ("ip", "-n", device, "route", "add", "prohibit", f"{address}/32")
        subprocess.run(route, check=True)
        said = machines.refused(*UP)
    assert said.startswith("probing the link from pi to hub: neither pi nor this machine reaches")
    assert address in said
    assert "is a firewall in the way" in said


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A memory file system with mount options."""
    if os.getuid():
        pytest.skip("mounting needs root")
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(words, check=False).returncode:
        pytest.skip("this machine does not permit mounts")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_root(machines: Machines, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro,size=500m"):
        machines.configure(pi=f'root = "{tmp_path}/disk/offload"')
        said = machines.refused("up", "net.onnx", "pi", "hub", "--runs", "2")
    assert said == (
        f"preparing the runtimes: pi: {tmp_path}/disk/offload is not writable: choose another"
        " folder or user"
    )


def test_a_target_that_another_deployment_changes(machines: Machines) -> None:
    root = machines.root("pi")
    root.mkdir(exist_ok=True)
    code = (
        "import fcntl, sys, time; handle = open(sys.argv[1], 'w');"
        " fcntl.flock(handle, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root / ".lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            said = machines.refused("up", "net.onnx", "pi", "hub", "--runs", "2")
        finally:
            other.kill()
    assert "is being changed by another process" in said


def test_a_model_that_the_device_refuses(machines: Machines, tmp_path: Path) -> None:
    """The device's onnxruntime is older than the model."""
    code = (
        "import sys\n"
        "if 'measure' in sys.orig_argv:\n"
        "    import onnxruntime as ort\n"
        "    def refuse(*_, **__): raise RuntimeError('Unsupported model IR version')\n"
        "    ort.InferenceSession.__init__ = refuse\n"
    )
    machines.configure(pi=f'python = "{python_with(tmp_path, code)}"')
    said = machines.refused(*UP)
    assert said.startswith("profiling on pi: pi: ")
    assert "Unsupported model IR version" in said


def test_calibration_that_does_not_fit(machines: Machines) -> None:
    np.savez(machines.folder / "wrong.npz", x=np.ones((3, 5), np.float32))
    said = machines.refused(*UP, "--calibration", "wrong.npz")
    assert said.startswith("profiling on pi: ")
    assert "give samples of that shape" in said


def test_a_temporary_folder_where_nothing_can_be_executed(machines: Machines) -> None:
    """`/tmp` mounted noexec on the device."""
    folder = machines.device.folder / "tmp"
    with mounted(folder, "noexec,size=64m"):
        wrapper = machines.device.folder / "python"
        wrapper.write_text(f'#!/bin/sh\nTMPDIR={folder} exec "{sys.executable}" "$@"\n')
        wrapper.chmod(0o755)
        machines.configure(pi=f'python = "{wrapper}"')
        result = json.loads(machines.ok(*UP, "--format", "json"))
        assert result["schemes"]


def test_login_scripts_that_print(machines: Machines, tmp_path: Path) -> None:
    """What a login prints comes before the agent's first answer."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\necho Welcome to the Pi\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    machines.configure(pi=f'python = "{wrapper}"')
    said = machines.refused(*UP)
    assert "says 'Welcome to the Pi' instead of an answer" in said
