"""A session while link, device or server change: switching plans, against each plan alone.

Run as root as `make bench-adapt`. A bundle for 1 to 100 Mbit/s is run between two namespaces, once
with the session choosing its plan, and once with each plan held to. In the first trace the token
buckets of the link change. In the second the device becomes 3 times slower, then other devices
load the server, then both are free again. At last eight devices share one server.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import draw
from offload.costs.link import Link, parse_link, parse_links
from offload.graph.load import load_model
from offload.planning.plan import Side, Speeds
from offload.units import format_bps
from offload_models.zoo import build, save
from offload_runtimes.emulation.testbed import Testbed, open_testbed
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.measure.split import SplitRequest, split

from tests.benchmarks.goals import Goal, report

MODEL = "alexnet_parallel"
SLOWDOWN = 10.0
CHOOSING = -1
WIFI_BPS = 18.88e6
SETTLED_S = 3.0  # after a change of speed
OTHERS = 8
# A device that left a busy server does not come back within 10 s.
SPEED_PHASES = 2  # times as long as a phase of the link
CROWD, GAP_S, CROWD_PHASES = 0.97, 10.0, 4
LINKS = {"link": "1..100 Mbit/s", "speeds": "0.2..100 Mbit/s"}


@dataclass(frozen=True)
class Phase:
    """A part of a trace: the link's rate, the device's further slow-down, other devices."""

    rate_bps: float
    throttling: float = 1.0
    others: int = 0

    def __str__(self) -> str:
        slower = f", device {self.throttling:g}x slower" if self.throttling > 1 else ""
        loaded = f", {self.others} other devices" if self.others else ""
        return format_bps(self.rate_bps) + slower + loaded


LINK_TRACE = tuple(Phase(rate_bps) for rate_bps in (5.85e6, 50e6, WIFI_BPS, 1.1e6, WIFI_BPS))


def speed_trace(bundle: Bundle) -> tuple[Phase, ...]:
    """The speeds change on a link on which a device that is 3 times slower needs another plan.

    It is the middle of these links by the plans' forecasts.
    """

    def best(rate_bps: float, device: float) -> int:
        values = [
            plan.forecast.value_s(Link(rate_bps, rate_bps), Speeds(device=device))
            for plan in bundle.plans
        ]
        return values.index(min(values))

    rates = [0.2e6 * 500 ** (step / 100) for step in range(101)]
    contested = [rate_bps for rate_bps in rates if best(rate_bps, 1.0) != best(rate_bps, 3.0)]
    rate_bps = contested[len(contested) // 2]
    return (
        Phase(rate_bps),
        Phase(rate_bps, throttling=3.0),
        Phase(rate_bps, others=OTHERS),
        Phase(rate_bps),
    )


@dataclass(frozen=True)
class Frame:
    """One inference: seconds since the start of the trace, plan, difference of its outputs."""

    start_s: float
    end_s: float
    plan: int
    difference: float


@dataclass(frozen=True)
class Passage:
    """The frames of one session over the whole trace."""

    frames: Sequence[Frame]
    switches: int
    losses: int

    def within(self, start_s: float, end_s: float) -> list[Frame]:
        """Frames that begin and end between two times."""
        return [f for f in self.frames if start_s <= f.start_s and f.end_s <= end_s]


class Track:
    """A bundle, its server in a testbed, and the trace of rates."""

    def __init__(self, bed: Testbed, bundle: Bundle, folder: Path, phase_s: float) -> None:
        self.bed, self.bundle, self.folder, self.phase_s = bed, bundle, folder, phase_s

    @contextmanager
    def served(self) -> Iterator[str]:
        module = ("-m", "offload_runtimes.workers.server_worker")
        listen = f"{self.bed.address(Side.SERVER)}:0"
        command = (sys.executable, *module, listen, "1", str(self.bundle.path))
        with subprocess.Popen(
            self.bed.command(Side.SERVER, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdout
            assert server.stdin
            yield json.loads(server.stdout.readline())["listening"]
            server.stdin.close()

    def run(self, address: str, plan: int, trace: Sequence[Phase]) -> Passage:
        """One session from the first phase to the last."""
        self._shape(trace[0].rate_bps)
        throttling = ",".join(str(phase.throttling) for phase in trace)
        files = [str(self.folder / name) for name in ("feeds.npz", "expected.npz", "pace.json")]
        fixed = (str(self.bundle.path), address, str(SLOWDOWN), str(plan), str(self.phase_s))
        command = (sys.executable, "-m", "tests.benchmarks.adapting", *fixed, throttling, *files)
        with subprocess.Popen(
            self.bed.command(Side.DEVICE, command), stdout=subprocess.PIPE, text=True
        ) as device:
            assert device.stdout
            began_s = json.loads(device.stdout.readline())["began_s"]
            changes = threading.Thread(target=self._change, args=(address, trace, began_s))
            changes.start()
            rows = [json.loads(line) for line in device.stdout]
            changes.join()
        return _passage(rows, began_s)

    def _change(self, address: str, trace: Sequence[Phase], began_s: float) -> None:
        others: subprocess.Popen[bytes] | None = None
        for number, phase in enumerate(trace):
            time.sleep(max(0.0, began_s + number * self.phase_s - time.monotonic()))
            self._shape(phase.rate_bps)
            if others is not None:
                others.communicate()
                others = None
            if phase.others:
                others = self._load(address, phase.others)

    def _load(self, address: str, count: int) -> "subprocess.Popen[bytes]":
        """Devices in the server's namespace, which need none of the link."""
        feeds = str(self.folder / "feeds.npz")
        fixed = (str(self.bundle.path), address, str(count), feeds)
        command = (sys.executable, "-m", "tests.benchmarks.loading", *fixed)
        return subprocess.Popen(self.bed.command(Side.SERVER, command), stdin=subprocess.PIPE)

    def _shape(self, rate_bps: float) -> None:
        self.bed.shape(Link(rate_bps, rate_bps))


def _passage(rows: list[dict[str, Any]], began_s: float) -> Passage:
    *found, last = rows
    frames = [
        Frame(r["start_s"] - began_s, r["end_s"] - began_s, r["plan"], r["difference"])
        for r in found
    ]
    return Passage(frames, last["switches"], last["losses"])


def made(folder: Path, links_text: str) -> Bundle:
    """A bundle for a range of links, and the expected outputs."""
    folder.mkdir()
    path = folder / "net.onnx"
    save(build(MODEL), path)
    options = EngineOptions(threads=1)
    links = parse_links(links_text, parse_link("wifi"), 25)
    request = SplitRequest(path, links[0], links=tuple(links), slowdown=SLOWDOWN, options=options)
    bundle = split(request, folder / "net.bundle")
    feeds = draw(inputs_of(load_model(path)))
    whole = load(path, options)
    answers = dict(zip([v.name for v in whole.outputs], whole.run(None, feeds), strict=True))
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    np.savez(folder / "expected.npz", **answers)  # type: ignore[arg-type]
    return bundle


def settled_s(passage: Passage, number: int, phase_s: float, after_s: float) -> float:
    """Median latency in a phase, some time after its start; infinite where no frame fits in."""
    frames = passage.within(number * phase_s + after_s, (number + 1) * phase_s)
    return statistics.median([f.end_s - f.start_s for f in frames] or [float("inf")])


def show(
    trace: Sequence[Phase], passages: Mapping[int, Passage], phase_s: float, after_s: float
) -> None:
    """Settled latency of each phase, and the plan of the switching session by then."""
    fixed = [plan for plan in passages if plan != CHOOSING]
    width = max(len(str(phase)) for phase in trace)
    print(f"{'phase':>{width}}", *(f"{f'plan {plan}':>9}" for plan in fixed), "choosing  (plan)")
    for number, phase in enumerate(trace):
        cells = [
            f"{settled_s(passages[plan], number, phase_s, after_s) * 1e3:6.0f} ms" for plan in fixed
        ]
        own = passages[CHOOSING]
        last = own.within(number * phase_s, (number + 1) * phase_s)[-1:]
        plan = last[0].plan if last else "?"
        cells.append(f"{settled_s(own, number, phase_s, after_s) * 1e3:6.0f} ms  ({plan})")
        print(f"{phase!s:>{width}}", *cells)
    frames = [f"{len(passages[plan].frames):9}" for plan in fixed]
    print(f"{'frames':>{width}}", *frames, f"{len(passages[CHOOSING].frames):9}")


def goals_of(
    name: str,
    trace: Sequence[Phase],
    passages: Mapping[int, Passage],
    phase_s: float,
    after_s: float,
) -> list[Goal]:
    """The switching session against the best plan of each phase and of the whole trace."""
    own = passages[CHOOSING]
    fixed = {plan: passage for plan, passage in passages.items() if plan != CHOOSING}
    ratios = [
        settled_s(own, number, phase_s, after_s)
        / min(settled_s(passage, number, phase_s, after_s) for passage in fixed.values())
        for number in range(len(trace))
    ]
    best = max(len(passage.frames) for passage in fixed.values())
    gain = len(own.frames) / best
    off = max(frame.difference for passage in passages.values() for frame in passage.frames)
    goals = [
        Goal(
            f"{name}: frames, choosing / the best plan alone",
            ">= 1",
            f"{gain:.2f} ({len(own.frames)} / {best})",
            gain >= 1,
        ),
        Goal(
            f"{name}: latency {after_s:g} s after a change, choosing / best plan, worst phase",
            "<= 1.1",
            f"{max(ratios):.2f}",
            max(ratios) <= 1.1,
        ),
        Goal(f"{name}: largest difference", "<= 1e-4", f"{off:.0e}", off <= 1e-4),
    ]
    if trace is LINK_TRACE:
        least, most = len({phase.rate_bps for phase in trace}) - 1, 2 * (len(trace) - 1)
        met = least <= own.switches <= most
        goals.append(Goal(f"{name}: changes of plan", f"{least} to {most}", str(own.switches), met))
    return goals


def crowd(folder: Path, bundle: Bundle, rate_bps: float, seconds: float) -> list[Goal]:
    """Devices that share a server with one worker, each with a link of its own."""
    plans = (CHOOSING, *range(len(bundle.plans)))
    command = (sys.executable, "-m", "offload_runtimes.workers.server_worker", "127.0.0.1:0", "1")
    with subprocess.Popen(
        (*command, str(bundle.path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        job = {
            "bundle": str(bundle.path),
            "server": json.loads(server.stdout.readline())["listening"],
            "slowdown": SLOWDOWN,
            "devices": OTHERS,
            "link": Link(rate_bps, rate_bps, 0.001, 0.001).to_json(),
            "feeds": str(folder / "feeds.npz"),
            "seconds": seconds,
            "plans": plans,
        }
        done = subprocess.run(
            (sys.executable, "-m", "tests.benchmarks.crowd"),
            input=json.dumps(job) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        server.communicate()
    rows = {row["plan"]: row for row in map(json.loads, done.stdout.splitlines())}
    totals = {plan: sum(row["frames"]) for plan, row in rows.items()}
    for plan, total in totals.items():
        title = "choosing" if plan == CHOOSING else f"all plan {plan}"
        print(f"{title}: {total / seconds:.1f} frames/s {rows[plan]['frames']}", flush=True)
    own = rows[CHOOSING]
    print(f"plans followed: {own['by_plan']}, changes at {own['changes']}")
    gaps = [b - a for changes in own["changes"] for a, b in pairwise(changes)]
    best = max(total for plan, total in totals.items() if plan != CHOOSING)
    ratio, least_s = totals[CHOOSING] / best, min(gaps, default=float("inf"))
    name = f"{OTHERS} devices, one worker"
    return [
        Goal(
            f"{name}: frames, each choosing / best common plan",
            f">= {CROWD:g}",
            f"{ratio:.2f} ({totals[CHOOSING]} / {best})",
            ratio >= CROWD,
        ),
        Goal(
            f"{name}: shortest time between two changes of a session",
            f">= {GAP_S:g} s",
            f"{least_s:.1f} s",
            least_s >= GAP_S,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase", type=float, default=8.0, help="seconds of each phase")
    parser.add_argument("--traces", default="link,speeds,devices")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="offload-adapt-") as work:
        folder = Path(work)
        goals: list[Goal] = []
        for name in asked.traces.split(","):
            if name == "devices":
                bundle = made(folder / name, LINKS["speeds"])
                rate_bps = speed_trace(bundle)[0].rate_bps
                goals += crowd(folder / name, bundle, rate_bps, CROWD_PHASES * asked.phase)
                continue
            bundle = made(folder / name, LINKS[name])
            for reach in bundle.plan_set.ranges:
                plan = bundle.plans[reach.plan]
                print(f"plan {reach.plan}: {plan.scheme}, below {format_bps(reach.high_bps)}")
            is_link = name == "link"
            trace = LINK_TRACE if is_link else speed_trace(bundle)
            phase_s = asked.phase if is_link else SPEED_PHASES * asked.phase
            after_s = phase_s / 2 if is_link else SETTLED_S
            with open_testbed(Link(WIFI_BPS, WIFI_BPS)) as bed:
                track = Track(bed, bundle, folder / name, phase_s)
                with track.served() as address:
                    passages = {}
                    for number in (CHOOSING, *range(len(bundle.plans))):
                        passages[number] = track.run(address, number, trace)
                        title = "choosing" if number == CHOOSING else f"plan {number}"
                        print(f"{title}: {len(passages[number].frames)} frames", flush=True)
            show(trace, passages, phase_s, after_s)
            goals += goals_of(name, trace, passages, phase_s, after_s)
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
