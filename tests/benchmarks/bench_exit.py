"""Processes that never close their session: each must end by itself.

300 clients of one server, 50 at once, each runs inferences for 30 s and returns from main with its
session open. None may outlive its last line by 5 s. Run by `make test-exit`, which takes 5 minutes.
A client that ends later is late: look at the load, which is printed. One that has not ended after a
minute hangs.
"""

import argparse
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.front_door.apps import split_chain
from tests.front_door.door import Door

LIMIT_S = 5.0
HANG_S = 60.0
CLIENT = """
import faulthandler, sys, time
import numpy as np
from offload_runtimes import OffloadSession
def main():
    session = OffloadSession("b", sys.argv[1], threads=1, connect_timeout_s=60)
    x = {"x": np.ones((1, 16), np.float32)}
    until_s = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until_s:
        session.run(None, x)
        time.sleep(0.02)
    faulthandler.dump_traceback_later(50)  # where it hangs, if it does
    print("done", flush=True)
main()
"""


def client(folder: Path, address: str, seconds: float) -> str:
    """Run one client; return an empty text, or what went wrong."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, address, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    complaint: queue.SimpleQueue[str] = queue.SimpleQueue()
    stderr = process.stderr
    threading.Thread(target=lambda: complaint.put(stderr.read()), daemon=True).start()
    line = process.stdout.readline()
    done_s = time.monotonic()
    try:
        process.wait(HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"hangs: {complaint.get()}"
    finally:
        process.stdout.close()
    ended_s = time.monotonic() - done_s
    said = complaint.get()
    stderr.close()
    if line != "done\n" or process.returncode or said:
        return f"failed: exit {process.returncode}, said {line!r}, {said!r}"
    return "" if ended_s <= LIMIT_S else f"late: ended {ended_s:.1f} s after its last line"


def main() -> None:
    """Run all clients; exit with 1 if one hung, failed or printed an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        door = Door(Path(folder))
        split_chain(door)
        sessions = ("--max-sessions", str(2 * asked.at_once))
        with door.serving("b", *sessions) as address, ThreadPoolExecutor(asked.at_once) as pool:
            ends = pool.map(
                lambda _: client(door.folder, address, asked.seconds), range(asked.clients)
            )
            wrong = [end for end in ends if end]
    for end in wrong:
        print(end)
    kinds = [end.partition(":")[0] for end in wrong]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("hangs", "failed", "late"))
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    print(f"{asked.clients} unclosed clients, {asked.at_once} at once: {counts}")
    print(f"load {load:.0f} on {cpus} CPUs, these clients included")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
