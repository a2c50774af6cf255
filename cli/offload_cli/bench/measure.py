"""Measure all schemes of each model on each network; results are saved as they are finished."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.layers import TimedGraph
from offload.bundle.write import write_bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.files import write_text
from offload.planning.plan import Side
from offload.planning.problem import PI_4B, Constraints
from offload.planning.scheme import Scheme
from offload.report.cut import cut_svg
from offload.scheduling.timeline import Lane
from offload_runtimes.emulation.experiment import BundleEntry, ExperimentJob, MeasuredRun, run_job
from offload_runtimes.emulation.testbed import scratch
from offload_runtimes.measure import Progress

from offload_cli.bench.environment import Environment
from offload_cli.bench.results import Cell, Group, cut_file
from offload_cli.bench.subjects import (
    OPTIONS,
    PlannedScheme,
    PreparedStudy,
    Study,
    overheads,
    plans_of,
    prepare,
)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how.

    Attributes:
        studies: the models.
        links: the networks by name.
        folder: where results are saved.
        slowdown: how many times slower than this machine the device is.
        repeats: runs of each program.
        budget_s: seconds for one model on one network; at least three runs are made.
        by_quota: slow the device by CPU quota, not by pacing.
        profiles: folder of profiles to use instead of measuring here, or None.
    """

    studies: Sequence[Study]
    links: Mapping[str, Link]
    folder: Path
    slowdown: float
    repeats: int
    budget_s: float
    by_quota: bool = False
    profiles: Path | None = None

    def settings(self, environment_kind: str) -> dict[str, Any]:
        """What a result depends on; results saved with other settings are measured again."""
        return {
            "slowdown": self.slowdown,
            "repeats": self.repeats,
            "slow_by": "quota" if self.by_quota else "pacing",
            "threads": OPTIONS.threads,
            "link": environment_kind,
        }

    def path(self, study: Study, network: str) -> Path:
        """The results file of one model on one network."""
        return self.folder / "cells" / f"{study.name}-{network}.json"


def missing(options: BenchOptions, environment_kind: str) -> list[tuple[Study, str]]:
    """Models and networks without results for these settings, model by model."""
    pairs = []
    for study in options.studies:
        for network in options.links:
            saved = None
            with suppress(InputError, FileNotFoundError):
                saved = dict(Group.load(options.path(study, network)).settings)
            if saved != options.settings(environment_kind):
                pairs.append((study, network))
    return pairs


def measure_all(
    options: BenchOptions,
    environment: Environment,
    progress: Progress,
    done: Callable[[Study, str], None],
) -> None:
    """Measure what is missing; each model and network is saved when it is finished.

    Args:
        options: what to measure.
        environment: where it runs.
        progress: called with a phrase before each step.
        done: called with each model and network that is finished.

    Raises:
        OffloadError: a side died; finished results are saved.
    """
    (options.folder / "cells").mkdir(parents=True, exist_ok=True)
    for study, pairs in groupby(missing(options, environment.kind), lambda pair: pair[0]):
        with scratch() as folder:
            ready = prepare(study, folder / "model", options.slowdown, options.profiles, progress)
            for _, network in pairs:
                group = measure_group(options, ready, network, environment, folder, progress)
                group.save(options.path(study, network))
                done(study, network)


def measure_group(
    options: BenchOptions,
    ready: PreparedStudy,
    network: str,
    environment: Environment,
    folder: Path,
    progress: Progress,
) -> Group:
    """Measure all schemes of one model on one network.

    Schemes that come to the same program run once. Bundles are written to the folder.
    """
    name, link = ready.study.name, options.links[network]
    progress(f"{name}, {network}: planning")
    plans = plans_of(ready, link)
    overheads_s = overheads(ready, link)
    first: dict[object, str] = {}
    runs_as = {key: first.setdefault(scheme.program, key) for key, scheme in plans.items()}
    runs: dict[str, list[MeasuredRun]] = {key: [] for key in first.values()}
    hosts, emulated = environment.rig(link, options.slowdown if options.by_quota else 1.0)
    pace = 1.0 if options.by_quota else options.slowdown
    with tempfile.TemporaryDirectory(dir=folder) as bundles:
        progress(f"{name}, {network}: writing {len(runs)} bundles")
        expected = hosts.device.bring(ready.expected)
        entries, served = [], []
        for key in runs:
            variant, plan = plans[key].variant, plans[key].plan
            bundle = write_bundle(variant.model, variant.graph, plan, Path(bundles) / key)
            feeds = hosts.device.bring(variant.feeds)
            entries.append(BundleEntry(key, hosts.device.bring(bundle.path), feeds, expected))
            if not plan.is_local:
                served.append(hosts.server.bring(bundle.path))
        job = ExperimentJob(
            tuple(entries),
            "",
            options.repeats,
            options.budget_s,
            pace,
            OPTIONS.threads,
            emulated,
            whole=Scheme.LOCAL.value,
            whole_s=ready.floats.device.whole_s / pace,
        )
        for run in run_job(hosts, job, served):
            progress(f"{name}, {network}: {run.label}, run {run.number} of {options.repeats}")
            runs[run.label].append(run)
    for key, scheme in plans.items():
        if scheme.picked:
            _draw(cut_file(options.folder, name, network, key), f"{name} on {network}", scheme)
    cells = tuple(
        _cell(name, network, key, scheme, runs_as[key], runs[runs_as[key]])
        for key, scheme in plans.items()
    )
    return Group(options.settings(environment.kind), cells, overheads_s)


def _draw(path: Path, title: str, scheme: PlannedScheme) -> None:
    """Draw the cut of a chosen scheme that runs layers on both sides."""
    plan, variant = scheme.plan, scheme.variant
    if all(any(segment.layers for segment in plan.on(side)) for side in Side):
        profiles = {Side.DEVICE: variant.device, Side.SERVER: variant.server}
        seconds = {side: profile.costs_of(variant.graph) for side, profile in profiles.items()}
        path.parent.mkdir(exist_ok=True)
        write_text(path, cut_svg(TimedGraph(variant.graph, seconds), plan, title))


def _cell(
    model: str,
    network: str,
    key: str,
    scheme: PlannedScheme,
    runs_as: str,
    runs: Sequence[MeasuredRun],
) -> Cell:
    """One scheme's results; the first run only warms up."""
    warm = runs[1:]
    median_s = float(np.median([run.latency_s for run in warm]))
    typical = min(warm, key=lambda run: abs(run.latency_s - median_s)).timeline
    compute_s, upload_s = (typical.busy_s(lane) for lane in (Lane.DEVICE, Lane.UPLINK))
    uploads = scheme.plan.uploads
    return Cell(
        model=model,
        network=network,
        scheme=key,
        runs_as=runs_as,
        picked=scheme.picked,
        predicted_s=scheme.plan.latency_s,
        latencies_s=tuple(run.latency_s for run in warm),
        upload_bytes=sum(send.size_bytes or 0 for send in uploads),
        cut=tuple(send.tensor for send in uploads),
        energy_j=float(Constraints(power=PI_4B).energy(median_s, compute_s, upload_s)),
        difference=max(run.difference for run in runs),
        predicted=scheme.plan.timeline,
        measured=typical,
    )
