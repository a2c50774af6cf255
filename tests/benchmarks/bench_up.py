"""`offload up` between two namespaces joined by a shaped link: choice, predictions, time.

Run as root as `make bench-up`. Real SSH reaches both; the device's onnxruntime is 10 times
slower. After each `up`, the command that it prints runs on the device, in three processes with
seven inferences each: two processes that run one program differ by up to 5 %.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from offload.costs.link import PRESETS
from offload_models import multi_stream, zoo
from offload_models.text import render_line
from PIL import Image

from tests.benchmarks.goals import Goal, report
from tests.up.machines import Machines, two_machines

LINKS = ("wifi", "4g")
SLOWDOWN = 10.0
REPEATS = 20
PROCESSES, RUNS = 3, 7  # processes that run the release, inferences in each
PICK, PREDICTION, MOST_S = 1.05, 0.10, 180.0


@dataclass(frozen=True)
class Subject:
    """A model and the options of `up` for it."""

    name: str
    words: tuple[str, ...]


SUBJECTS = (
    Subject("ppocr_detection", ("--calibration", "photos", "--image", "signed")),
    Subject("mobilenet_v2", ("--calibration", "photos", "--image", "imagenet")),
    Subject("multi_stream", ()),
)


def write_model(name: str, path: Path) -> tuple[str, ...]:
    """Write a model; options for its open sizes."""
    if name == "ppocr_detection":
        import rapidocr

        (weights,) = (Path(rapidocr.__file__).parent / "models").glob("*det*.onnx")
        path.write_bytes(weights.read_bytes())
        return ("--shape", "x=1x3x480x640")
    model = multi_stream.build(0) if name == "multi_stream" else zoo.build(name)
    zoo.save(model, path)
    return ()


def write_photos(folder: Path) -> None:
    """Pages of rendered lines on a shaded background, with the grain of a camera."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        shade = random.integers(120, 255, (6, 8, 3), dtype=np.uint8)
        page = np.asarray(Image.fromarray(shade).resize((640, 480), Image.Resampling.BICUBIC))
        page = page.astype(np.float64)
        for row in range(20, 440, 60):
            line = render_line(f"line {row} of photo {number}", 320, 48)
            page[row : row + 48, 40:360] *= line / 255.0
        page += random.normal(0, 4, page.shape)
        Image.fromarray(page.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def released_s(machines: Machines, command: list[str]) -> float:
    """Latency of the command that `up` prints, run on the device: median over processes."""
    there = shlex.join([*command, "--repeat", str(RUNS)])
    words = ["ssh", "-F", str(machines.ssh_config()), "pi", there]

    def median_s() -> float:
        done = subprocess.run(
            words, env=machines.environment, capture_output=True, text=True, check=True
        )
        return float(json.loads(done.stdout)["latency_s"])

    return statistics.median(median_s() for _ in range(PROCESSES))


def measure(subject: Subject, link: str, folder: Path) -> tuple[list[Goal], list[float]]:
    """Run `up` on one model and link; its goals and the errors of its predictions."""
    folder.mkdir()
    with two_machines(folder, link=PRESETS[link], slowdown=SLOWDOWN) as machines:
        write_photos(machines.folder / "photos")
        more = write_model(subject.name, machines.folder / "net.onnx")
        words = ("up", "net.onnx", "pi", "hub", "--runs", str(REPEATS), *subject.words, *more)
        begun_s = time.monotonic()
        result: dict[str, Any] = json.loads(machines.ok(*words, "--format", "json", timeout_s=900))
        took_s = time.monotonic() - begun_s
        exact = [scheme for scheme in result["schemes"] if scheme["is_lossless"]]
        best_s = min(scheme["median_s"] for scheme in exact)
        release_s = released_s(machines, result["command"])
        ratio = release_s / best_s
        machines.ok("down", "pi", "hub", "--purge")
    errors = [
        abs(scheme["predicted_s"] / scheme["median_s"] - 1)
        for scheme in result["schemes"]
        if scheme["predicted_s"] is not None
    ]
    print(f"\n{subject.name} on {link}: {result['verdict']}")
    for scheme in result["schemes"]:
        predicted, median = scheme["predicted_s"], scheme["median_s"]
        spread = f"{min(scheme['latencies_s']) * 1e3:.1f} .. {max(scheme['latencies_s']) * 1e3:.1f}"
        print(
            f"  {scheme['label']:<24} predicted {predicted * 1e3:8.1f} ms, measured"
            f" {median * 1e3:8.1f} ms ({spread})",
        )
    print(f"  {result['chosen']} as released: {release_s * 1e3:.1f} ms", flush=True)
    name = f"{subject.name}, {link}"
    return [
        Goal(
            f"{name}: set up / best measured",
            f"<= {PICK:g}",
            f"{ratio:.3f} ({result['chosen']})",
            ratio <= PICK,
        ),
        Goal(f"{name}: whole up", f"<= {MOST_S:.0f} s", f"{took_s:.0f} s", took_s <= MOST_S),
    ], errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(subject.name for subject in SUBJECTS))
    parser.add_argument("--links", default=",".join(LINKS))
    options = parser.parse_args()
    goals: list[Goal] = []
    errors: list[float] = []
    for subject in SUBJECTS:
        for link in options.links.split(","):
            if subject.name in options.models.split(","):
                with tempfile.TemporaryDirectory(prefix="offload-up-") as folder:
                    more, off = measure(subject, link, Path(folder) / "run")
                goals += more
                errors += off
    middle = statistics.median(errors)
    label = f"predictions off by, median of {len(errors)}"
    goals.append(Goal(label, f"<= {PREDICTION:.0%}", f"{middle:.1%}", middle <= PREDICTION))
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
