"""Measure model by model, network by network; what is finished is kept and never run again."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle
from offload.bundle.write import write_bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.problem import Constraints, Power
from offload.planning.scheme import Scheme
from offload.scheduling.timeline import Lane
from offload_runtimes.emulation.experiment import BundleEntry, ExperimentJob, MeasuredRun, run_job
from offload_runtimes.emulation.testbed import scratch
from offload_runtimes.measure import Progress

from offload_cli.bench.environment import Environment
from offload_cli.bench.results import Cell, Group
from offload_cli.bench.subjects import (
    OPTIONS,
    Planned,
    PreparedStudy,
    Study,
    overheads,
    plans_of,
    prepare,
)

# Raspberry Pi 4B: idle 2.7 W, all cores busy 6.4 W; its radio adds about 0.7 W while sending.
POWER = Power(2.7, 3.7, 0.7)


@dataclass(frozen=True)
class Sweep:
    """What to measure and how.

    Attributes:
        studies: the models.
        links: the networks by name.
        folder: where results are kept.
        slowdown: how many times slower than this machine the device is.
        repeats: runs of each program.
        budget_s: of one model on one network; three runs are made at least.
        by_quota: slow the device by CPU quota, not by pacing.
        profiles: folder of profiles that replace measuring here, or None.
    """

    studies: Sequence[Study]
    links: Mapping[str, Link]
    folder: Path
    slowdown: float
    repeats: int
    budget_s: float
    by_quota: bool = False
    profiles: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on, for the results' files."""
        return {
            "slowdown": self.slowdown,
            "repeats": self.repeats,
            "slow_by": "quota" if self.by_quota else "pacing",
            "threads": OPTIONS.threads,
        }

    def path(self, study: Study, network: str) -> Path:
        """The file of one model on one network."""
        return self.folder / "cells" / f"{study.name}-{network}.json"


def missing(sweep: Sweep, kind: str) -> list[tuple[Study, str]]:
    """What has not been measured yet with these settings on this kind of link, model by model."""
    return [
        (study, network)
        for study in sweep.studies
        for network in sweep.links
        if not _is_kept(sweep, kind, sweep.path(study, network))
    ]


def _is_kept(sweep: Sweep, kind: str, path: Path) -> bool:
    with suppress(InputError, FileNotFoundError):
        settings = Group.load(path).settings
        return dict(settings) == {**sweep.settings, "link": kind}
    return False


def measure_all(
    sweep: Sweep, ground: Environment, progress: Progress, done: Callable[[Study, str], None]
) -> None:
    """Measure what is missing; results of each model and network are kept at once.

    Args:
        sweep: what to measure.
        ground: where it runs.
        progress: called with a phrase before each step.
        done: called with each model and network that is finished.

    Raises:
        OffloadError: a side died; what was finished is kept.
    """
    (sweep.folder / "cells").mkdir(parents=True, exist_ok=True)
    waiting: dict[str, list[str]] = defaultdict(list)
    for study, network in missing(sweep, ground.kind):
        waiting[study.name].append(network)
    for study in sweep.studies:
        if study.name not in waiting:
            continue
        with scratch() as folder:
            ready = prepare(study, folder / "model", sweep.slowdown, sweep.profiles, progress)
            for network in waiting[study.name]:
                group = measure_group(sweep, ready, network, ground, folder, progress)
                group.save(sweep.path(study, network))
                done(study, network)


def measure_group(
    sweep: Sweep,
    ready: PreparedStudy,
    network: str,
    ground: Environment,
    folder: Path,
    progress: Progress,
) -> Group:
    """All schemes of one model on one network; equal programs run once; bundles in the folder."""
    name, link = ready.study.name, sweep.links[network]
    progress(f"{name}, {network}: planning")
    plans = plans_of(ready, link)
    spent = overheads(ready, link)
    first: dict[object, str] = {}
    runs_as = {key: first.setdefault(one.program, key) for key, one in plans.items()}
    distinct = {key: plans[key] for key in first.values()}
    runs: dict[str, list[MeasuredRun]] = {key: [] for key in distinct}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        progress(f"{name}, {network}: writing {len(distinct)} bundles")
        bundles = {
            key: write_bundle(one.variant.model, one.variant.graph, one.plan, Path(place) / key)
            for key, one in distinct.items()
        }
        for run in _runs(sweep, ready, distinct, bundles, ground, link):
            progress(f"{name}, {network}: {run.label}, run {run.number} of {sweep.repeats}")
            runs[run.label].append(run)
    cells = tuple(
        _cell(name, network, key, one, runs_as[key], runs[runs_as[key]])
        for key, one in plans.items()
    )
    return Group({**sweep.settings, "link": ground.kind}, cells, spent)


def _runs(
    sweep: Sweep,
    ready: PreparedStudy,
    plans: Mapping[str, Planned],
    bundles: Mapping[str, Bundle],
    ground: Environment,
    link: Link,
) -> Iterator[MeasuredRun]:
    rig, emulated = ground.rig(link, sweep.slowdown if sweep.by_quota else 1.0)
    expected = rig.device.bring(ready.expected)
    entries = tuple(
        BundleEntry(
            key,
            rig.device.bring(bundles[key].path),
            rig.device.bring(one.variant.feeds),
            expected,
        )
        for key, one in plans.items()
    )
    served = [rig.server.bring(b.path) for b in bundles.values() if not b.plan.is_local]
    pace = 1.0 if sweep.by_quota else sweep.slowdown
    return run_job(
        rig,
        ExperimentJob(
            entries,
            "",
            sweep.repeats,
            sweep.budget_s,
            pace,
            OPTIONS.threads,
            emulated,
            whole=Scheme.LOCAL.value,
            whole_s=ready.floats.device.whole_s / pace,
        ),
        served,
    )


def _cell(
    model: str, network: str, scheme: str, one: Planned, runs_as: str, runs: Sequence[MeasuredRun]
) -> Cell:
    """The first run only warms up."""
    warm = runs[1:]
    latencies = tuple(run.latency_s for run in warm)
    middle = float(np.median(latencies))
    typical = min(warm, key=lambda run: abs(run.latency_s - middle)).timeline
    compute_s, upload_s = (typical.busy_s(lane) for lane in (Lane.DEVICE, Lane.UPLINK))
    return Cell(
        model=model,
        network=network,
        scheme=scheme,
        runs_as=runs_as,
        picked=one.picked,
        predicted_s=one.plan.latency_s,
        latencies_s=latencies,
        upload_bytes=sum(send.size_bytes or 0 for send in one.plan.uploads),
        cut=tuple(send.tensor for send in one.plan.uploads),
        energy_j=float(Constraints(power=POWER).energy(middle, compute_s, upload_s)),
        difference=max(run.difference for run in runs),
        predicted=one.plan.timeline,
        measured=typical,
    )
