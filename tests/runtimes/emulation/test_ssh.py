"""The same experiment on hosts given by address: real ssh, scp and sshd, on loopback."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from offload_runtimes.emulation.experiment import (
    BundleEntry,
    ExperimentJob,
    HostPair,
    SshHost,
    run_job,
)

from tests.runtimes import bundles
from tests.runtimes.deploy.sshd import make_user, needs_sshd, running

pytestmark = needs_sshd


@pytest.fixture
def named_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`pi` and `hub` are names that `ssh` and `scp` know."""
    user = make_user(tmp_path / "home")
    tools = tmp_path / "bin"
    tools.mkdir()
    with running(tmp_path / "sshd", user) as server:
        config = tmp_path / "config"
        config.write_text(
            f"Host pi hub\n HostName 127.0.0.1\n Port {server.port}\n"
            f" IdentityFile {user.home}/.ssh/id_ed25519\n"
            f" UserKnownHostsFile {user.home}/.ssh/known_hosts\n"
        )
        for tool in ("ssh", "scp"):
            (tools / tool).write_text(f'#!/bin/sh\nexec {shutil.which(tool)} -F {config} "$@"\n')
            (tools / tool).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.mark.usefixtures("named_hosts")
def test_an_experiment_between_two_hosts_leaves_nothing_there(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "net.bundle")
    feeds = made.feeds()
    names = [value.name for value in made.bundle.outputs]
    np.savez(tmp_path / "feeds.npz", **feeds)  # type: ignore[arg-type]
    expected = dict(zip(names, made.expected(feeds), strict=True))
    np.savez(tmp_path / "expected.npz", **expected)  # type: ignore[arg-type]
    pi, hub = (SshHost(name, str(tmp_path / f"{name}'s files")) for name in ("pi", "hub"))
    files = (pi.bring(tmp_path / f"{name}.npz") for name in ("feeds", "expected"))
    entry = BundleEntry("one", pi.bring(made.bundle.path), *files)
    job = ExperimentJob((entry,), "", repeats=2, budget_s=30.0, slowdown=1.0, threads=1)
    rig = HostPair(device=pi, server=hub, python=sys.executable)
    runs = list(run_job(rig, job, [hub.bring(made.bundle.path)]))
    assert [run.number for run in runs] == [0, 1, 2]
    assert max(run.difference for run in runs) < 1e-5
    for place in (pi, hub):
        assert Path(place.folder).is_dir()
        place.clear()
        assert not Path(place.folder).exists()
