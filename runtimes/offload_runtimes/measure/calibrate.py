"""Time pieces of a model as they will run, and scale the profiled layers to the measured times.

A fused segment does not take the sum of its layers' times: the engine overlaps work, changes
the layout of tensors at a segment's ends, and its profiler slows small kernels down. So the whole
and its pieces are timed without a profiler, in turns, so that other load on the machine affects
all alike.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
from offload.bundle.engine_input import EngineInput, part_input
from offload.bundle.subgraph import part_of
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor

from offload_runtimes.measure.machine import Feeds, LoadedModel, TimedRun

PIECES = 6
_LEAST_S = 3e-4  # a shorter piece is mostly the engine's own call
_MOST_BYTES = 32_000_000  # that pass between two pieces, and stay in memory
_NEAR = 0.4
_SLOWER = 1.15
_SCATTER = 0.4


def divided(graph: Graph, seconds: Sequence[float], count: int = PIECES) -> list[range]:
    """Divide the layers into at most `count` ranges of about equal time; O(V x count + E).

    Each range ends near an even division, where the fewest bytes pass. No range ends where strings
    pass, or more than 32 MB.
    """
    sums = [0.0, *np.cumsum(seconds).tolist()]
    count = max(1, min(count, int(sums[-1] / _LEAST_S)))
    step = sums[-1] / count
    last = {name: users[-1] for name, users in graph.consumers.items()}
    alive: set[str] = set()
    bytes_at: dict[int, int] = {}  # before a layer: bytes that pass, where pieces may end
    for index, layer in enumerate(graph.layers):
        tensors = [graph.tensors[name] for name in alive]
        if alive and all(tensor.dtype not in (None, "string") for tensor in tensors):
            passing_bytes = sum(tensor.size_bytes or 0 for tensor in tensors)
            if passing_bytes <= _MOST_BYTES:
                bytes_at[index] = passing_bytes
        alive -= {name for name in layer.inputs if last[name] == index}
        alive |= {name for name in layer.outputs if name in last}
    ends = []
    for aim in (step * number for number in range(1, count)):
        near = [place for place in bytes_at if abs(sums[place] - aim) < _NEAR * step]
        if near:
            ends.append(min(near, key=lambda p: (bytes_at[p], abs(sums[p] - aim))))
    return [range(start, end) for start, end in pairwise([0, *ends, len(seconds)])]


def pieces(
    model: Model,
    graph: Graph,
    ranges: Sequence[range],
    folder: Path,
    load: Callable[[EngineInput], LoadedModel],
    feeds: Feeds,
    types: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, TimedRun]:
    """By range of layers, a run of it as a segment on its real inputs.

    Raises:
        InputError: the engine refuses a piece.
    """
    if len(ranges) == 1:
        return {}
    values = dict(feeds)
    runs = {}
    for number, layers in enumerate(ranges):
        part = part_of(graph, layers)
        source = part_input(model, part, folder / f"piece-{number}.onnx", types)
        loaded = load(source)
        needed = {name: values[name] for name in part.inputs}
        values.update(zip(part.outputs, loaded.keep(part.outputs, needed), strict=True))
        runs[f"piece-{number}"] = TimedRun(loaded, needed)
    return runs


def calibrated(
    seconds: Sequence[float], whole_s: float, ranges: Sequence[range], pieces_s: Sequence[float]
) -> tuple[list[float], float]:
    """Scale the layers of each piece to what it was measured to take.

    The pieces together take longer than the whole: that excess is the cost of ending one segment
    and beginning another. It is divided evenly among the pieces and belongs to no layer.

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
    layers_s: list[float] = []
    for layers, piece_s in zip(ranges, own, strict=True):
        shares = [seconds[layer] for layer in layers]
        total = sum(shares)
        even = 1 / len(shares)
        layers_s += [piece_s * scale * (share / total if total else even) for share in shares]
    return layers_s, excess_s


def remarks(whole: Sequence[float]) -> list[str]:
    """Warnings about repeated timings of one piece of work, each in one sentence."""
    third = len(whole) // 3
    warnings = []
    if third >= 2:
        first, last = statistics.median(whole[:third]), statistics.median(whole[-third:])
        if last > _SLOWER * first:
            warnings.append(
                f"the machine became {last / first:.2f}x slower while it was measured: if it is"
                " throttling, let it cool and measure again"
            )
    low, middle, high = (float(np.quantile(whole, q)) for q in (0.25, 0.5, 0.75))
    if high - low > _SCATTER * middle:
        warnings.append(
            f"half of the runs scatter over {(high - low) / middle:.0%} of the median: something"
            " else keeps the machine busy; measure again when it is quiet"
        )
    return warnings
