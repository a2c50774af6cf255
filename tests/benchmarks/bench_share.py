"""Streams whose frames several plans share, against each plan alone, over a shaped link.

Run as root as `make bench-share`; `FULL=1` for all models and links. The device and the server are
processes in two namespaces; the device is 10 times slower by pacing. The input is the camera's
bytes. In turns: everything local (LO), everything on the server with the picture's bytes or as jpeg
(CO), the best single plan, and the mix.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle
from offload.costs.encodings import EncodingPolicy, parse_allowed
from offload.costs.link import PRESETS, Link, parse_link
from offload.planning.plan import Side
from offload.planning.problem import Constraints, Objective
from offload.planning.shares import share_frames
from offload.report.charts import SchemeTimes, pairs_svg
from offload_cli.plans import batch_on
from offload_models import image, pretrained, zoo
from offload_models.text import render_line
from offload_runtimes.deploy.scheme_bundles import SPLIT, write_schemes
from offload_runtimes.emulation.testbed import Testbed, open_testbed
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.split import SplitRequest, prepare

from tests.benchmarks.bench_up import write_photos
from tests.benchmarks.goals import Goal, report

MODELS = ("resnet18", "squeezenet", "googlenet")
ALL_MODELS = (*MODELS, "mobilenet_v2", "resnet50", "densenet121", "alexnet_parallel")
LINKS = ("4g", "wifi")
ALL_LINKS = (*LINKS, "50mbit", "100mbit")
EXTRA = {"50mbit": "50 Mbit/s,2 ms", "100mbit": "100 Mbit/s,1 ms"}
SLOWDOWN = 10.0
PROFILES = 3
FLOATS = "image_fp32"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEFT_OUT = ("CO float", "CO jpeg 95")
MIX, SINGLE = "mix", "best single plan"
LINES, CLASSIFIER, SHARED, BATCH_GAIN = 16, "text_orientation", "shared", 1.2
OF_PREDICTED, OF_SINGLE, SURE, GAIN, CELLS = 0.93, 0.98, 1.35, 1.25, 6


@dataclass(frozen=True)
class Stream:
    """One way to run a stream: what was predicted and what each round measured."""

    label: str
    predicted_hz: float
    rates_hz: tuple[float, ...]
    by_plan: tuple[int, ...]
    is_lossless: bool
    wrong: int

    @property
    def rate_hz(self) -> float:
        return statistics.median(self.rates_hz)


@dataclass(frozen=True)
class Cell:
    """All streams of a model on a link."""

    name: str
    streams: Mapping[str, Stream]

    @property
    def mix(self) -> Stream:
        return self.streams[MIX]

    @property
    def best_single(self) -> Stream:
        """The fastest lossless plan alone, as measured."""
        alone = (s for s in self.streams.values() if s.label != MIX and s.is_lossless)
        return max(alone, key=lambda stream: stream.rate_hz)

    @property
    def predicted_gain(self) -> float:
        alone = (s for s in self.streams.values() if s.label != MIX and s.is_lossless)
        return self.mix.predicted_hz / max(stream.predicted_hz for stream in alone)


def link_of(name: str) -> Link:
    return PRESETS[name] if name in PRESETS else parse_link(EXTRA[name])


def write_model(name: str, path: Path) -> None:
    """A network of the zoo that takes a camera's picture in bytes."""
    proto = zoo.build(name)
    ((_, shape),) = image.input_shapes(proto).items()
    _, _, height, width = shape
    proto = image.rename_input(proto, next(iter(image.input_shapes(proto))), FLOATS)
    zoo.save(image.with_image_input(proto, FLOATS, height, width, MEAN, STD), path)


def request_of(model: Path, photos: Path, link: Link) -> SplitRequest:
    return SplitRequest(
        model,
        link,
        slowdown=SLOWDOWN,
        constraints=Constraints(Objective.THROUGHPUT),
        options=EngineOptions(threads=1),
        allowance=EncodingPolicy(parse_allowed("raw"), calibration=photos),
        again=True,
    )


def profiled(model: Path, photos: Path, folder: Path) -> SplitRequest:
    """The request with the quickest of three profiles: other work only makes layers slower."""
    request = request_of(model, photos, link_of(LINKS[0]))
    planned = min(
        (prepare(request) for _ in range(PROFILES)), key=lambda inputs: inputs.device.whole_s
    )
    paths = {}
    for side, profile in (("device", planned.device), ("server", planned.server)):
        paths[side] = folder / f"{side}.json"
        paths[side].write_text(json.dumps(profile.to_json()))
    return replace(
        request, device=paths["device"], server=paths["server"], slowdown=1.0, again=False
    )


@contextmanager
def served(bed: Testbed, bundles: Sequence[Bundle]) -> Iterator[str]:
    module = ("-m", "offload_runtimes.workers.server_worker")
    listen = f"{bed.address(Side.SERVER)}:0"
    command = (sys.executable, *module, listen, "1", *(str(bundle.path) for bundle in bundles))
    with subprocess.Popen(
        bed.command(Side.SERVER, command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stdin
        yield json.loads(server.stdout.readline())["listening"]
        server.stdin.close()


def run_device(
    bed: Testbed,
    bundles: Mapping[str, Bundle],
    feeds: Mapping[str, Path],
    job: Mapping[str, object],
) -> list[dict[str, Any]]:
    """Serve the bundles and run a job of `tests.benchmarks.sharing`; the lines that it prints."""
    with served(bed, [bundle for bundle in bundles.values() if bundle.needs_server]) as address:
        whole = {
            "server": address,
            "slowdown": SLOWDOWN,
            "bundles": {label: str(bundle.path) for label, bundle in bundles.items()},
            "plans": {label: len(bundle.plans) for label, bundle in bundles.items()},
            "feeds": {label: str(path) for label, path in feeds.items()},
            **job,
        }
        done = subprocess.run(
            bed.command(Side.DEVICE, (sys.executable, "-m", "tests.benchmarks.sharing")),
            input=json.dumps(whole) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure(
    name: str, request: SplitRequest, link: str, bed: Testbed, folder: Path, options: Any
) -> Cell:
    """Plan, write the bundles, and run all streams in turns."""
    planned = replace(prepare(request), request=request)
    schemes, remarks = write_schemes(planned, request.link, folder / "bundles", FLOATS)
    for remark in remarks:
        print(f"  {remark}")
    bundles = {scheme.label: scheme.bundle for scheme in schemes}
    (mixed,) = (scheme for scheme in schemes if SPLIT in scheme.label.split(" = "))
    streams: dict[str, tuple[str, int | None]] = {
        scheme.label: (scheme.label, scheme.plan)
        for scheme in schemes
        if scheme is not mixed and scheme.label not in LEFT_OUT
    }
    streams |= {SINGLE: (mixed.label, 0), MIX: (mixed.label, None)}
    assert planned.calibration
    arrays = dict(planned.calibration.feeds[0])
    np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
    bed.shape(request.link)
    feeds = folder / "feeds.npz"
    job = {"rounds": options.rounds, "seconds": options.seconds, "streams": streams}
    rows = run_device(bed, bundles, dict.fromkeys(bundles, feeds), job)
    for row in rows:
        if row["label"] == MIX:
            print(f"  mix, round {row['round']}: {row['link']}; {row['speeds']}")
    found = {}
    for label, (bundle_label, plan) in streams.items():
        bundle = bundles[bundle_label]
        mine = [row for row in rows if row["label"] == label]
        uses = [each.forecast.use(request.link) for each in bundle.plans]
        predicted = predicted_hz(bundle, request.link) if plan is None else 1 / uses[plan].period_s
        found[label] = Stream(
            label,
            predicted,
            tuple(row["frames_per_s"] for row in mine),
            tuple(mine[-1]["by_plan"]),
            all(each.is_lossless for each in bundle.plans),
            sum(row["frames"] - row["equal"] for row in mine),
        )
    return Cell(f"{name}, {link}", found)


def predicted_hz(bundle: Bundle, link: Link) -> float:
    """Frames per second of the best shares."""
    return share_frames([plan.forecast.use(link) for plan in bundle.plans]).rate_hz


def show(cell: Cell) -> None:
    print(f"{cell.name}")
    for stream in cell.streams.values():
        low, high = min(stream.rates_hz), max(stream.rates_hz)
        plans = f", frames by plan {list(stream.by_plan)}" if stream.label == MIX else ""
        print(
            f"  {stream.label:<24} predicted {stream.predicted_hz:7.2f}, measured"
            f" {stream.rate_hz:7.2f} frames/s ({low:.2f} .. {high:.2f}){plans}",
            flush=True,
        )


def chart(cell: Cell) -> str:
    """Seconds a frame of each stream of a cell, as SVG."""
    return pairs_svg(
        f"Seconds a frame in a stream: {cell.name}, device 10 times slower",
        [
            SchemeTimes(
                stream.label,
                1 / stream.predicted_hz,
                [1 / rate_hz for rate_hz in stream.rates_hz],
                stream.label == MIX,
            )
            for stream in cell.streams.values()
        ],
    )


def goals_of(cells: Sequence[Cell], full: bool) -> list[Goal]:
    off = statistics.median(cell.mix.rate_hz / cell.mix.predicted_hz for cell in cells)
    worst = min(cells, key=lambda cell: cell.mix.rate_hz / cell.best_single.rate_hz)
    least = worst.mix.rate_hz / worst.best_single.rate_hz
    sure = [cell for cell in cells if cell.predicted_gain >= SURE]
    gains = {cell.name: cell.mix.rate_hz / cell.best_single.rate_hz for cell in cells}
    wrong = sum(stream.wrong for cell in cells for stream in cell.streams.values())
    goals = [
        Goal(
            f"mix, measured / predicted, median of {len(cells)}",
            f">= {OF_PREDICTED:g}",
            f"{off:.3f}",
            off >= OF_PREDICTED,
        ),
        Goal(
            "mix / best single plan, lossless, worst cell",
            f">= {OF_SINGLE:g}",
            f"{least:.3f} ({worst.name})",
            least >= OF_SINGLE,
        ),
        *(
            Goal(
                f"mix / best single plan, {cell.name} (predicted {cell.predicted_gain:.2f})",
                f">= {GAIN:g}",
                f"{gains[cell.name]:.2f}",
                gains[cell.name] >= GAIN,
            )
            for cell in sure
        ),
        Goal("answers that differ from each plan's own", "0", str(wrong), wrong == 0),
    ]
    if full:
        count = sum(gain >= GAIN for gain in gains.values())
        goals.append(
            Goal(
                f"cells of {len(cells)} with a gain of {GAIN:g}",
                f">= {CELLS}",
                str(count),
                count >= CELLS,
            )
        )
    return goals


def batch_goals(rounds: int) -> list[Goal]:
    """A page of lines, classified in one batch: everything on one side, PO, and shared."""
    link = link_of("wifi")
    with tempfile.TemporaryDirectory(prefix="offload-batch-") as name, open_testbed(link) as bed:
        folder = Path(name)
        info = pretrained.PRETRAINED[CLASSIFIER]
        zoo.save(pretrained.build(CLASSIFIER, batch="lines"), folder / "net.onnx")
        page = [
            render_line("Share the work", info.width, info.height, n % 3 == 0, 1, n)
            for n in range(LINES)
        ]
        feeds = {"image": np.stack(page)}
        np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
        request = SplitRequest(
            folder / "net.onnx",
            link,
            slowdown=SLOWDOWN,
            options=EngineOptions(threads=1),
            allowance=EncodingPolicy(parse_allowed("raw")),
            shapes={"image": feeds["image"].shape},
            again=True,
        )
        schemes, _ = write_schemes(
            prepare(request), link, folder / "bundles", pretrained.INPUT, ("PO",)
        )
        (best,) = (scheme for scheme in schemes if SPLIT in scheme.label.split(" = "))
        ways: dict[str, tuple[str, int | None]] = {
            scheme.label: (scheme.label, scheme.plan) for scheme in schemes
        }
        bundles = {scheme.label: scheme.bundle for scheme in schemes}
        predicted_s = {s.label: s.followed.forecast.latency_s(link) for s in schemes}
        predicted_s[SHARED] = batch_on(best.bundle, link).latency_s
        ways[SHARED] = best.label, None
        job = {"rounds": rounds, "runs": 5, "batches": ways}
        rows = run_device(bed, bundles, dict.fromkeys(bundles, folder / "feeds.npz"), job)
    print(f"{CLASSIFIER}, a batch of {LINES} lines, wifi")
    medians_s = {}
    for label in ways:
        seconds = [each for row in rows if row["label"] == label for each in row["seconds"]]
        medians_s[label] = statistics.median(seconds)
        print(
            f"  {label:<24} predicted {predicted_s[label] * 1e3:6.1f}, measured"
            f" {medians_s[label] * 1e3:6.1f} ms ({min(seconds) * 1e3:.1f} .."
            f" {max(seconds) * 1e3:.1f})"
        )
    marks = [row["micro_batches"] for row in rows if row["label"] == SHARED]
    print(f"  {'; '.join(marks[-1])}", flush=True)
    single = min((label for label in ways if label != SHARED), key=medians_s.__getitem__)
    gain = medians_s[single] / medians_s[SHARED]
    wrong = sum(row["wrong"] for row in rows)
    return [
        Goal(
            f"batch of {LINES} lines, shared / {single}",
            f">= {BATCH_GAIN:g}x faster",
            f"{gain:.2f}x",
            gain >= BATCH_GAIN,
        ),
        Goal(
            "rows of batches that differ from the same micro-batches alone",
            "0",
            str(wrong),
            wrong == 0,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="")
    parser.add_argument("--links", default="")
    parser.add_argument("--full", action="store_true", help="all models and links")
    parser.add_argument("--only-batch", action="store_true", help="no streams")
    parser.add_argument("--svg", type=Path, help="chart of the cell where sharing gains most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each stream; the mix takes twice as long"
    )
    options = parser.parse_args()
    if options.only_batch:
        return report(batch_goals(options.rounds))
    models = options.models.split(",") if options.models else ALL_MODELS if options.full else MODELS
    links = options.links.split(",") if options.links else ALL_LINKS if options.full else LINKS
    cells = []
    begun_s = time.monotonic()
    for model in models:
        with tempfile.TemporaryDirectory(prefix="offload-share-") as name:
            folder = Path(name)
            write_photos(folder / "photos")
            write_model(model, folder / "net.onnx")
            measured = profiled(folder / "net.onnx", folder / "photos", folder)
            for link in links:
                work = folder / link
                work.mkdir()
                request = replace(measured, link=link_of(link))
                with open_testbed(link_of(link)) as bed:
                    cells.append(measure(model, request, link, bed, work, options))
                show(cells[-1])
    if options.svg:
        most = max(cells, key=lambda cell: cell.mix.rate_hz / cell.best_single.rate_hz)
        options.svg.write_text(chart(most))
    print(f"{len(cells)} cells in {time.monotonic() - begun_s:.0f} s")
    return report([*goals_of(cells, options.full), *batch_goals(options.rounds)])


if __name__ == "__main__":
    sys.exit(main())
