"""Time work by the clock on this machine."""

import os
import platform
import time
from collections.abc import Callable, Mapping

WARM_RUNS = 3
_WARM_S = 0.5  # slow work is warm after fewer runs


def machine_name() -> str:
    """A name for this machine that is stable between runs."""
    return f"{platform.node() or 'machine'}-{platform.machine()}-{os.cpu_count()}cpu"


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, budget_s: float
) -> dict[str, list[float]]:
    """Seconds of several pieces of work, run one after the other, repeatedly.

    At least three rounds, then until the repeats or the seconds are used up.
    """
    for run in runs.values():
        until_s = time.monotonic() + _WARM_S
        for _ in range(WARM_RUNS):
            run()
            if time.monotonic() > until_s:
                break
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    until_s = time.monotonic() + budget_s
    for done in range(repeats):
        if done >= 3 and time.monotonic() > until_s:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds
