"""Time pieces of a model as they will run, and bend a table of layers to what they take.

The sum of its layers' times is not what a fused segment takes: the engine overlaps work and
keeps data in caches, and its profiler slows small kernels down. So the whole and a few of its
beginnings are timed undisturbed, in turns, so that what else the machine does hits all alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from offload.bundle.extract import part_of
from offload.bundle.weights import write_part
from offload.graph.load import Model
from offload.graph.model import Graph
from offload.partition.chain import articulations

from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.values import Array

WARM_RUNS = 3
BEGINNINGS = 4
_LEAST_S = 2e-3  # a piece of less is lost in the clock's noise
_SLOWER = 1.15
_SCATTER = 0.4

Feeds = Mapping[str, Array]


def checkpoints(graph: Graph, seconds: Sequence[float], count: int = BEGINNINGS) -> list[int]:
    """Layers that everything passes and that divide the model's time most evenly."""
    total = sum(seconds)
    gates = list(articulations(graph))
    sums = [sum(seconds[layer] for layer in graph.ancestors((gate,))) for gate in gates]
    chosen: list[int] = []
    for part in range(1, count + 1):
        aim = total * part / (count + 1)
        near = [i for i in range(len(gates)) if _LEAST_S < sums[i] < total - _LEAST_S]
        if near:
            chosen.append(gates[min(near, key=lambda index: abs(sums[index] - aim))])
    return sorted(set(chosen))


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, budget_s: float
) -> dict[str, list[float]]:
    """Seconds of each of several pieces of work, one after the other, again and again.

    At least three rounds, then until the repeats or the seconds are used up.
    """
    for run in runs.values():
        for _ in range(WARM_RUNS):
            run()
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


def beginnings(
    model: Model,
    graph: Graph,
    gates: Sequence[int],
    folder: Path,
    options: EngineOptions,
    feeds: Feeds,
) -> dict[str, Callable[[], object]]:
    """For each gate, a run of all that it needs, as a segment of its own."""
    runs: dict[str, Callable[[], object]] = {}
    for gate in gates:
        part = part_of(graph, graph.ancestors((gate,)))
        path = folder / f"device-{gate}.onnx"
        write_part(model, part, path)
        engine = load(path, options)
        needed = {name: feeds[name] for name in part.inputs}
        runs[str(gate)] = lambda engine=engine, needed=needed: engine.run(None, needed)  # type: ignore[misc]
    return runs


def calibrated(
    graph: Graph, seconds: Sequence[float], whole_s: float, measured_s: Mapping[int, float]
) -> list[float]:
    """Scale the layers between two checkpoints to what was measured between them.

    Args:
        graph: the layers.
        seconds: their times as the profiler shared them, in any unit.
        whole_s: seconds of the whole model.
        measured_s: by checkpoint, seconds of all up to it; sums that would go down are levelled.
    """
    found = [0.0] * len(seconds)
    before: frozenset[int] = frozenset()
    before_s = 0.0
    steps = [(graph.ancestors((gate,)), min(s, whole_s)) for gate, s in sorted(measured_s.items())]
    for layers, until_s in (*steps, (frozenset(range(len(seconds))), whole_s)):
        group = sorted(layers - before)
        share = sum(seconds[layer] for layer in group)
        span_s = max(until_s - before_s, 0.0)
        for layer in group:
            found[layer] = span_s * (seconds[layer] / share if share else 1 / len(group))
        before, before_s = layers, before_s + span_s
    return found


def remarks(whole: Sequence[float]) -> list[str]:
    """What is suspicious about repeated timings of one piece of work, each in one sentence."""
    third = len(whole) // 3
    said = []
    if third >= 2:
        first, last = statistics.median(whole[:third]), statistics.median(whole[-third:])
        if last > _SLOWER * first:
            said.append(
                f"the machine became {last / first:.2f}x slower while it was measured: if it is"
                " throttling, let it cool and measure again"
            )
    low, middle, high = (float(np.quantile(whole, q)) for q in (0.25, 0.5, 0.75))
    if high - low > _SCATTER * middle:
        said.append(
            f"half of the runs scatter over {(high - low) / middle:.0%} of the median: something"
            " else keeps the machine busy; measure again when it is quiet"
        )
    return said
