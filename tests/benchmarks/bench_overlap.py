"""Overlap on a real, shaped link: measured against predicted, and against the serial run.

Run as root as `make bench-overlap`. Device and server are processes in two network namespaces
joined by a veth pair that a token bucket shapes; the device is paced to be slower. Both programs
have the same cut: one computes all and then sends, the other sends what is ready.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from offload.bundle.bundle import Bundle
from offload.bundle.sample_inputs import draw
from offload.bundle.write import write_bundle
from offload.costs.link import parse_link
from offload.costs.profile import Profile
from offload.graph.load import Model, load_model
from offload.planning.cut import Cut, cut_after
from offload.planning.plan import Side
from offload.planning.planner import compare, plan_of
from offload.planning.problem import PlanningProblem
from offload.planning.scheme import SchemeEstimate
from offload.report.gantt import gantt_svg, gantt_text
from offload.scheduling.timeline import Timeline
from offload_models.zoo import build, save
from offload_runtimes.emulation.experiment import (
    BundleEntry,
    ExperimentJob,
    HostPair,
    LocalHost,
    MeasuredRun,
    run_job,
)
from offload_runtimes.emulation.testbed import Testbed, open_testbed
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.measure.profile import OptimizedModel, measure, optimized_model

from tests.benchmarks.goals import Goal, report

LINKS = ("4g", "wifi")
SLOWDOWN = 5.0
CUT = ("human/pool5", "object/pool5")  # with the third tower's input: three tensors
SCHEMES = ("partition", "opss")


class Lab:
    """A model with a multi-tensor cut, profiled on this machine."""

    def __init__(self, name: str, cut: Sequence[str], folder: Path) -> None:
        path = folder / f"{name}.onnx"
        save(build(name), path)
        options = EngineOptions(threads=1)
        self.folder = folder
        self.model: Model = load_model(path)
        self.subject: OptimizedModel = optimized_model(self.model, folder)
        self.profile: Profile = measure(self.subject, options)
        self.cut: Cut | None = cut_after(self.subject.graph, tuple(cut)) if cut else None
        feeds = draw(self.subject.inputs)
        outputs = load(path, options).run(None, feeds)
        names = self.subject.graph.outputs
        np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
        np.savez(folder / "expected.npz", **dict(zip(names, outputs, strict=True)))  # type: ignore[arg-type]

    def bundles(self, link: str) -> dict[str, Bundle]:
        device = self.profile.scaled(SLOWDOWN)
        graph = self.subject.graph
        situation = PlanningProblem.of(graph, device, self.profile, parse_link(link))
        found: dict[str, SchemeEstimate] = {c.scheme: c for c in compare(situation, self.cut)}
        return {
            scheme: write_bundle(
                self.model,
                graph,
                plan_of(situation, (found[scheme],), found[scheme]),
                self.folder / f"{link}-{scheme}.bundle",
            )
            for scheme in SCHEMES
        }

    def entries(self, bundles: dict[str, Bundle]) -> tuple[BundleEntry, ...]:
        feeds, expected = self.folder / "feeds.npz", self.folder / "expected.npz"
        return tuple(
            BundleEntry(scheme, str(bundle.path), str(feeds), str(expected))
            for scheme, bundle in bundles.items()
        )


def run(lab: Lab, bed: Testbed, bundles: dict[str, Bundle], repeats: int) -> list[MeasuredRun]:
    rig = HostPair(
        LocalHost(bed, Side.DEVICE),
        LocalHost(bed, Side.SERVER),
        listen=bed.address(Side.SERVER),
    )
    job = ExperimentJob(lab.entries(bundles), "", repeats, 120.0, SLOWDOWN, threads=1)
    found = run_job(rig, job, [str(bundle.path) for bundle in bundles.values()])
    return [one for one in found if one.number]


def goals_of(link: str, bundles: dict[str, Bundle], runs: list[MeasuredRun]) -> list[Goal]:
    middle = {
        scheme: statistics.median(one.latency_s for one in runs if one.label == scheme)
        for scheme in SCHEMES
    }
    predicted_s = bundles["opss"].plan.latency_s
    ratio, gain = middle["opss"] / predicted_s, middle["partition"] / middle["opss"]
    worst = max(one.difference for one in runs)
    uploads = len(bundles["opss"].plan.uploads)
    said = f"{ratio:.3f} ({middle['opss'] * 1e3:.0f} / {predicted_s * 1e3:.0f} ms)"
    return [
        Goal(f"{link}: tensors sent", ">= 2", str(uploads), uploads >= 2),
        Goal(f"{link}: measured / predicted", "<= 1.05", said, ratio <= 1.05),
        Goal(f"{link}: serial / overlapped", "> 1", f"{gain:.2f}", gain > 1),
        Goal(f"{link}: largest difference", "<= 1e-4", f"{worst:.0e}", worst <= 1e-4),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="multi_stream")
    parser.add_argument("--cut", nargs="*", default=CUT)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--svg", type=Path, help="folder for the charts")
    asked = parser.parse_args()
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="offload-overlap-") as folder:
        lab = Lab(asked.model, asked.cut, Path(folder))
        for link in LINKS:
            bundles = lab.bundles(link)
            with open_testbed(parse_link(link)) as bed:
                runs = run(lab, bed, bundles, asked.repeats)
            last = next(one for one in reversed(runs) if one.label == "opss")
            shown: dict[str, Timeline] = {
                "predicted": bundles["opss"].plan.timeline,
                "measured": last.timeline,
            }
            print(f"{asked.model} on {link}\n{gantt_text(shown, 100)}", flush=True)
            if asked.svg:
                asked.svg.mkdir(parents=True, exist_ok=True)
                title = f"{asked.model} on {link}"
                (asked.svg / f"overlap-{link}.svg").write_text(gantt_svg(shown, title))
            goals += goals_of(link, bundles, runs)
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
