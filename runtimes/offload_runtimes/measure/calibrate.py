"""Time pieces of a model as they will run, and bend a table of layers to what they take.

The sum of its layers' times is not what a fused segment takes: the engine overlaps work, lays
tensors out anew at a segment's ends, and its profiler slows small kernels down. So the whole and
the pieces it falls into are timed undisturbed, in turns, so that what else the machine does hits
all alike.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
from offload.bundle.engine_input import part_input
from offload.bundle.subgraph import part_of
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

from offload_runtimes.engine import Arena, EngineOptions, load
from offload_runtimes.engine.values import Array

WARM_RUNS = 3
_WARM_S = 2.0  # what takes longer is warm after fewer runs
PIECES = 6
_LEAST_S = 3e-4  # a shorter piece is mostly the engine's own call
_NEAR = 0.4
_SLOWER = 1.15
_SCATTER = 0.4

Feeds = Mapping[str, Array]


def divided(graph: Graph, seconds: Sequence[float], count: int = PIECES) -> list[range]:
    """Neighbouring layers in at most so many pieces of about equal time; O(V x count + E).

    Near each even division the place is taken where the fewest bytes pass; places that something
    passes that is no tensor of numbers are none.
    """
    sums = [0.0, *np.cumsum(seconds).tolist()]
    count = max(1, min(count, int(sums[-1] / _LEAST_S)))
    step = sums[-1] / count
    bytes_at = list(_passing(graph))
    places = [place for place, passing in enumerate(bytes_at) if passing is not None]
    ends = []
    for aim in (step * number for number in range(1, count)):
        near = [place for place in places if abs(sums[place] - aim) < _NEAR * step]
        if near:
            ends.append(min(near, key=lambda p: (bytes_at[p] or 0, abs(sums[p] - aim))))
    edges = [0, *ends, len(seconds)]
    return [range(start, end) for start, end in pairwise(edges)]


def _passing(graph: Graph) -> Iterator[int | None]:
    """Bytes that pass from before each layer to it and those after; None: not only tensors."""
    last = {name: users[-1] for name, users in graph.consumers.items()}
    alive: set[str] = set()
    for index, layer in enumerate(graph.layers):
        tensors = [graph.tensors[name] for name in alive]
        able = all(tensor.dtype not in (None, "string") for tensor in tensors)
        yield sum(tensor.size_bytes or 0 for tensor in tensors) if able and alive else None
        alive -= {name for name in layer.inputs if last[name] == index}
        alive |= {name for name in layer.outputs if name in last}


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, budget_s: float
) -> dict[str, list[float]]:
    """Seconds of each of several pieces of work, one after the other, again and again.

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


def pieces(
    model: Model,
    graph: Graph,
    ranges: Sequence[range],
    folder: Path,
    options: EngineOptions,
    feeds: Feeds,
    types: Mapping[str, Tensor] = MappingProxyType({}),
    arena: Arena | None = None,
) -> dict[str, Callable[[], list[Array]]]:
    """For each of several ranges of layers, a run of it as a segment, on what those before made.

    Raises:
        InputError: the engine refuses a piece.
    """
    if len(ranges) == 1:
        return {}
    values = dict(feeds)
    runs: dict[str, Callable[[], list[Array]]] = {}
    for number, layers in enumerate(ranges):
        part = part_of(graph, layers)
        source = part_input(model, part, folder / f"piece-{number}.onnx", types)
        engine = load(source, options, arena)
        needed = {name: values[name] for name in part.inputs}
        values.update(zip(part.outputs, engine.run(part.outputs, needed), strict=True))
        runs[f"piece-{number}"] = lambda engine=engine, needed=needed: engine.run(None, needed)  # type: ignore[misc]
    return runs


def calibrated(
    seconds: Sequence[float], whole_s: float, ranges: Sequence[range], pieces_s: Sequence[float]
) -> tuple[list[float], float]:
    """Scale the layers of each piece to what it was measured to take.

    What the pieces take together beyond the whole is what it costs to end one segment and begin
    another; it is shared out evenly and is no layer's.

    Args:
        seconds: the layers' times as the profiler shared them, in any unit.
        whole_s: seconds of the whole model.
        ranges: the layers of each piece.
        pieces_s: seconds of each piece.

    Returns:
        The layers' seconds, which sum to the whole's, and the seconds of a segment besides them.
    """
    excess_s = max(0.0, sum(pieces_s) - whole_s) / len(ranges)
    own = [max(piece_s - excess_s, 0.0) for piece_s in pieces_s]
    scale = whole_s / sum(own)
    found: list[float] = []
    for layers, piece_s in zip(ranges, own, strict=True):
        shares = [seconds[layer] for layer in layers]
        total = sum(shares)
        even = 1 / len(shares)
        found += [piece_s * scale * (share / total if total else even) for share in shares]
    return found, excess_s


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
