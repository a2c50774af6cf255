"""Which plan should the next frame follow? Two rules on random networks, by simulation.

Run as `make bench-share-rules`. By shares, as sessions do it: the plan that is furthest below its
share of the best mix. Soonest: the plan by which the frame is answered first, given all that is
under way (exact, by simulating ahead). Both are compared with the rate of the linear program, on
those random networks where sharing gains at least 1.2x. The shares are also taken from wrong
estimates: each resource 1.25 times faster or slower than it is.
"""

import statistics
import sys
from collections.abc import Sequence

import numpy as np
from offload.planning.plan import ResourceUse
from offload.planning.shares import share_frames, shares_within, window_for

from tests.benchmarks.goals import Goal, report
from tests.toolkit.planning.stream_simulation import (
    by_shares,
    frames_per_s,
    latencies_s,
    soonest,
)
from tests.toolkit.planning.test_shares import random_plans

NETWORKS, FRAMES = 60, 120
GAIN, OFF = 1.2, 1.25


def estimated(uses: Sequence[ResourceUse], seed: int) -> list[ResourceUse]:
    """The seconds of each resource, estimated too short or too long."""
    factors = np.random.default_rng(seed).choice([1 / OFF, OFF], 4)
    return [ResourceUse(*(factors * use.seconds).tolist()) for use in uses]


def main() -> int:
    rows: dict[str, list[float]] = {}
    for seed in range(NETWORKS):
        uses = random_plans(seed)
        best_hz = share_frames(uses).rate_hz
        if best_hz * min(use.period_s for use in uses) < GAIN:
            continue
        for name, window in (("4", 4), ("default", window_for(uses, latencies_s(uses)))):
            shares, _ = shares_within(uses, latencies_s(uses), window)
            for label, rule in (("shares", by_shares(shares)), ("soonest", soonest)):
                rate_hz = frames_per_s(uses, rule, window, FRAMES)
                rows.setdefault(f"{label}, window {name}", []).append(rate_hz / best_hz)
        wrong = estimated(uses, seed)
        window = window_for(wrong, latencies_s(wrong))
        shares, _ = shares_within(wrong, latencies_s(wrong), window)
        rate_hz = frames_per_s(uses, by_shares(shares), window, FRAMES)
        rows.setdefault("shares, wrong estimates", []).append(rate_hz / best_hz)
    count = len(rows["shares, window 4"])
    print(f"part of the best rate, {count} of {NETWORKS} random networks with a gain of {GAIN:g}x:")
    for label, parts in rows.items():
        print(f"  {label:<24} median {statistics.median(parts):.3f}, worst {min(parts):.3f}")
    own, other = rows["shares, window default"], rows["soonest, window default"]
    median = statistics.median(own)
    return report(
        (
            Goal("by shares, median", ">= 0.97", f"{median:.3f}", median >= 0.97),
            Goal("by shares, worst", ">= 0.9", f"{min(own):.3f}", min(own) >= 0.9),
            Goal(
                "worst by shares / worst soonest",
                ">= 1",
                f"{min(own) / min(other):.2f}",
                min(own) >= min(other),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
