"""Gains of encodings: raw schemes against lossless, fp16 and uint8, on every model and link.

    python -m tests.benchmarks.bench_encodings [--models a,b] [--links 3g,wifi] [--repeats 4]

All plans of a cell are run in turns on the emulated device (this machine, slower) and link, over
real gRPC, every session open at once; inputs are camera images as uint8, which CO raw sends as they
are. Sizes are calibrated on other images than the one that is timed. Profiles are brought to the
machine's pace before each cell; where all-local then takes 10 % more or less than predicted, the
pace has changed, and the cell is planned and run again, twice at most. Where the best lossless plan
is another program than the best raw one, these two are run in more turns, and the median ratio of
neighbouring runs counts; where both are one program they are equal by construction, and said to be.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from offload.bundle.write import write_bundle
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import EncodingPolicy, parse_allowed
from offload.costs.link import parse_link
from offload.costs.profile import Profile
from offload.graph.load import load_model
from offload.planning.plan import Plan
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload.units import format_s
from offload_models import pretrained
from offload_models.image import with_image_input
from offload_models.text import render_line
from offload_models.zoo import build, save
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.values import Array
from offload_runtimes.local import open_session
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.choose_encodings import EncodingSelector
from offload_runtimes.measure.encoding_sizes import measure_encodings
from offload_runtimes.measure.plan_trial import MachinePair, PlanTrial, try_plans
from offload_runtimes.measure.profile import OptimizedModel, measure, optimized_model

from tests.benchmarks import text_lines
from tests.benchmarks.goals import Goal, report

ZOO = ("squeezenet", "mobilenet_v2", "resnet18", "googlenet", "alexnet_parallel")
LINKS = ("3g", "4g", "wifi", "50mbit")
FAMILIES = {"raw": "raw", "lossless": "lossless", "fp16": "fp16", "uint8": "uint8"}
WITHIN = 0.05  # of the outputs' range, on calibration inputs
EVERY = f"all within {WITHIN:.0%}"
OPTIONS = EngineOptions(threads=1)
CALIBRATION_INPUTS = 3
NEAR = 4.0
PAIRS = 12
PACE_RUNS = 9
OFF, ATTEMPTS = 0.1, 3
LONG_S = 1.0  # what takes longer is the link's time, and needs few repeats


@dataclass(frozen=True)
class Cell:
    """One model on one link, measured."""

    model: str
    link: str
    trials: dict[str, PlanTrial]
    is_bit_equal: bool
    attempts: int

    def seconds(self, label: str) -> float:
        return self.trials[label].latency_s

    @property
    def best_raw_s(self) -> float:
        return min(self.seconds(label) for label in ("LO", "CO raw", "PO"))

    @property
    def is_near(self) -> bool:
        local, cloud = self.seconds("LO"), self.seconds("CO raw")
        return max(local, cloud) <= NEAR * min(local, cloud)

    @property
    def is_one_program(self) -> bool:
        """Whether the best lossless plan is the best raw one."""
        return self.trials["lossless"] is self.trials["raw"]

    @property
    def ratios(self) -> list[float]:
        """Lossless against raw by neighbouring runs, so that a noisy moment hits both; sorted."""
        one, two = self.trials["lossless"].seconds, self.trials["raw"].seconds
        return sorted(a / b for a, b in zip(one, two, strict=True))

    @property
    def lossless_over_raw(self) -> float:
        return statistics.median(self.ratios)

    def gain(self, label: str) -> float:
        return self.best_raw_s / self.seconds(label)


def photo(height: int, width: int, seed: int) -> Array:
    """A picture with the spectrum of photographs (amplitude falls as 1/f) and a sensor's grain."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[None, :, None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(random.standard_normal((height, width, 3)), axes=(0, 1)) / frequency
    field = np.fft.irfft2(spectrum, (height, width), axes=(0, 1))
    scaled = 128 + 50 * field / field.std() + random.normal(0, 2, field.shape)
    drawn: Array = scaled.round().clip(0, 255).astype(np.uint8)[None]
    return drawn


def line(width: int, height: int, seed: int) -> Array:
    text = f"Split inference {seed * 37 + 5}"
    return render_line(text, width, height, grain=4.0, seed=seed)[None]


def with_image(name: str) -> onnx.ModelProto:
    """A model of the zoo that takes a camera's bytes; its own float input is renamed."""
    model = build(name)
    old = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["float_image" if source == old else source for source in node.input]
    model.graph.input[0].name = "float_image"
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return with_image_input(model, "float_image", dims[2], dims[3], mean, std)


def inputs_of(name: str, proto: onnx.ModelProto) -> Iterator[dict[str, Array]]:
    dims = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    for seed in range(CALIBRATION_INPUTS + 1):
        if name.startswith("text") and name != "text_detection":
            yield {"image": line(dims[2], dims[1], seed)}
        else:
            yield {"image": photo(dims[1], dims[2], seed)}


@dataclass(frozen=True)
class Net:
    """One model: its profile, the sizes of its encoded tensors, and the timed input."""

    subject: OptimizedModel
    profile: Profile
    catalogue: EncodingTable
    calibration: Calibration
    feeds: dict[str, Array]

    def at_this_pace(self) -> Profile:
        """A fresh profile: the speed of the machine changes by the minute."""
        assert self.subject.model.path is not None
        engine, seconds = load(self.subject.model.path, OPTIONS), []
        for _ in range(PACE_RUNS):
            start_s = time.perf_counter()
            engine.run(None, self.feeds)
            seconds.append(time.perf_counter() - start_s)
        return self.profile.scaled(statistics.median(seconds[2:]) / self.profile.whole_s)


def read_net(name: str, folder: Path) -> Net:
    proto = pretrained.build(name) if name in pretrained.PRETRAINED else with_image(name)
    save(proto, folder / "model.onnx")
    model = load_model(folder / "model.onnx")
    subject = optimized_model(model, folder)
    feeds, *others = inputs_of(name, proto)
    calibration = Calibration(tuple(others))
    profile = measure(subject, OPTIONS, feeds=feeds, runs=9)
    every = parse_allowed("any,picture")
    catalogue = measure_encodings(model, subject.graph, calibration, every, OPTIONS)
    return Net(subject, profile, catalogue, calibration, feeds)


def plans(net: Net, server: Profile, slowdown: float, link_name: str) -> dict[str, Plan]:
    """The raw schemes, then the best plan with more and more encodings allowed."""
    link, graph, device = parse_link(link_name), net.subject.graph, server.scaled(slowdown)

    def planned(catalogue: EncodingTable | None) -> Plan:
        return make_plan(PlanningProblem.of(graph, device, server, link, None, catalogue))

    raw = PlanningProblem.of(graph, device, server, link)
    found = {
        "LO": make_plan(raw, "local"),
        "CO raw": make_plan(raw, "cloud"),
        "PO": make_plan(raw, "partition"),
    }
    for family, words in FAMILIES.items():
        found[family] = planned(net.catalogue.allowing(parse_allowed(words)))
    allowance = EncodingPolicy(parse_allowed("any,picture"), WITHIN)
    chooser = EncodingSelector(net.subject.model, graph, allowance, OPTIONS)
    found[EVERY] = chooser.within(planned, net.calibration, net.catalogue)
    return found


def tried(bench: MachinePair, every: dict[str, Plan], repeats: int) -> dict[str, PlanTrial]:
    """Plans that come to the same program are run once."""
    first: dict[object, str] = {}
    same = {label: first.setdefault(plan.program, label) for label, plan in every.items()}
    distinct = {label: every[label] for label in dict.fromkeys(same.values())}
    pair = (same["raw"], same["lossless"])
    pairs = PAIRS * pair if pair[0] != pair[1] else ()
    brief = [k for k, plan in distinct.items() if plan.latency_s < LONG_S or k in pair]
    more = (*(repeats - 1) * brief, *pairs)
    found = {trial.label: trial for trial in try_plans(bench, distinct, 1, more=more)}
    return {label: found[twin] for label, twin in same.items()}


def cells(name: str, links: list[str], slowdown: float, repeats: int) -> Iterator[Cell]:
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as place:
        net = read_net(name, Path(place))
        model, graph = net.subject.model, net.subject.graph
        for link in links:
            rates = parse_link(link)
            bench = MachinePair(model, graph, net.feeds, rates, slowdown, OPTIONS, Path(place))
            trials, attempts = settled(net, bench, link, repeats)
            every = {label: trial.plan for label, trial in trials.items()}
            yield Cell(name, link, trials, is_bit_equal(bench, every), attempts)


def settled(
    net: Net, bench: MachinePair, link: str, repeats: int
) -> tuple[dict[str, PlanTrial], int]:
    """Runs of all plans while the machine kept the profiled speed, and the attempts needed."""
    server = net.at_this_pace()
    for attempt in range(1, ATTEMPTS + 1):
        every = plans(net, server, bench.slowdown, link)
        trials = tried(bench, every, repeats)
        off = trials["LO"].latency_s / every["LO"].latency_s
        if abs(off - 1) <= OFF:
            return trials, attempt
        server = server.scaled(off)
    return trials, ATTEMPTS


def is_bit_equal(bench: MachinePair, every: dict[str, Plan]) -> bool:
    """Whether the lossless plan is bit-equal to the whole model without optimisations."""
    assert bench.model.path is not None
    plain = EngineOptions(threads=1, optimize=False)
    expected = load(bench.model.path, plain).run(None, bench.feeds)
    bundle = write_bundle(bench.model, bench.graph, every["lossless"], bench.folder / "exact")
    with open_session(bundle, threads=1, optimize=False) as session:
        found = session.run(None, bench.feeds)
    return all(a.tobytes() == b.tobytes() for a, b in zip(expected, found, strict=True))


def show(cell: Cell) -> None:
    figures = "  ".join(
        f"{label} {format_s(trial.latency_s)} ({format_s(trial.plan.latency_s)})"
        for label, trial in cell.trials.items()
    )
    print(f"{cell.model} {cell.link}: measured (predicted): {figures}")
    for family in (*tuple(FAMILIES)[1:], EVERY):
        trial = cell.trials[family]
        sent = ", ".join(f"{s.tensor} as {s.encoding}" for s in trial.plan.uploads) or "nothing"
        back = ", ".join(s.encoding for s in trial.plan.downloads if s.encoding != "raw")
        spread = f"{format_s(min(trial.seconds))} .. {format_s(max(trial.seconds))}"
        print(
            f"    {family}: {cell.gain(family):.2f}x of the best raw scheme, sends {sent},"
            f" {f'answers as {back}, ' if back else ''}spread {spread},"
            f" outputs change by {trial.difference:.1e}"
        )
    low, high = (float(np.quantile(cell.ratios, q)) for q in (0.25, 0.75))
    ratio = f"{cell.lossless_over_raw:.3f}, half of {len(cell.ratios)} in {low:.3f} .. {high:.3f}"
    one = "1 by construction: one program"
    off = cell.seconds("LO") / cell.trials["LO"].plan.latency_s - 1
    print(
        f"    lossless / raw {one if cell.is_one_program else ratio};"
        f" attempt {cell.attempts}, LO {off:+.0%} off",
        flush=True,
    )


def table(found: list[Cell]) -> None:
    """All cells, medians in milliseconds."""
    labels = ("LO", "CO raw", "PO", *FAMILIES, EVERY)
    print(f"| model, link | {' | '.join(labels)} | lossless/raw |")
    print("|---" * (len(labels) + 2) + "|")
    for cell in found:
        shown = " | ".join(f"{1e3 * cell.seconds(label):.0f}" for label in labels)
        ratio = "same" if cell.is_one_program else f"{cell.lossless_over_raw:.2f}"
        print(f"| {cell.model}, {cell.link}{'*' * cell.is_near} | {shown} | {ratio} |")
    print("* LO and CO raw are within four times of each other\n", flush=True)


def at_least_twice(found: list[Cell], family: str, words: str) -> Goal:
    near = [cell for cell in found if cell.is_near]
    gains = sorted(cell.gain(family) for cell in near)
    quick = sum(gain >= 2 for gain in gains)
    middle = f", median {statistics.median(gains):.2f}x, best {gains[-1]:.2f}x" if gains else ""
    met = 2 * quick >= len(near) > 0
    return Goal(words, "at least half", f"{quick} of {len(near)}{middle}", met)


def goals(found: list[Cell]) -> list[Goal]:
    worst = max(found, key=lambda cell: cell.lossless_over_raw)
    apart = [cell.lossless_over_raw for cell in found if not cell.is_one_program]
    said = f"; other programs in {len(apart)} of {len(found)} cells"
    middle = f", median {statistics.median(apart):.3f}x" if apart else ""
    equal = sum(cell.is_bit_equal for cell in found)
    return [
        Goal(
            "lossless against raw, worst cell",
            "at most 1.01x",
            f"{worst.lossless_over_raw:.3f}x ({worst.model} {worst.link}){said}{middle}",
            worst.lossless_over_raw <= 1.01,
        ),
        at_least_twice(
            found,
            "uint8",
            "cells with LO, CO within 4x where uint8 is 2x faster than min(LO, CO raw, PO)",
        ),
        at_least_twice(
            found,
            EVERY,
            f"the same with every encoding, outputs within {WITHIN:.0%} of their range",
        ),
        Goal(
            "lossless plans bit-equal to the whole model, nothing optimised",
            "all",
            f"{equal} of {len(found)}",
            equal == len(found),
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join((*pretrained.PRETRAINED, *ZOO)))
    parser.add_argument("--links", default=",".join(LINKS))
    parser.add_argument("--slowdown", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=4)
    wanted = parser.parse_args()
    found = []
    for name in wanted.models.split(","):
        for cell in cells(name, wanted.links.split(","), wanted.slowdown, wanted.repeats):
            show(cell)
            found.append(cell)
    table(found)
    return report([*goals(found), *text_lines.goals()])


if __name__ == "__main__":
    sys.exit(main())
