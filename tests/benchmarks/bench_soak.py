"""Many sessions for a long time with faults: no wrong output, flat memory on both sides.

Run as `make soak`. The sessions live in this process, the server in its own; a proxy cuts,
stalls and corrupts. Memory is compared between the first quarter after warming up and the last.
With `SHARED=1` the sessions run streams whose frames three plans share.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.counters import Counts

from tests.benchmarks.goals import Goal, report
from tests.benchmarks.proxy import Proxy
from tests.benchmarks.served import Served, rss_bytes
from tests.benchmarks.shared import Shared, shared_bundle, stream_cases
from tests.runtimes import bundles
from tests.runtimes.bundles import Made

SESSIONS = 8
WARM = 0.3
GROWTH = 0.01


class Progress:
    """Inferences of all sessions, and those that were wrong or failed."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.done = 0
        self.wrong = 0
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def note(self, right: bool) -> None:
        with self._lock:
            self.done += 1
            self.wrong += not right

    def note_failure(self, error: Exception) -> None:
        with self._lock:
            self.failed.append(f"{type(error).__name__}: {error}")


def work(session: OffloadSession, made: Made, progress: Progress) -> None:
    cases = [(made.feeds(seed), made.expected(made.feeds(seed))) for seed in range(8)]
    number = 0
    while progress.done < progress.wanted:
        feeds, expected = cases[number % len(cases)]
        number += 1
        try:
            answers = session.run(None, feeds)
        except Exception as error:  # noqa: BLE001  any error at all is a finding
            progress.note_failure(error)
            continue
        pairs = zip(answers, expected, strict=True)
        progress.note(all(np.allclose(a, b, 1e-4, 1e-5) for a, b in pairs))


def work_shared(session: OffloadSession, shared: Shared, progress: Progress) -> None:
    while progress.done < progress.wanted:
        try:
            for is_right in stream_cases(session, shared, lambda: progress.done < progress.wanted):
                progress.note(is_right)
        except Exception as error:  # noqa: BLE001  any error at all is a finding
            progress.note_failure(error)


def disturb(proxy: Proxy, stopped: threading.Event, chance: random.Random) -> None:
    """A fault of 0.1 s every two seconds or so."""
    while not stopped.wait(chance.uniform(1, 3)):
        chance.choice((proxy.cut, proxy.stall, proxy.corrupt))()
        stopped.wait(0.1)
        proxy.mend()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inferences", type=int, default=20_000)
    parser.add_argument("--shared", action="store_true", help="streams that plans share")
    asked = parser.parse_args()
    progress, stopped = Progress(asked.inferences), threading.Event()
    memory: list[tuple[float, int, int]] = []
    with tempfile.TemporaryDirectory(prefix="offload-soak-") as folder:
        made = bundles.branches(Path(folder) / "bundle", width=256, count=3)
        shared = shared_bundle(Path(folder), 8) if asked.shared else None
        bundle = shared.bundle if shared else made.bundle
        server = Served(bundle.path)
        proxy = Proxy(server.address)
        sessions = [
            OffloadSession(
                bundle, proxy.address, threads=1, eager=True, deadline_s=10, heartbeat_s=0.1
            )
            for _ in range(SESSIONS)
        ]
        threads = [
            threading.Thread(target=work_shared, args=(s, shared, progress))
            if shared
            else threading.Thread(target=work, args=(s, made, progress))
            for s in sessions
        ]
        chance = random.Random(1)
        threads.append(threading.Thread(target=disturb, args=(proxy, stopped, chance)))
        for thread in threads:
            thread.start()
        while progress.done < progress.wanted:
            time.sleep(0.25)
            memory.append((progress.done / progress.wanted, rss_bytes(), rss_bytes(server.pid)))
        stopped.set()
        for thread in threads:
            thread.join()
        counts = [session.counts for session in sessions]
        for session in sessions:
            session.close()
        proxy.close()
        server.stop()
    return verdict(progress, counts, memory)


def verdict(progress: Progress, counts: list[Counts], memory: list[tuple[float, int, int]]) -> int:
    lost = sum(c.losses for c in counts)
    split = sum(c.split for c in counts)
    print(f"{progress.done} inferences, {split} split, {lost} servers lost", *progress.failed[:3])
    goals = [
        Goal("inferences", ">= 10000", str(progress.done), progress.done >= 10_000),
        Goal("wrong answers", "0", str(progress.wrong), not progress.wrong),
        Goal("errors", "0", str(len(progress.failed)), not progress.failed),
    ]
    first, last = WARM + (1 - WARM) / 4, 1 - (1 - WARM) / 4
    for side, column in (("device", 1), ("server", 2)):
        early = statistics.median(row[column] for row in memory if WARM < row[0] < first)
        late = statistics.median(row[column] for row in memory if row[0] > last)
        growth = late / early - 1
        said = f"{growth:+.2%} of {early / 1e6:.0f} MB"
        goals.append(Goal(f"memory of the {side}", "< 1 %", said, growth < GROWTH))
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
