"""Predicted against measured latency: models x links x plans over an emulated link.

Run as `make bench-predict`. Each plan runs for real: both sides on this machine, the device
paced to be slower, gRPC between them, the link's delays emulated on every message.

The machine's own speed changes while the benchmark runs (other work, clock rates), which is no
error of the model: beside each plan the whole model is timed again, in turns with the plan's
runs, and the profile is scaled to that. The error without this is printed too. What messages
cost on loopback is probed and added to the emulated link.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from offload.bundle.write import write_bundle
from offload.cost.link import Link, parse_link
from offload.cost.profile import Profile
from offload.cost.regression import fit_link
from offload.graph.load import Model, load_model
from offload.plan.candidate import Candidate, Situation, predict
from offload.plan.planner import compare, plan_of
from offload.units import format_s
from offload_models.zoo import build, save
from offload_runtimes.engine import Engine, EngineOptions, load
from offload_runtimes.local import open_session
from offload_runtimes.planning.calibrate import time_in_turns
from offload_runtimes.planning.measure import Subject, measure, sample_feeds, subject_of
from offload_runtimes.planning.probe import probe
from offload_runtimes.planning.situation import SplitRequest
from offload_runtimes.server import Server
from offload_runtimes.split import split

from tests.benchmarks.goals import Goal, report

MODELS = ("squeezenet", "mobilenet_v2", "googlenet", "alexnet_parallel", "multi_stream")
LINKS = ("4g", "wifi", "50mbit")
SLOWDOWN = 4.0


@dataclass(frozen=True)
class Case:
    model: str
    link: str
    scheme: str
    planned_s: float
    predicted_s: float
    measured_s: float
    spread: float

    @property
    def error(self) -> float:
        return abs(self.predicted_s - self.measured_s) / self.measured_s

    @property
    def raw_error(self) -> float:
        return abs(self.planned_s - self.measured_s) / self.measured_s


@dataclass(frozen=True)
class Bench:
    folder: Path
    options: EngineOptions
    runs: int

    def cases(self, name: str) -> Iterator[Case]:
        path = self.folder / f"{name}.onnx"
        save(build(name), path)
        model = load_model(path)
        work = self.folder / name
        work.mkdir()
        subject = subject_of(model, work)
        profile = measure(subject, self.options)
        reference = load(path, self.options)
        for link in LINKS:
            yield from self.on_link(Measured(model, subject, profile, reference), link)

    def on_link(self, measured: "Measured", link: str) -> Iterator[Case]:
        known = in_series(parse_link(link), self.loopback)
        seen: set[object] = set()
        for found in compare(measured.situation(known)):
            program = (found.program.segments, found.program.steps)
            if program not in seen:
                seen.add(program)
                yield self.case(measured, known, found, link)

    @cached_property
    def loopback(self) -> Link:
        """What a message costs between two threads of this machine, by the product's probe."""
        path = self.folder / "tiny.onnx"
        save(build("squeezenet"), path)
        request = SplitRequest(path, parse_link("wifi"), "cloud", device=1e9, server=1e9)
        bundle = split(request, self.folder / "tiny.bundle")
        with Server([bundle]) as server:
            return fit_link(probe(server.address))

    def case(self, measured: "Measured", known: Link, found: Candidate, link: str) -> Case:
        plan = plan_of(measured.situation(known), (found,), found)
        graph = measured.subject.graph
        bundle = write_bundle(measured.model, graph, plan, self.folder / "bundle")
        feeds = sample_feeds(graph)
        with open_session(
            bundle, threads=self.options.threads, link=parse_link(link), slowdown=SLOWDOWN
        ) as session:
            turns = {
                "plan": lambda: session.run(None, feeds),
                "whole": lambda: measured.reference.run(None, feeds),
            }
            seconds = time_in_turns(turns, self.runs, 60.0)
        drift = statistics.median(seconds["whole"]) / measured.profile.whole_s
        now = predict(measured.situation(known, drift), found.cut, found.program)
        middle = statistics.median(seconds["plan"])
        low, high = np.quantile(seconds["plan"], (0.25, 0.75))
        return Case(
            graph.name,
            link,
            found.scheme,
            plan.latency_s,
            now.makespan_s,
            middle,
            float(high - low) / middle,
        )


@dataclass(frozen=True)
class Measured:
    """A model, its profile, and the whole of it to time beside each plan."""

    model: Model
    subject: Subject
    profile: Profile
    reference: Engine

    def situation(self, link: Link, drift: float = 1.0) -> Situation:
        server = self.profile.scaled(drift)
        return Situation.of(self.subject.graph, server.scaled(SLOWDOWN), server, link)


def in_series(emulated: Link, loopback: Link) -> Link:
    """A message passes both, one after the other."""
    return Link(
        1 / (emulated.overhead / emulated.up_bps + 1 / loopback.up_bps),
        1 / (emulated.overhead / emulated.down_bps + 1 / loopback.down_bps),
        emulated.up_start_s + loopback.up_start_s,
        emulated.down_start_s + loopback.down_start_s,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as folder:
        bench = Bench(Path(folder), EngineOptions(threads=asked.threads), asked.runs)
        print(
            f"{'model':18} {'link':8} {'plan':13} {'predicted':>10} {'measured':>10} error spread"
        )
        for name in asked.models:
            for case in bench.cases(name):
                cases.append(case)
                times = (format_s(case.predicted_s), format_s(case.measured_s))
                shares = (case.error, case.spread, case.raw_error)
                cells = [*times, *(f"{share:.1%}" for share in shares)]
                print(
                    f"{name:18} {case.link:8} {case.scheme:13}"
                    + "".join(f"{c:>11}" for c in cells),
                    flush=True,
                )
    errors = [case.error for case in cases]
    middle, p95 = statistics.median(errors), float(np.quantile(errors, 0.95))
    raw = statistics.median(case.raw_error for case in cases)
    print(f"\n{len(cases)} cases; median error unscaled {raw:.1%}")
    print(f"load average of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return report(
        (
            Goal("median error", "<= 5 %", f"{middle:.1%}", middle <= 0.05),
            Goal("p95 error", "<= 10 %", f"{p95:.1%}", p95 <= 0.10),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
