"""The device of `bench_share`: streams through several bundles in turns.

`python -m tests.benchmarks.sharing` reads a job as one line of JSON and prints a line of JSON for
each stream: label, round, frames per second, frames by plan, and whether every answer was
bit-equal to that of one of the plans alone. If the job has `batches`, one frame is a batch, and
each line has the seconds of single runs, the micro-batches of the last one, and how many of these
were not bit-equal to the same rows alone.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from offload_runtimes.client import OffloadSession
from offload_runtimes.emulation.pacing import Pacer
from offload_runtimes.engine import Array
from offload_runtimes.value_files import read_arrays

_CONNECT_S = 30.0


def main() -> None:
    job = json.loads(sys.stdin.readline())
    pacer = Pacer(job["slowdown"])
    feeds = {label: read_arrays(Path(path)) for label, path in job["feeds"].items()}
    with ExitStack() as stack:

        def session(label: str, plan: int | None) -> OffloadSession:
            return stack.enter_context(
                OffloadSession(
                    job["bundles"][label],
                    job["server"],
                    threads=1,
                    slowdown=pacer,
                    plan=plan,
                    connect_timeout_s=_CONNECT_S,
                )
            )

        alone = {
            label: [session(label, plan) for plan in range(count)]
            for label, count in job["plans"].items()
        }
        for _ in range(Pacer.WINDOW):
            for label, sessions in alone.items():
                for each in sessions:
                    each.rehearse(feeds[label])
        if "batches" in job:
            batches(job, feeds, alone, session, pacer)
            return
        pacer.settle()
        answers = {
            label: [each.run(None, feeds[label]) for each in sessions]
            for label, sessions in alone.items()
        }
        shared = {label: session(label, None) for label, count in job["plans"].items() if count > 1}
        for number in range(job["rounds"]):
            for label, (name, plan) in job["streams"].items():
                used = shared[name] if plan is None and name in shared else alone[name][plan or 0]
                # A mix has more frames under way, and takes longer to reach its rate.
                seconds = job["seconds"] * (2 if plan is None else 1)
                row = stream(used, feeds[name], answers[name], seconds)
                print(json.dumps({"label": label, "round": number, **row}), flush=True)


def batches(
    job: dict[str, Any],
    feeds: dict[str, dict[str, Array]],
    alone: dict[str, list[OffloadSession]],
    session: Callable[[str, int | None], OffloadSession],
    pacer: Pacer,
) -> None:
    """Run one batch again and again, by each plan alone and shared."""
    for label, sessions in alone.items():
        for each in sessions:
            for rows in range(1, len(next(iter(feeds[label].values()))) + 1):
                some = {name: array[:rows] for name, array in feeds[label].items()}
                for _ in range(Pacer.WINDOW):
                    each.rehearse(some, is_micro_batch=True)
    pacer.settle()
    shared = {
        label: session(name, None) for label, (name, plan) in job["batches"].items() if plan is None
    }
    for number in range(-1, job["rounds"]):
        for label, (name, plan) in job["batches"].items():
            used = shared[label] if plan is None else alone[name][plan]
            seconds = []
            for _ in range(job["runs"]):
                start_s = time.perf_counter()
                outputs, timeline = used.run_timed(None, feeds[name])
                seconds.append(time.perf_counter() - start_s)
            marks = [mark.name for mark in timeline.marks if mark.name.startswith("rows ")]
            wrong = sum(not equal(mark, feeds[name], outputs, alone[name]) for mark in marks)
            row = {"label": label, "round": number, "seconds": seconds, "micro_batches": marks}
            if number >= 0:  # the first round warms up
                print(json.dumps({**row, "wrong": wrong}), flush=True)


def equal(
    mark: str, feeds: dict[str, Array], outputs: list[Array], alone: list[OffloadSession]
) -> bool:
    """Whether the rows of a micro-batch, as its mark names them, are those of its plan alone."""
    first, last, plan = map(int, re.findall(r"\d+", mark))
    rows = slice(first, last + 1)
    expected = alone[plan].run(None, {name: array[rows] for name, array in feeds.items()})
    return all(np.array_equal(a[rows], b) for a, b in zip(outputs, expected, strict=True))


def stream(
    session: OffloadSession,
    feeds: dict[str, Array],
    answers: list[list[Array]],
    seconds: float,
) -> dict[str, Any]:
    """Stream the same frame for some seconds; the rate counts from the first fifth of them on."""
    before = session.counts.by_plan
    begun_s = time.monotonic()

    def frames() -> Any:
        while time.monotonic() < begun_s + seconds:
            yield feeds

    done_s, equal = [], 0
    for outputs in session.stream(frames(), copy=False):
        done_s.append(time.monotonic())
        equal += any(all(map(np.array_equal, outputs, alone)) for alone in answers)
    # The window fills at the beginning, and empties after the last frame has been given.
    steady = [at_s for at_s in done_s if begun_s + seconds / 5 <= at_s <= begun_s + seconds]
    after = session.counts.by_plan
    counts = [n - (before[i] if i < len(before) else 0) for i, n in enumerate(after)]
    rate = (len(steady) - 1) / (steady[-1] - steady[0]) if len(steady) > 1 else 0.0
    return {
        "frames_per_s": rate,
        "by_plan": counts,
        "frames": len(done_s),
        "equal": equal,
        "link": session.link.describe() if session.link else "",
        "speeds": session.speeds.describe(),
    }


if __name__ == "__main__":
    main()
