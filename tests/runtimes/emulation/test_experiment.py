"""A device process and a server process run bundles in turn, on this machine or over SSH."""

import json
import os
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offload.costs.link import Link
from offload.errors import ServerError
from offload.planning.plan import Side
from offload.records import from_json, to_json
from offload.scheduling.timeline import Lane
from offload_runtimes.emulation import host
from offload_runtimes.emulation.experiment import (
    BundleEntry,
    ExperimentJob,
    HostPair,
    LocalHost,
    _process,
    run_job,
)
from offload_runtimes.emulation.testbed import scratch

from tests.runtimes import bundles
from tests.runtimes.bundles import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return bundles.branches(tmp_path / "net.bundle")


def job_of(made: Made, folder: Path, off: float = 0.0) -> ExperimentJob:
    feeds = made.feeds()
    names = [value.name for value in made.bundle.outputs]
    expected = dict(zip(names, made.expected(feeds), strict=True))
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    shifted = {name: array + np.float32(off) for name, array in expected.items()}
    np.savez(folder / "expected.npz", **shifted)  # type: ignore[arg-type]
    files = (str(folder / "feeds.npz"), str(folder / "expected.npz"))
    entries = tuple(BundleEntry(label, str(made.bundle.path), *files) for label in ("one", "two"))
    return ExperimentJob(entries, "", repeats=2, budget_s=30.0, slowdown=1.0, threads=1)


def test_a_job_survives_its_line(made: Made, tmp_path: Path) -> None:
    link = Link(1e6, 2e6, 0.1, 0.2, 1.05)
    job = replace(job_of(made, tmp_path), link=link, whole="one", whole_s=0.5)
    assert from_json(ExperimentJob, json.loads(json.dumps(to_json(job)))) == job


def test_bundles_run_in_turn_and_agree_with_the_whole(made: Made, tmp_path: Path) -> None:
    runs = list(run_job(HostPair(), job_of(made, tmp_path), [str(made.bundle.path)]))
    assert [(run.label, run.number) for run in runs] == [
        (label, number) for number in range(3) for label in ("one", "two")
    ]
    assert max(run.difference for run in runs) < 1e-5
    assert all(run.timeline.lane(Lane.SERVER) for run in runs)
    assert all(0 < run.timeline.makespan_s <= run.latency_s + 1e-3 for run in runs)


def test_a_wrong_answer_is_seen(made: Made, tmp_path: Path) -> None:
    runs = list(run_job(HostPair(), job_of(made, tmp_path, off=0.5), [str(made.bundle.path)]))
    assert min(run.difference for run in runs) > 1e-3


def test_the_emulated_link_costs_what_it_should(made: Made, tmp_path: Path) -> None:
    job = replace(job_of(made, tmp_path), link=Link(1e9, 1e9, 0.05, 0.05))
    runs = list(run_job(HostPair(), job, [str(made.bundle.path)]))
    # Two messages up one after the other, one down, each 50 ms.
    assert min(run.latency_s for run in runs) >= 0.15


def test_the_slow_device_starts_from_what_the_whole_model_takes(tmp_path: Path) -> None:
    made = bundles.on_one_side(tmp_path / "whole.bundle", Side.DEVICE)
    job = replace(job_of(made, tmp_path), slowdown=2.0, whole="one", whole_s=0.03)
    runs = list(run_job(HostPair(), job, []))
    # Twice 30 ms, though this model takes this machine some microseconds: of those, reading the
    # clock is a part, so that the pace is a little off.
    assert min(run.latency_s for run in runs) >= 0.03


def test_a_missing_bundle_ends_in_a_sentence(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"the server stopped: .*nowhere"):
        list(run_job(HostPair(), job_of(made, tmp_path), [str(tmp_path / "nowhere")]))


def test_a_server_that_dies_in_the_middle_ends_in_a_sentence(made: Made, tmp_path: Path) -> None:
    children: list[int] = []
    rig = HostPair(slow=lambda _: host.kill(children))

    class Watched(LocalHost):
        """Runs the server unchanged and writes its process number to a file."""

        def command(self, argv: Sequence[str]) -> tuple[str, ...]:
            assert isinstance(argv, tuple)
            pid = tmp_path / "pid"
            return ("sh", "-c", f'echo $$ > {pid}; exec "$@"', "sh", *argv)

        def bring(self, path: Path) -> str:
            return str(path)

    def die(_: int) -> None:
        host.kill([int((tmp_path / "pid").read_text())])

    rig = replace(rig, server=Watched(), slow=die)
    with pytest.raises(ServerError):
        list(run_job(rig, job_of(made, tmp_path), [str(made.bundle.path)]))


def test_an_interrupt_is_ours_alone_and_ends_the_sides_at_once() -> None:
    with suppress(KeyboardInterrupt), _process(("sleep", "100"), "device") as child:
        assert os.getsid(child.pid) != os.getsid(0)
        raise KeyboardInterrupt
    assert child.returncode == -signal.SIGKILL


def test_a_side_whose_input_ends_is_waited_for() -> None:
    with _process(("cat",), "server") as child:
        pass
    assert child.returncode == 0


def test_scratch_of_a_killed_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine, other = host.started_of(os.getpid()), tmp_path / "offload-bench-mine"
    killed = tmp_path / f"offload-bench-run-{os.getpid()}-{(mine or 0) + 1}"
    for folder in (killed, other):
        folder.mkdir()
    with scratch() as folder:
        (folder / "model").write_text("x")
        assert not killed.exists()
    assert list(tmp_path.iterdir()) == [other]
