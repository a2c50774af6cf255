"""`offload up` over real SSH: from bare accounts to a running release, and interruptions."""

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from offload.costs.link import PRESETS
from offload_models.multi_stream import build
from offload_models.zoo import save
from offload_runtimes.emulation import host

from tests.front_door.door import two_layers
from tests.runtimes.deploy.sshd import needs_sshd
from tests.up.machines import BARE_PYTHON, Machines, two_machines

pytestmark = [pytest.mark.slow, needs_sshd, pytest.mark.timeout(600)]
# The steps of `up` as its progress names them.
STEPS = (
    "preparing the runtimes",
    "profiling on pi",
    "profiling on hub",
    "probing the link",
    "planning",
    "measuring on both machines",
    "deploying",
    "starting the server",
    "running the release",
)


def small(folder: Path) -> None:
    """A model for which a split is best on any link: a small input, a wide second layer."""
    two_layers(folder / "net.onnx", 64)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """A device that is so slow that the server is used, both with the runtime."""
    with two_machines(tmp_path, slowdown=2000, apart=True) as started:
        small(started.folder)
        yield started


def processes(root: Path) -> list[str]:
    """Command lines of the processes that name a directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{root}/" in line and "sshd" not in line:
            lines.append(line)
    return lines


def files(*folders: Path) -> set[str]:
    """All files below folders."""
    return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_from_two_bare_accounts_to_a_running_release(tmp_path: Path) -> None:
    """One command; then the printed one runs it; `down` leaves nothing but the runtime."""
    with two_machines(tmp_path, slowdown=2000, python=BARE_PYTHON) as machines:
        small(machines.folder)
        roots = [machines.root("pi"), machines.root("hub")]
        outside = [machines.device.folder, machines.server.folder]
        before = files(*outside)
        text = machines.ok("up", "net.onnx", "pi", "hub", "--runs", "5")
        (line,) = (line for line in text.splitlines() if line.startswith("ssh "))
        command = shlex.split(line)
        command[1:1] = ["-F", str(machines.ssh_config())]
        done = subprocess.run(
            command, env=machines.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["latency_s"] > 0
        assert processes(roots[1])  # the server
        assert "serve" in " ".join(processes(roots[1]))
        begun_s = time.monotonic()
        again = json.loads(machines.ok("up", "net.onnx", "pi", "hub", "--runs", "5", *JSON))
        took_s = time.monotonic() - begun_s
        print(f"\nsecond up: {took_s:.1f} s")
        assert again["repeated"] == []
        assert again["secure"]

        machines.ok("down", "pi", "hub")
        assert processes(roots[1]) == []
        left = files(*outside) - before
        assert all(name.startswith(tuple(map(str, roots))) for name in left), left
        assert not [name for name in left if "/certs/" in name]
        machines.ok("down", "pi", "hub", "--purge")
        assert not any(root.exists() for root in roots)


JSON = ("--format", "json")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_an_interruption_at_each_step_and_up_goes_on(
    machines: Machines, sent: signal.Signals
) -> None:
    reached = []
    for step in STEPS:
        process = subprocess.Popen(
            machines.command("up", "net.onnx", "pi", "hub", "--runs", "3", "--insecure"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=machines.folder,
            env=machines.environment,
            # A suite that a shell has started in the background ignores SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if line.startswith(step):
                time.sleep(0.05)
                process.send_signal(sent)
                reached.append(step)
                break
        rest = process.stderr.read()
        process.stderr.close()
        process.wait(60)
        assert "Traceback" not in seen + rest
        if sent is signal.SIGINT and process.returncode:
            assert process.returncode == 130, rest
    assert reached == list(STEPS)
    result = json.loads(
        machines.ok("up", "net.onnx", "pi", "hub", "--runs", "3", "--insecure", *JSON)
    )
    assert result["running"]
    give_up_s = time.monotonic() + 20
    while left := [p for p in processes(machines.root("pi")) if "measure" in p]:
        assert time.monotonic() < give_up_s, left
        time.sleep(0.2)
    machines.ok("down", "pi", "hub")
    assert processes(machines.root("hub")) == []


def test_the_former_release_runs_on_while_another_model_is_measured(machines: Machines) -> None:
    words = ("up", "net.onnx", "pi", "hub", "--runs", "2")
    first = json.loads(machines.ok(*words, *JSON))
    two_layers(machines.folder / "net.onnx", 32)
    # The device refuses the second model: the first one is served as before.
    machines.configure(pi='providers = ["cuda"]')
    said = machines.refused(*words)
    assert said.startswith("profiling on pi: pi: ")
    assert "cuda" in said.lower()
    machines.configure()
    current = (machines.root("hub") / "current").readlink()
    assert (machines.root("hub") / current / "manifest.json").is_file()
    assert processes(machines.root("hub"))
    second = json.loads(machines.ok(*words, *JSON))
    assert second["running"]
    assert (machines.root("hub") / "current").readlink() != current
    assert first["chosen"]
    machines.ok("down", "pi", "hub")


@pytest.mark.netns
def test_a_shaped_link_is_seen_and_the_split_hides_its_uploads(tmp_path: Path) -> None:
    """Device and server in namespaces of their own, 18.88 Mbit/s between them."""
    if host.obstacle():
        pytest.skip(str(host.obstacle()))
    with two_machines(tmp_path, link=PRESETS["wifi"], slowdown=10) as machines:
        save(build(0, hidden=64), machines.folder / "net.onnx")
        result = json.loads(machines.ok("up", "net.onnx", "pi", "hub", "--runs", "5", *JSON))
        rate_bps = result["link"]["link"]["up_bps"]
        assert 0.9 * 18.88e6 < rate_bps * 1.046 < 1.05 * 18.88e6
        medians = {s["label"]: s["median_s"] for s in result["schemes"]}
        assert result["chosen"] == "split"
        assert medians["split"] == min(medians.values())
        errors = [abs(s["predicted_s"] / s["median_s"] - 1) for s in result["schemes"]]
        print(f"\n{medians}, predictions off by {np.median(errors):.1%}")
        machines.ok("down", "pi", "hub")


def test_versions_that_differ_are_replaced(tmp_path: Path) -> None:
    """A runtime with other code is not used."""
    with two_machines(tmp_path) as machines:
        small(machines.folder)
        other = tmp_path / "other"
        other.mkdir()
        (other / "sitecustomize.py").write_text(
            "import sys\n"
            "if '-m' in sys.orig_argv and 'version' in sys.orig_argv:\n"
            '    print(\'{"version": "0.0", "source": "0"}\'); sys.exit(0)\n'
        )
        wrapper = tmp_path / "python"
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={other} exec "{BARE_PYTHON}" "$@"\n')
        wrapper.chmod(0o755)
        machines.configure(hub=f'python = "{wrapper}"')
        done = machines.offload("up", "net.onnx", "pi", "hub", "--try", "--runs", "2")
        assert re.search(r"preparing the runtimes: hub: .*virtual environment", done.stderr)
