"""Devices that keep a server busy: `python -m tests.benchmarks.loading BUNDLE SERVER COUNT FEEDS`.

Each device is a session that follows the bundle's last plan, for fast links, frame after frame.
They end when standard input closes.
"""

import sys
import threading
from pathlib import Path

from offload_runtimes.client import OffloadSession
from offload_runtimes.value_files import read_arrays


def main(bundle: str, server: str, count: str, feeds: str) -> None:
    arrays = read_arrays(Path(feeds))
    ended = threading.Event()

    def device() -> None:
        with OffloadSession(bundle, server, threads=1) as probe:
            last = len(probe.bundle.plans) - 1
        with OffloadSession(bundle, server, threads=1, plan=last) as session:
            while not ended.is_set():
                session.run(None, arrays)

    threads = [threading.Thread(target=device) for _ in range(int(count))]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
