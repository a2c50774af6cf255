"""The device process of an experiment: `python -m offload_runtimes.workers.device_worker`.

Reads an `ExperimentJob` as one line of JSON, loads the bundles and prints `{"ready": PID}`. After
one more line it runs the bundles in turn and prints a `MeasuredRun` a line, or `{"error": ...}`.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from offload.bundle.compare import difference
from offload.errors import OffloadError
from offload.records import from_json, to_json

from offload_runtimes.client import OffloadSession
from offload_runtimes.emulation.experiment import BundleEntry, ExperimentJob, MeasuredRun
from offload_runtimes.emulation.pacing import Pacer
from offload_runtimes.engine import Array
from offload_runtimes.value_files import read_arrays

_LEAST_ROUNDS = 3
_WORST = 1e308  # JSON has no infinity
# Heartbeats would disturb what is measured; the connection of a dead server breaks without them.
_HEARTBEAT_S = 3600.0
_CONNECT_S = 30.0

Sessions = Mapping[str, OffloadSession]
Arrays = Mapping[str, tuple[dict[str, Array], dict[str, Array]]]


def main() -> int:
    """Run the job on standard input; exit code 1 when it failed."""
    job = from_json(ExperimentJob, json.loads(sys.stdin.readline()))
    try:
        with ExitStack() as stack:
            pacer = Pacer(job.slowdown)
            sessions = {e.label: stack.enter_context(_session(job, e, pacer)) for e in job.entries}
            _print_line({"ready": os.getpid()})
            if sys.stdin.readline():
                arrays = {
                    e.label: (read_arrays(Path(e.feeds)), read_arrays(Path(e.expected)))
                    for e in job.entries
                }
                _settle(job, pacer, sessions, arrays)
                _rounds(job, sessions, arrays)
    except (OffloadError, OSError) as error:
        _print_line({"error": str(error)})
        return 1
    return 0


def _session(job: ExperimentJob, entry: BundleEntry, pacer: Pacer) -> OffloadSession:
    return OffloadSession(
        Path(entry.bundle),
        job.server,
        threads=job.threads,
        link=job.link,
        slowdown=pacer,
        on_server_loss="raise",  # a run finished locally would measure something else
        heartbeat_s=_HEARTBEAT_S,
        patience_s=_HEARTBEAT_S,
        connect_timeout_s=_CONNECT_S,
    )


def _settle(job: ExperimentJob, pacer: Pacer, sessions: Sessions, arrays: Arrays) -> None:
    """Measure each part in turn, and pace all sessions by these times: they share one device."""
    if pacer.slowdown > 1:
        took_s = [
            {label: session.rehearse(arrays[label][0]) for label, session in sessions.items()}
            for _ in range(Pacer.WINDOW)
        ]
        now_s = min(turn[job.whole] for turn in took_s) if job.whole else 0.0
        pacer.settle(job.whole_s / now_s if now_s else 1.0)


def _rounds(job: ExperimentJob, sessions: Sessions, arrays: Arrays) -> None:
    """Run every bundle once a round, so that a noisy moment affects all of them."""
    began_s = time.monotonic()
    for number in range(job.repeats + 1):
        for label, session in sessions.items():
            feeds, expected = arrays[label]
            start_s = time.monotonic()
            outputs, timeline = session.run_timed(list(expected), feeds)
            latency_s = time.monotonic() - start_s
            worst = max(map(difference, expected.values(), outputs), default=0.0)
            run = MeasuredRun(label, number, latency_s, min(worst, _WORST), timeline)
            _print_line(to_json(run))
        if number >= _LEAST_ROUNDS and time.monotonic() - began_s > job.budget_s:
            return


def _print_line(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    sys.exit(main())
