"""Overhead of the runtime over bare gRPC and onnxruntime: streams, sessions, start-up.

Run as `make bench-runtime`; with BENCH_PROVIDERS=cuda, servers run on that execution provider, and
`--only tails --only batches` takes the rows that a server decides. Everything is a ratio of medians
taken in turns on this machine, so that a noisy moment hits both sides alike.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload.planning.plan import Send, Side
from offload.scheduling.timeline import Lane
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.inference_runner import PendingInference
from offload_runtimes.device.stream import stream_answers
from offload_runtimes.engine import EngineOptions, load
from onnx import helper

from tests.benchmarks.goals import Goal, report
from tests.benchmarks.plain import WINDOW, Echo, tails_per_s
from tests.benchmarks.served import Served
from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made

SIZES_BYTES = {"1 kB": 1_000, "150 kB": 150_000, "1 MB": 1_000_000, "5 MB": 5_000_000}
GOAL_SIZE = "150 kB"
ONE = EngineOptions(threads=1)
SERVER = EngineOptions(tuple(os.environ.get("BENCH_PROVIDERS", "").split()), threads=1)


def passing(folder: Path, size_bytes: int) -> Made:
    """A model that uploads a tensor of a given size and downloads 1000 bytes, with little work."""
    width = max(1, size_bytes // 1000)
    x, t = models.floats("x", width, 250), models.floats("t", width, 250)
    y = models.floats("y", 1, 250)
    head = [helper.make_node("Relu", ["x"], ["t"], "head")]
    axes = {"axes": np.array([0], np.int64)}
    tail = [helper.make_node("ReduceMax", ["t", "axes"], ["y"], "tail")]
    whole = models.model(head + tail, [x], [y], axes)
    server = models.model(tail, [t], [y], axes)
    parts = [
        (bundles.segment("device-0", Side.DEVICE, ["x"], ["t"]), models.model(head, [x], [t])),
        (bundles.segment("server-0", Side.SERVER, ["t"], ["y"]), server),
    ]
    steps = [("run", "device-0"), ("send", "t")]
    return bundles.write(folder, whole, parts, steps, [Send("t", width * 1000)], ["y"])


def working(folder: Path, device: int, server: int) -> Made:
    """Chains of N matrix products on the device and on the server, 0.1 to 0.4 ms each."""
    size = 384
    weight = {"w": (bundles.RNG.standard_normal((size, size)) / 20).astype(np.float32)}
    names = [f"t{i}" for i in range(device + server + 1)]
    infos = [models.floats(name, 64, size) for name in names]
    nodes = [
        helper.make_node("MatMul", [names[i], "w"], [names[i + 1]], f"n{i}")
        for i in range(device + server)
    ]
    whole = models.model(nodes, [infos[0]], [infos[-1]], weight)
    cut = names[device]
    head = models.model(nodes[:device], [infos[0]], [infos[device]], weight)
    tail = models.model(nodes[device:], [infos[device]], [infos[-1]], weight)
    parts = [
        (bundles.segment("device-0", Side.DEVICE, [names[0]], [cut]), head),
        (bundles.segment("server-0", Side.SERVER, [cut], [names[-1]]), tail),
    ]
    steps = [("run", "device-0"), ("send", cut)]
    return bundles.write(folder, whole, parts, steps, [Send(cut, 4 * 64 * size)], [names[-1]])


def median_s(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each call, called in turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 10):
        for call, rows in zip(calls, seconds, strict=True):
            start_s = time.perf_counter()
            call()
            if number >= 10:
                rows.append(time.perf_counter() - start_s)
    return [statistics.median(rows) for rows in seconds]


def overhead(folder: Path, rounds: int) -> list[Goal]:
    """A whole run against its unavoidable parts, for several upload sizes."""
    goals = []
    for label, size in SIZES_BYTES.items():
        ours_s, bare_s = one_size(folder / f"size{size}", size, rounds)
        ratio = ours_s / bare_s
        wanted = "<= 1.3" if label == GOAL_SIZE else "-"
        said = f"{ratio:.2f} ({ours_s * 1e3:.2f} / {bare_s * 1e3:.2f} ms)"
        met = ratio <= 1.3 or label != GOAL_SIZE
        goals.append(Goal(f"run / (raw gRPC + bare ORT), {label}", wanted, said, met))
    return goals


def one_size(folder: Path, size_bytes: int, rounds: int) -> tuple[float, float]:
    made = passing(folder, size_bytes)
    feeds, message = made.feeds(), bytes(size_bytes)
    head = load(made.bundle.segment_path("device-0"), ONE)
    tail = load(made.bundle.segment_path("server-0"), SERVER)
    server, echo = Served(made.bundle.path), Echo()

    def bare() -> None:
        (t,) = head.run(None, feeds)
        echo.ping(message)
        tail.run(None, {"t": t})

    with OffloadSession(made.bundle, server.address, threads=1) as session:
        ours_s, bare_s = median_s([lambda: session.run(None, feeds), bare], rounds)
    echo.close()
    server.stop()
    return ours_s, bare_s


@dataclass(frozen=True)
class FixedLink:
    """A link with fixed seconds per upload and none per download."""

    seconds: float

    def upload_s(self, _: float) -> float:
        return self.seconds

    def download_s(self, _: float) -> float:
        return 0.0


def streams(folder: Path, frames: int) -> list[Goal]:
    """Frames a second against the slowest of device, link and server.

    What each takes is measured on the very frames of the stream, so that a loaded machine slows
    both sides of the ratio.
    """
    goals = []
    cases = {"device": (8.0, 0.004, 16, 1), "link": (2.0, 0.025, 4, 1), "server": (1, 0.002, 4, 60)}
    for bound, (slowdown, link_s, head, tail) in cases.items():
        made = working(folder / f"stream-{bound}", head, tail)
        server = Served(made.bundle.path)
        with OffloadSession(
            made.bundle, server.address, threads=1, link=FixedLink(link_s), slowdown=slowdown
        ) as session:
            rate, slowest, slowest_s = streamed(session, made, frames)
        server.stop()
        ratio = rate * slowest_s
        said = f"{ratio:.2f} ({rate:.0f}/s, {slowest} {slowest_s * 1e3:.1f} ms)"
        goals.append(Goal(f"stream, {bound}-bound, of 1/slowest", ">= 0.95", said, ratio >= 0.95))
    return goals


def streamed(session: OffloadSession, made: Made, frames: int) -> tuple[float, Lane, float]:
    """Frames a second, the busiest lane, and the seconds a frame occupies it."""
    running: list[PendingInference] = []
    prepare_frame = session._frame_preparer(None, lambda: 6, True)

    def prepare(feeds: Mapping[str, np.ndarray]) -> PendingInference:
        running.append(prepare_frame(feeds))
        return running[-1]

    stream = stream_answers(prepare, itertools.repeat(made.feeds(), frames + 20), lambda: 6)
    for _ in range(10):
        next(stream)
    start_s = time.perf_counter()
    for _ in range(frames):
        next(stream)
    took_s = time.perf_counter() - start_s
    list(stream)
    timelines = [one.frame.timeline() for one in running[10:-10]]
    busy_s = {lane: statistics.mean(t.busy_s(lane) for t in timelines) for lane in Lane}
    slowest = max(busy_s, key=busy_s.__getitem__)
    return frames / took_s, slowest, busy_s[slowest]


def tails(folder: Path, seconds: float) -> list[Goal]:
    """Server parts a second for 1, 4 and 16 sessions against a bare loop in one thread.

    Clients share the machine: the last row of each tells what plain gRPC leaves of the loop then.
    """
    made = working(folder / "tails", 1, 12)
    head_path, tail_path = map(made.bundle.segment_path, ("device-0", "server-0"))
    tail = load(tail_path, SERVER)
    feeds = {value.name: np.ones((64, 384), np.float32) for value in tail.inputs}
    goals = []
    for count in (1, 4, 16):
        (before_s,) = median_s([lambda: tail.run(None, feeds)], 150)
        server = Served(made.bundle.path)
        counts = together(made, server.address, count, seconds)
        server.stop()
        (after_s,) = median_s([lambda: tail.run(None, feeds)], 150)
        plain = tails_per_s(head_path, tail_path, made.feeds(), count, seconds)
        bare, rate = 2 / (before_s + after_s), sum(counts) / seconds
        uneven = max(abs(one / statistics.mean(counts) - 1) for one in counts)
        for whose, per_s, least in (("bare ORT", bare, 0.95), ("plain gRPC + ORT", plain, 0.0)):
            said = f"{rate / per_s:.2f} ({rate:.0f}/s of {per_s:.0f}/s)"
            wanted = f">= {least}" if least else "-"
            name = f"tails, {count} sessions, of {whose}"
            goals.append(Goal(name, wanted, said, rate / per_s >= least))
        if count > 1:
            goals.append(
                Goal(f"fairness, {count} sessions", "<= 10 %", f"{uneven:.1%}", uneven <= 0.1)
            )
    return goals


def classifier(folder: Path, widths: Sequence[int] = (9216, 4096, 1000)) -> Made:
    """The end of AlexNet with an open batch: two products whose weights dominate, 167 MB."""
    names = ["x", "t", *(f"h{i}" for i in range(1, len(widths) - 1)), "y"]
    sizes = [widths[0], *widths]
    infos = [models.floats(name, "n", size) for name, size in zip(names, sizes, strict=True)]
    weights = {
        f"w{i}": (bundles.RNG.standard_normal(pair) / pair[0] ** 0.5).astype(np.float32)
        for i, pair in enumerate(itertools.pairwise(widths))
    }
    head = [helper.make_node("Relu", ["x"], ["t"], "head")]
    tail = [
        helper.make_node("Gemm", [names[i + 1], name], [names[i + 2]], name)
        for i, name in enumerate(weights)
    ]
    whole = models.model(head + tail, [infos[0]], [infos[-1]], weights)
    server = models.model(tail, [infos[1]], [infos[-1]], weights)
    device = bundles.segment("device-0", Side.DEVICE, ["x"], ["t"])
    parts = [
        (device, models.model(head, infos[:1], infos[1:2])),
        (bundles.segment("server-0", Side.SERVER, ["t"], ["y"]), server),
    ]
    steps, uploads = [("run", "device-0"), ("send", "t")], [Send("t", 4 * widths[0])]
    return bundles.write(folder, whole, parts, steps, uploads, ["y"], {"server-0": ""})


def batches(folder: Path, seconds: float, rounds: int = 3) -> list[Goal]:
    """Server parts a second with 8 rows at once over each frame alone, 16 sessions, in turns."""
    made = classifier(folder / "classifier")
    alone, batched = Served(made.bundle.path), Served(made.bundle.path, batch=8)
    rates: list[tuple[float, float]] = []
    worst = 0.0
    for _ in range(rounds):
        counts = [together(made, one.address, 16, seconds, 1) for one in (alone, batched)]
        rates.append((sum(counts[0]) / seconds, sum(counts[1]) / seconds))
        worst = max(worst, *(abs(one / statistics.mean(counts[1]) - 1) for one in counts[1]))
    for server in (alone, batched):
        server.stop()
    ratios = [after / before for before, after in rates]
    ratio = statistics.median(ratios)
    before, after = (statistics.median(column) for column in zip(*rates, strict=True))
    said = f"{ratio:.2f} ({after:.0f}/s over {before:.0f}/s; {min(ratios):.2f}-{max(ratios):.2f})"
    return [
        Goal("batched tails, 16 sessions, 8 rows over 1", ">= 1.5", said, ratio >= 1.5),
        Goal("fairness, 16 sessions, 8 rows", "<= 10 %", f"{worst:.1%}", worst <= 0.1),
    ]


def together(
    made: Made, address: str, count: int, seconds: float, rows: int | None = None
) -> list[int]:
    """Answers per session in a given time, for frames of a given number of rows."""
    sessions = [OffloadSession(made.bundle, address, threads=1) for _ in range(count)]
    done, start = [0] * count, threading.Barrier(count + 1)
    stopped = threading.Event()

    def work(index: int) -> None:
        feeds = {name: array[:rows] for name, array in made.feeds().items()}
        start.wait()
        for _ in sessions[index].stream(itertools.repeat(feeds), window=WINDOW):
            done[index] += 1
            if stopped.is_set():
                return

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    start.wait()
    time.sleep(0.5)
    before = list(done)
    time.sleep(seconds)
    counts = [after - early for after, early in zip(done, before, strict=True)]
    stopped.set()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    return counts


def start_up() -> list[Goal]:
    """Import time and memory of the device's side over onnxruntime's own."""
    code = (
        "import time; t = time.perf_counter(); import {module}; t = time.perf_counter() - t\n"
        "pages = int(open('/proc/self/statm').read().split()[1])\n"
        "import os; print(t, pages * os.sysconf('SC_PAGE_SIZE'))"
    )
    rows: dict[str, list[tuple[float, float]]] = {"onnxruntime": [], "offload_runtimes.client": []}
    for _ in range(7):
        for module, found in rows.items():
            command = [sys.executable, "-c", code.format(module=module)]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            time_s, size = (float(word) for word in shown.split())
            found.append((time_s, size))
    bare, ours = (
        [statistics.median(column) for column in zip(*found, strict=True)]
        for found in rows.values()
    )
    more_s, more_bytes = ours[0] - bare[0], ours[1] - bare[1]
    return [
        Goal("import over onnxruntime's", "<= 0.2 s", f"{more_s:.2f} s", more_s <= 0.2),
        Goal(
            "memory over onnxruntime's",
            "<= 30 MB",
            f"{more_bytes / 1e6:.0f} MB",
            more_bytes <= 30e6,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", action="append", help="rows of this kind; repeatable")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as name:
        folder = Path(name)
        kinds: dict[str, Callable[[], list[Goal]]] = {
            "overhead": lambda: overhead(folder, asked.rounds),
            "streams": lambda: streams(folder, asked.frames),
            "tails": lambda: tails(folder, asked.seconds),
            "batches": lambda: batches(folder, asked.seconds),
            "start": start_up,
        }
        goals = [goal for kind in asked.only or kinds for goal in kinds[kind]()]
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
