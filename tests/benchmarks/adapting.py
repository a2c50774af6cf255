"""The device of `bench_adapt`: one session, frame after frame, a line of JSON for each.

Arguments: BUNDLE SERVER SLOWDOWN PLAN PHASE_S FACTORS FEEDS EXPECTED PACE. A plan of -1 lets the
session choose. FACTORS, separated by commas, further slow down the device in each phase. PACE is a
file of run times that the first process writes and the next ones read: made ten times longer, the
differences between processes would be those between plans.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from offload.bundle.bundle import open_bundle
from offload.bundle.compare import difference
from offload.planning.plan import Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.emulation.pacing import Pacer
from offload_runtimes.engine import Array


def main(
    bundle: str, server: str, slowdown: str, plan: str, phase: str, throttling: str, *files: str
) -> None:
    phase_s, factors = float(phase), [float(factor) for factor in throttling.split(",")]
    with np.load(files[0]) as feeds, np.load(files[1]) as outputs:
        given, expected = dict(feeds), dict(outputs)
    pacer = settled(bundle, server, float(slowdown), given, Path(files[2]))
    with OffloadSession(
        bundle,
        server,
        threads=1,
        slowdown=pacer,
        plan=None if plan == "-1" else int(plan),
    ) as session:
        session.run(None, given)
        print(json.dumps({"began_s": time.monotonic()}), flush=True)
        began_s = time.monotonic()
        until_s = began_s + phase_s * len(factors)
        while (start_s := time.monotonic()) < until_s:
            pacer.slowdown = float(slowdown) * factors[int((start_s - began_s) / phase_s)]
            followed = session.plan
            answers = session.run(list(expected), given)
            pairs = zip(answers, expected.values(), strict=True)
            row = {
                "start_s": start_s,
                "end_s": time.monotonic(),
                "plan": followed,
                "up_bps": session.link.up_bps if session.link else None,
                "difference": max(difference(wanted, found) for found, wanted in pairs),
            }
            print(json.dumps(row), flush=True)
        counts = session.counts
        print(json.dumps({"switches": counts.switches, "losses": counts.losses}), flush=True)


def settled(
    bundle: str, server: str, slowdown: float, given: dict[str, Array], known: Path | None = None
) -> Pacer:
    """A pace with fixed run times for the parts of all plans, free of noise.

    They are read from the file `known` if it exists, and written there if it does not.
    """
    pacer = Pacer(slowdown)
    if known is not None and known.is_file():
        for key, duration_s in json.loads(known.read_text()).items():
            pacer.add(key, duration_s)
        pacer.settle()
        return pacer
    for plan in range(len(open_bundle(bundle, (Side.DEVICE,)).plans)):
        with OffloadSession(bundle, server, threads=1, slowdown=pacer, plan=plan) as session:
            for _ in range(Pacer.WINDOW):
                session.rehearse(given)
    durations_s = pacer.settle()
    if known is not None:
        known.write_text(json.dumps(durations_s))
    return pacer


if __name__ == "__main__":
    main(*sys.argv[1:])
