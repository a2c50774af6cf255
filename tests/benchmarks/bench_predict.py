"""Predicted against measured latency: models x links x plans over an emulated link.

Run as `make bench-predict`. All that predictions rest on is measured as a user would: the model by
`offload profile`, the link by `offload probe`, through the emulated link's delays. Then each plan
runs for real: both sides on this machine, the device paced to be slower, gRPC between them. The
plans are all that `split` compares, and a cut at half of the device's work, which nobody would
choose but which must be predicted as well.

The machine's own speed changes while the benchmark runs (other work, clock rates), which is no
error of the model: beside each plan the whole model is timed again, in turns with the plan's
runs, and the profile is scaled to that. The error without this stands beside it.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload.bundle.sample_inputs import draw
from offload.bundle.write import write_bundle
from offload.costs.link import Link, parse_link
from offload.costs.link_fit import fit_link
from offload.costs.profile import Profile
from offload.graph.load import Model, load_model
from offload.planning.closed_sets import articulations
from offload.planning.cut import Cut, cut_at
from offload.planning.planner import compare, plan_of
from offload.planning.problem import PlanningProblem
from offload.planning.scheme import Scheme, SchemeEstimate, estimate, estimate_program
from offload.units import format_s
from offload_models.zoo import build, save
from offload_runtimes.engine import Engine, EngineOptions, load
from offload_runtimes.local import open_session
from offload_runtimes.measure.probe import probe
from offload_runtimes.measure.profile import OptimizedModel, measure, optimized_model
from offload_runtimes.measure.split import SplitRequest, split
from offload_runtimes.measure.timing import time_in_turns
from offload_runtimes.server import Server

from tests.benchmarks.goals import Goal, report

MODELS = ("squeezenet", "mobilenet_v2", "googlenet", "alexnet_parallel", "multi_stream")
# The slower the link, the slower a device must be for a split to be worth a thought.
LINKS = {"4g": 12.0, "wifi": 8.0, "50mbit": 4.0}
HALF = "at half"
BUDGET_S = 5.0  # a plan's turns; at least three


@dataclass(frozen=True)
class Case:
    model: str
    link: str
    plan: str
    split: bool
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
    links: Mapping[str, Link]

    def cases(self, name: str) -> Iterator[Case]:
        path = self.folder / f"{name}.onnx"
        save(build(name), path)
        model = load_model(path)
        work = self.folder / name
        work.mkdir()
        subject = optimized_model(model, work)
        profile = measure(subject, self.options)
        reference = load(path, self.options)
        for link, slowdown in LINKS.items():
            known = self.links[link]
            measured = Measured(model, subject, profile, reference, known, slowdown)
            for plan, found in measured.plans().items():
                yield self.case(measured, link, plan, found)

    def case(self, measured: "Measured", link: str, plan: str, found: SchemeEstimate) -> Case:
        made = plan_of(measured.problem(), (found,), found)
        graph = measured.subject.graph
        bundle = write_bundle(measured.model, graph, made, self.folder / "bundle")
        feeds = draw(measured.subject.inputs)
        emulated = parse_link(link)
        with open_session(
            bundle, threads=self.options.threads, link=emulated, slowdown=measured.slowdown
        ) as session:
            turns = {
                "plan": lambda: session.run(None, feeds),
                "whole": lambda: measured.reference.run(None, feeds),
            }
            seconds = time_in_turns(turns, self.runs, BUDGET_S)
        drift = statistics.median(seconds["whole"]) / measured.profile.whole_s
        now = estimate_program(measured.problem(drift), found.scheme, found.cut, found.program)
        middle = statistics.median(seconds["plan"])
        low, high = np.quantile(seconds["plan"], (0.25, 0.75))
        return Case(
            graph.name,
            link,
            plan,
            0 < len(found.cut.device) < len(graph.layers),
            made.latency_s,
            now.latency_s,
            middle,
            float(high - low) / middle,
        )


@dataclass(frozen=True)
class Measured:
    """A model, its profile, the whole model to time next to each plan, and a machine pair."""

    model: Model
    subject: OptimizedModel
    profile: Profile
    reference: Engine
    link: Link
    slowdown: float

    def problem(self, drift: float = 1.0) -> PlanningProblem:
        server = self.profile.scaled(drift)
        return PlanningProblem.of(
            self.subject.graph, server.scaled(self.slowdown), server, self.link
        )

    def plans(self) -> dict[str, SchemeEstimate]:
        """Plans that differ, by name."""
        problem = self.problem()
        cut = half_cut(problem)
        named = [(found.scheme.value, found) for found in compare(problem)]
        if cut is not None:
            named.append((HALF, estimate(problem, Scheme.OPSS, cut)))
        by_program: dict[object, str] = {}
        for name, found in named:
            by_program.setdefault((found.program.segments, found.program.steps), name)
        return {name: found for name, found in named if name in by_program.values()}


def half_cut(problem: PlanningProblem) -> Cut | None:
    """The cut at the layer that everything passes nearest to half of the device's seconds."""
    graph, seconds = problem.graph, problem.costs.device_s
    sets = [graph.ancestors((gate,)) for gate in articulations(graph)]
    sets = [device for device in sets if len(device) < len(graph.layers)]
    if not sets:
        return None
    half_s = sum(seconds) / 2
    return cut_at(graph, min(sets, key=lambda d: abs(sum(seconds[i] for i in d) - half_s)))


def probed(folder: Path) -> dict[str, Link]:
    """The emulated links as `offload probe` finds them."""
    path = folder / "tiny.onnx"
    save(build("squeezenet"), path)
    request = SplitRequest(path, parse_link("wifi"), "cloud", device=1e9, server=1e9)
    bundle = split(request, folder / "tiny.bundle")
    with Server([bundle]) as server:
        return {name: fit_link(probe(server.address, link=parse_link(name))) for name in LINKS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as folder:
        links = probed(Path(folder))
        for name, link in links.items():
            print(f"{name}, as probed: {link.describe()}")
        bench = Bench(Path(folder), EngineOptions(threads=asked.threads), asked.runs, links)
        heads = ("predicted", "measured", "error", "spread", "unscaled")
        print(f"\n{'model':18} {'link':8} {'plan':13}" + "".join(f"{h:>11}" for h in heads))
        for name in asked.models:
            for case in bench.cases(name):
                cases.append(case)
                print_case(name, case)
    both = [case.error for case in cases if case.split]
    middle, p95 = figures(both)
    print(
        f"\n{len(both)} of {len(cases)} plans have work on both sides: of these the median error is"
    )
    print(f"{middle:.1%}, p95 {p95:.1%}")
    print(f"load average of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return report(
        (
            *goals("error", [case.error for case in cases]),
            *goals("error before rescaling", [case.raw_error for case in cases]),
        )
    )


def goals(name: str, errors: Sequence[float]) -> tuple[Goal, Goal]:
    middle, p95 = figures(errors)
    return (
        Goal(f"median {name}", "<= 5 %", f"{middle:.1%}", middle <= 0.05),
        Goal(f"p95 {name}", "<= 10 %", f"{p95:.1%}", p95 <= 0.10),
    )


def figures(errors: Sequence[float]) -> tuple[float, float]:
    return statistics.median(errors), float(np.quantile(errors, 0.95))


def print_case(name: str, case: Case) -> None:
    times = (format_s(case.predicted_s), format_s(case.measured_s))
    shares = (case.error, case.spread, case.raw_error)
    cells = [*times, *(f"{share:.1%}" for share in shares)]
    head = f"{name:18} {case.link:8} {case.plan:13}"
    print(head + "".join(f"{c:>11}" for c in cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
