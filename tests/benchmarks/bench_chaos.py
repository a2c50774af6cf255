"""Kill, stop, cut, stall and corrupt at random instants: every answer right and in time.

Run as `make chaos`. One device, one server process, a proxy between them. While inferences run
one after another, a fault strikes at a random instant and is mended after a random time; then
the session must use the server again within a second. With `SHARED=1` the inferences are the
frames of a stream that three plans share.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from offload_runtimes.client import OffloadSession

from tests.benchmarks.goals import Goal, report
from tests.benchmarks.proxy import Proxy, wait_until
from tests.benchmarks.served import Served
from tests.benchmarks.shared import Shared, shared_bundle, stream_cases
from tests.runtimes import bundles
from tests.runtimes.bundles import Made

DEADLINE_S = 2.0
BACK_S = 1.0
SEEDS = 16
Fault: TypeAlias = tuple[Callable[[], None], Callable[[], None]]


@dataclass
class Found:
    """Results of the faults and the inferences."""

    latencies_s: list[float] = field(default_factory=list)
    wrong: int = 0
    late: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    back_s: dict[str, list[float]] = field(default_factory=dict)
    never_back: int = 0


class Caller:
    """Runs inferences without pause on a thread of its own and checks every answer."""

    def __init__(self, session: OffloadSession, made: Made, found: Found) -> None:
        self._session = session
        self._found = found
        self._cases = [(made.feeds(s), made.expected(made.feeds(s))) for s in range(SEEDS)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopped.is_set():
            feeds, expected = self._cases[number % SEEDS]
            number += 1
            start_s = time.monotonic()
            try:
                answers = self._session.run(None, feeds)
            except Exception as error:  # noqa: BLE001  any error at all is a finding
                self._found.errors[type(error).__name__] += 1
                continue
            took_s = time.monotonic() - start_s
            self._found.latencies_s.append(took_s)
            self._found.late += took_s > DEADLINE_S
            pairs = zip(answers, expected, strict=True)
            self._found.wrong += not all(np.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)


class StreamCaller:
    """Runs a stream whose frames several plans share; the time of an answer is since the last."""

    def __init__(self, session: OffloadSession, shared: Shared, found: Found) -> None:
        self._session = session
        self._shared = shared
        self._found = found
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            last_s = time.monotonic()
            try:
                goes_on = lambda: not self._stopped.is_set()  # noqa: E731
                for is_right in stream_cases(self._session, self._shared, goes_on):
                    now_s = time.monotonic()
                    self._found.latencies_s.append(now_s - last_s)
                    self._found.late += now_s - last_s > DEADLINE_S
                    self._found.wrong += not is_right
                    last_s = now_s
            except Exception as error:  # noqa: BLE001  any error at all is a finding
                self._found.errors[type(error).__name__] += 1


def faults(
    server: Served, proxy: Proxy
) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Functions that start and end each fault, by its name."""
    return {
        "SIGKILL": (server.kill, server.start),
        "SIGSTOP": (server.pause, server.resume),
        "cut": (proxy.cut, proxy.mend),
        "stall": (proxy.stall, proxy.mend),
        "corrupt": (proxy.corrupt, proxy.mend),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", action="store_true", help="a stream that plans share")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    found, struck = Found(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="offload-chaos-") as folder:
        shared = shared_bundle(Path(folder), SEEDS) if asked.shared else None
        made = bundles.branches(Path(folder) / "bundle", width=512, count=4)
        bundle = shared.bundle if shared else made.bundle
        server = Served(bundle.path)
        proxy = Proxy(server.address)
        with OffloadSession(
            bundle, proxy.address, threads=1, deadline_s=DEADLINE_S, heartbeat_s=0.1
        ) as session:
            caller = (
                StreamCaller(session, shared, found) if shared else Caller(session, made, found)
            )
            kinds = faults(server, proxy)
            order = [list(kinds)[i % len(kinds)] for i in range(asked.faults)]
            chance.shuffle(order)
            for name in order:
                strike(name, kinds[name], session, found, chance)
                struck[name] += 1
            caller.stop()
            counts = session.counts
        proxy.close()
        server.stop()
    print(f"faults: {dict(struck)}")
    print(f"inferences: {counts}")
    for name, seconds in sorted(found.back_s.items()):
        print(
            f"split again after {name:8}: median {statistics.median(seconds) * 1e3:.0f} ms,"
            f" worst {max(seconds) * 1e3:.0f} ms"
        )
    return verdict(found, sum(struck.values()))


def strike(
    name: str,
    pair: Fault,
    session: OffloadSession,
    found: Found,
    chance: random.Random,
) -> None:
    """One fault, its end, and the wait for the session to be split again."""
    fault, mend = pair
    time.sleep(chance.uniform(0, 0.3))
    fault()
    time.sleep(chance.expovariate(1 / 0.3))
    mend()
    waited_s = wait_until(lambda: session._active.opened.connection is not None, 20)
    if waited_s is None:
        found.never_back += 1
        return
    before = answered_by_server(session)
    more_s = wait_until(lambda: answered_by_server(session) > before, 20)
    if more_s is None:
        found.never_back += 1
    else:
        found.back_s.setdefault(name, []).append(waited_s + more_s)


def answered_by_server(session: OffloadSession) -> int:
    """Inferences that the server took part in; of a stream, those that should have needed it."""
    if not session.bundle.shares:
        return session.counts.split
    plans = session.bundle.plans
    by_plan = enumerate(session.counts.by_plan)
    return sum(count for plan, count in by_plan if not plans[plan].is_local)


def verdict(found: Found, struck: int) -> int:
    back = [seconds for rows in found.back_s.values() for seconds in rows]
    slow = sum(seconds > BACK_S for seconds in back) + found.never_back
    runs = len(found.latencies_s)
    worst_s = max(found.latencies_s, default=0.0)
    errors = sum(found.errors.values())
    return report(
        (
            Goal("faults", ">= 200", str(struck), struck >= 200),
            Goal("wrong answers", "0", f"{found.wrong} of {runs}", not found.wrong),
            Goal("errors", "0", f"{errors} {dict(found.errors) or ''}", not errors),
            Goal(f"answers after {DEADLINE_S:g} s", "0", str(found.late), not found.late),
            Goal("worst answer", f"<= {DEADLINE_S:g} s", f"{worst_s:.2f} s", worst_s <= DEADLINE_S),
            Goal(f"not split again in {BACK_S:g} s", "0", f"{slow} of {struck}", not slow),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
