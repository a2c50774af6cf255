"""Several devices of one server: `python -m tests.benchmarks.crowd` reads a job as a line of JSON.

Each device is a session with an emulated link of its own and a slower processor, and runs frame
after frame. Prints a line of JSON for each run: the plan (-1: each session chooses), the frames of
each device, and when each session changed plans.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from offload.costs.link import Link
from offload_runtimes.client import OffloadSession
from offload_runtimes.emulation.pacing import Pacer
from offload_runtimes.engine import Array
from offload_runtimes.value_files import read_arrays

from tests.benchmarks.adapting import settled


def main() -> None:
    job = json.loads(sys.stdin.readline())
    feeds = read_arrays(Path(job["feeds"]))
    pacer = settled(job["bundle"], job["server"], job["slowdown"], feeds)
    for plan in job["plans"]:
        print(json.dumps({"plan": plan, **crowd(job, plan, feeds, pacer)}), flush=True)


def crowd(job: dict[str, Any], plan: int, feeds: dict[str, Array], pacer: Pacer) -> dict[str, Any]:
    """All devices at once, for some seconds."""
    sessions = [
        OffloadSession(
            job["bundle"],
            job["server"],
            threads=1,
            slowdown=pacer,
            link=Link.from_json(job["link"]),
            plan=None if plan < 0 else plan,
        )
        for _ in range(job["devices"])
    ]
    frames = [0] * len(sessions)
    until_s = time.monotonic() + job["seconds"]

    def device(number: int) -> None:
        while time.monotonic() < until_s:
            sessions[number].run(None, feeds)
            frames[number] += 1

    threads = [threading.Thread(target=device, args=(n,)) for n in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = [[switch.at_s for switch in session.switches] for session in sessions]
    used = [list(session.counts.by_plan) for session in sessions]
    for session in sessions:
        session.close()
    return {"frames": frames, "changes": changes, "by_plan": used}


if __name__ == "__main__":
    main()
