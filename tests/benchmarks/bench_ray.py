"""Ray Serve against our own server, and two replicas against one.

Run as `make bench-ray`. Both servers run at the same time and are measured in turns, so that a
noisy moment hits both alike; medians, and the spread between quarters of the run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from offload_runtimes.client import OffloadSession

from tests.benchmarks.bench_runtime import passing, working
from tests.benchmarks.goals import Goal, report
from tests.benchmarks.served import Served
from tests.ray.cluster import PYTHON
from tests.runtimes.bundles import Made

SIZE_BYTES = 150_000
WAIT_S = 0.020
DEVICES = 12
MOST_ADDED_S = 0.0006
LEAST_RATIO = 1.8


class RayReplicas:
    """An application in a Ray cluster of its own.

    Attributes:
        address: of the ingress.
    """

    def __init__(self, made: Made, wait_s: float = 0.0) -> None:
        script = Path(__file__).with_name("ray_replicas.py")
        self._process = subprocess.Popen(
            [PYTHON, script, made.bundle.path, str(wait_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.address = self._out.readline().strip()
        assert self.address, "Ray did not start"

    def scale(self, replicas: int) -> None:
        """Wait until that many replicas serve."""
        print(replicas, file=self._in, flush=True)
        assert self._out.readline().strip() == "ready"
        time.sleep(3.0)  # until HAProxy sends streams to them, and to no other

    def stop(self) -> None:
        self._in.close()
        self._process.wait(60)


@contextmanager
def ray_replicas(made: Made, wait_s: float = 0.0) -> Iterator[RayReplicas]:
    running = RayReplicas(made, wait_s)
    try:
        yield running
    finally:
        running.stop()


def in_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call, called in turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 20):
        for call, rows in zip(calls, seconds, strict=True):
            start_s = time.perf_counter()
            call()
            if number >= 20:
                rows.append(time.perf_counter() - start_s)
    return seconds


def spread(values: Sequence[float], scale: float, unit: str) -> str:
    """The least and the greatest median of four quarters of the run."""
    size = len(values) // 4
    medians = [statistics.median(values[i * size : (i + 1) * size]) * scale for i in range(4)]
    return f"quarters {min(medians):.2f} to {max(medians):.2f} {unit}"


def latency(folder: Path, rounds: int) -> list[Goal]:
    """What Ray adds to an inference, and to a session's beginning."""
    made = passing(folder / "passing", SIZE_BYTES)
    feeds = made.feeds()
    own = Served(made.bundle.path)
    with ray_replicas(made) as ray:
        ray.scale(1)
        with (
            OffloadSession(made.bundle, ray.address, threads=1) as there,
            OffloadSession(made.bundle, own.address, threads=1) as here,
        ):
            ray_s, own_s = in_turns(
                [lambda: there.run(None, feeds), lambda: here.run(None, feeds)], rounds
            )
        added_s = [a - b for a, b in zip(ray_s, own_s, strict=True)]
        opening = [
            lambda: OffloadSession(made.bundle, ray.address, threads=1).close(),
            lambda: OffloadSession(made.bundle, own.address, threads=1).close(),
        ]
        ray_open_s, own_open_s = in_turns(opening, rounds // 10)
    own.stop()
    middle_s = statistics.median(ray_s) - statistics.median(own_s)
    per_s = [1 / statistics.median(seconds) for seconds in (ray_open_s, own_open_s)]
    return [
        Goal(
            "added latency, 150 kB up, HAProxy",
            f"<= {MOST_ADDED_S * 1e3:g} ms",
            f"{middle_s * 1e3:.2f} ms ({statistics.median(ray_s) * 1e3:.2f} /"
            f" {statistics.median(own_s) * 1e3:.2f} ms; {spread(added_s, 1e3, 'ms')})",
            middle_s <= MOST_ADDED_S,
        ),
        Goal(
            "sessions a second, one after another",
            "-",
            f"{per_s[0]:.0f} (own server {per_s[1]:.0f})",
            True,
        ),
    ]


def answers_per_s(made: Made, address: str, seconds: float) -> float:
    """Answers a second of devices that run without pause."""
    stopped = threading.Event()
    counts = [0] * DEVICES
    feeds = made.feeds()

    def run(number: int, session: OffloadSession) -> None:
        while not stopped.is_set():
            session.run(None, feeds)
            counts[number] += 1

    with ExitStack() as stack:
        sessions = [
            stack.enter_context(OffloadSession(made.bundle, address, threads=1))
            for _ in range(DEVICES)
        ]
        threads = [
            threading.Thread(target=run, args=item, daemon=True) for item in enumerate(sessions)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        before, start_s = sum(counts), time.perf_counter()
        time.sleep(seconds)
        rate = (sum(counts) - before) / (time.perf_counter() - start_s)
        stopped.set()
        for thread in threads:
            thread.join()
        assert all(session.counts.split == session.counts.runs for session in sessions)
    return rate


def replicas(made: Made, wait_s: float, rounds: int, seconds: float) -> tuple[list[float], ...]:
    """Answers a second of one replica and of two, in turns."""
    rates: tuple[list[float], ...] = ([], [])
    with ray_replicas(made, wait_s) as ray:
        for _ in range(rounds):
            for row, count in zip(rates, (1, 2), strict=True):
                ray.scale(count)
                row.append(answers_per_s(made, ray.address, seconds))
    return rates


def throughput(folder: Path, rounds: int, seconds: float) -> list[Goal]:
    """Two replicas against one."""
    goals = []
    wait = f"the server's work is a wait of {WAIT_S * 1e3:.0f} ms"
    cases = {
        wait: (passing(folder / "wait", 1000), WAIT_S, LEAST_RATIO),
        "real work on two cores, shared with the devices": (
            working(folder / "work", 1, 40),
            0.0,
            0.0,
        ),
    }
    for name, (made, wait_s, least) in cases.items():
        one, two = replicas(made, wait_s, rounds, seconds)
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        ratio = statistics.median(ratios)
        goals.append(
            Goal(
                f"2 replicas / 1, {DEVICES} devices: {name}",
                f">= {least:g}x" if least else "-",
                f"{ratio:.2f}x ({statistics.median(two):.0f} / {statistics.median(one):.0f}"
                f" answers/s; {min(ratios):.2f} to {max(ratios):.2f}x)",
                ratio >= least,
            )
        )
    return goals


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="inferences with each server")
    parser.add_argument("--turns", type=int, default=3, help="of one replica and two")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each such measurement")
    asked = parser.parse_args()
    if not PYTHON.exists():
        print("build/ray is missing: Ray cannot be installed here")
        return 0
    with tempfile.TemporaryDirectory(prefix="offload-ray-") as name:
        folder = Path(name)
        goals = latency(folder, asked.rounds)
        goals += throughput(folder, asked.turns, asked.seconds)
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
