"""What encodings gain: every model and link, raw schemes against lossless, fp16 and uint8 allowed.

    python tests/benchmarks/bench_encodings.py [--models a,b] [--links 3g,wifi] [--repeats 5]

All plans of a cell are run in turns on the emulated device (this machine, slower) and link, over
real gRPC; inputs are camera images as uint8, which CO raw sends as they are. Sizes are calibrated
on other images than the one that is timed.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from offload.bundle.write import write_bundle
from offload.cost.link import parse_link
from offload.cost.profile import Profile
from offload.encoding.catalogue import Catalogue
from offload.encoding.encoding import parse_allowed
from offload.graph.load import load_model
from offload.plan.candidate import Situation
from offload.plan.plan import Plan
from offload.plan.planner import make_plan
from offload.units import format_s
from offload_models import pretrained
from offload_models.image import with_image_input
from offload_models.text import render_line
from offload_models.zoo import build, save
from offload_runtimes.encode.calibration import Calibration
from offload_runtimes.encode.sizes import catalogue_of
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.values import Array
from offload_runtimes.local import open_session
from offload_runtimes.planning.measure import Subject, measure, subject_of
from offload_runtimes.planning.trial import Bench, Trial, try_plans

from tests.benchmarks import text_lines
from tests.benchmarks.goals import Goal, report

ZOO = ("squeezenet", "mobilenet_v2", "resnet18", "googlenet", "alexnet_parallel")
LINKS = ("3g", "4g", "wifi", "50mbit")
FAMILIES = {
    "raw": "raw",
    "lossless": "lossless",
    "fp16": "fp16",
    "uint8": "uint8",
    "jpeg": "uint8,picture",  # the picture itself, as any camera would send it
}
OPTIONS = EngineOptions(threads=1)
CALIBRATION_INPUTS = 3
NEAR = 4.0


@dataclass(frozen=True)
class Cell:
    """One model on one link, measured."""

    model: str
    link: str
    trials: dict[str, Trial]
    is_bit_equal: bool

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
    def lossless_over_raw(self) -> float:
        """Median over the turns, so that a noisy moment hits both."""
        one, two = self.trials["lossless"].seconds, self.trials["raw"].seconds
        return statistics.median(a / b for a, b in zip(one, two, strict=True))


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


def plans(
    subject: Subject, profiles: tuple[Profile, Profile], link_name: str, cat: Catalogue
) -> dict[str, Plan]:
    """The schemes without encodings, then the best with more and more allowed."""
    link = parse_link(link_name)
    raw = Situation.of(subject.graph, *profiles, link)
    found = {
        "LO": make_plan(raw, "local"),
        "CO raw": make_plan(raw, "cloud"),
        "PO": make_plan(raw, "partition"),
    }
    for family, words in FAMILIES.items():
        allowed = cat.allowing(parse_allowed(words))
        found[family] = make_plan(Situation.of(subject.graph, *profiles, link, None, allowed))
    return found


def tried(bench: Bench, every: dict[str, Plan], repeats: int) -> dict[str, Trial]:
    """Plans that come to the same program are run once."""
    first: dict[object, str] = {}
    same = {
        label: first.setdefault((plan.segments, plan.steps, plan.uploads), label)
        for label, plan in every.items()
    }
    distinct = {label: every[label] for label in dict.fromkeys(same.values())}
    found = {trial.label: trial for trial in try_plans(bench, distinct, repeats)}
    return {label: found[twin] for label, twin in same.items()}


def cells(name: str, links: list[str], slowdown: float, repeats: int) -> Iterator[Cell]:
    proto = pretrained.build(name) if name in pretrained.PRETRAINED else with_image(name)
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as place:
        folder = Path(place)
        save(proto, folder / "model.onnx")
        model = load_model(folder / "model.onnx")
        subject = subject_of(model, folder)
        feeds, *others = inputs_of(name, proto)
        profile = measure(subject, OPTIONS, feeds=feeds, runs=5)
        cat = catalogue_of(
            model, subject.graph, Calibration(tuple(others)), parse_allowed("any,picture"), OPTIONS
        )
        for link in links:
            every = plans(subject, (profile.scaled(slowdown), profile), link, cat)
            bench = Bench(model, subject.graph, feeds, parse_link(link), slowdown, OPTIONS, folder)
            yield Cell(name, link, tried(bench, every, repeats), is_bit_equal(bench, every))


def is_bit_equal(bench: Bench, every: dict[str, Plan]) -> bool:
    """Whether lossless plans give the whole model's bits when nothing is optimised."""
    assert bench.model.path is not None
    plain = EngineOptions(threads=1, optimize=False)
    expected = load(bench.model.path, plain).run(None, bench.feeds)
    for number, label in enumerate(("lossless", "PO")):
        path = bench.folder / f"exact-{number}"
        bundle = write_bundle(bench.model, bench.graph, every[label], path)
        with open_session(bundle, threads=1, optimize=False) as session:
            found = session.run(None, bench.feeds)
        same = [a.tobytes() == b.tobytes() for a, b in zip(expected, found, strict=True)]
        if not all(same):
            return False
    return True


def show(cell: Cell) -> None:
    figures = "  ".join(
        f"{label} {format_s(trial.latency_s)} ({format_s(trial.plan.latency_s)})"
        for label, trial in cell.trials.items()
    )
    print(f"{cell.model} {cell.link}: measured (predicted): {figures}")
    for family in tuple(FAMILIES)[1:]:
        trial = cell.trials[family]
        sent = ", ".join(f"{s.tensor} as {s.encoding}" for s in trial.plan.uploads) or "nothing"
        gain = cell.best_raw_s / trial.latency_s
        spread = f"{format_s(min(trial.seconds))} .. {format_s(max(trial.seconds))}"
        print(
            f"    {family}: {gain:.2f}x of the best raw scheme, sends {sent},"
            f" spread {spread}, outputs change by {trial.difference:.1e}"
        )
    print(f"    lossless / raw {cell.lossless_over_raw:.3f}", flush=True)


def goals(found: list[Cell]) -> list[Goal]:
    worst = max(found, key=lambda cell: cell.lossless_over_raw)
    near = [cell for cell in found if cell.is_near]
    quick = [cell for cell in near if cell.best_raw_s / cell.seconds("uint8") >= 2]
    jpeg = [cell for cell in near if cell.best_raw_s / cell.seconds("jpeg") >= 2]
    equal = sum(cell.is_bit_equal for cell in found)
    return [
        Goal(
            "lossless against raw, worst cell",
            "at most 1.01x",
            f"{worst.lossless_over_raw:.3f}x ({worst.model} {worst.link})",
            worst.lossless_over_raw <= 1.01,
        ),
        Goal(
            "cells with LO, CO within 4x where uint8 is 2x faster than min(LO, CO raw, PO)",
            "at least half",
            f"{len(quick)} of {len(near)}",
            2 * len(quick) >= len(near) > 0,
        ),
        Goal(
            "the same with the picture as jpeg allowed too",
            "at least half",
            f"{len(jpeg)} of {len(near)}",
            2 * len(jpeg) >= len(near) > 0,
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
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    found = []
    for name in wanted.models.split(","):
        for cell in cells(name, wanted.links.split(","), wanted.slowdown, wanted.repeats):
            show(cell)
            found.append(cell)
    return report([*goals(found), *text_lines.goals()])


if __name__ == "__main__":
    sys.exit(main())
