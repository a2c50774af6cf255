"""Let the server start on what has arrived: its part in several segments."""

from collections.abc import Sequence
from dataclasses import replace

from offload.graph.model import Graph
from offload.planning.cut import Cut
from offload.planning.plan import Side
from offload.planning.program import Program, server_segment
from offload.planning.scheme import PlanningProblem, SchemeEstimate, judged

# A segment of its own costs the server about 1 %: less than that is not worth one.
WORTH = 0.01


def start_early(situation: PlanningProblem, found: SchemeEstimate) -> SchemeEstimate:
    """The candidate with the server's layers in segments by arrival, where that pays.

    A layer's wave is the last upload that it waits for, its own or those of layers before it.
    Waves run as soon as they can, one segment each; neighbours are joined while that costs
    next to nothing, and all of them when the gain is below 1 %.
    """
    if len(found.program.uploads) < 2 or not found.scheme.starts_early:
        return found
    waves = _waves(situation.graph, found.cut, [send.tensor for send in found.program.uploads])
    if len(waves) < 2:
        return found
    best = _in_waves(situation, found, waves)
    if best.latency_s > found.latency_s * (1 - WORTH):
        return found
    index = 0
    while index + 1 < len(waves):
        joined = [*waves[:index], (*waves[index], *waves[index + 1]), *waves[index + 2 :]]
        fewer = _in_waves(situation, found, joined)
        if len(joined) > 1 and fewer.latency_s <= best.latency_s * (1 + WORTH / 10):
            best, waves = fewer, joined
        else:
            index += 1
    return best


def _waves(graph: Graph, cut: Cut, uploads: Sequence[str]) -> list[tuple[int, ...]]:
    """The server's layers by the last upload they wait for, in order of arrival."""
    arrival = {name: index for index, name in enumerate(uploads)}
    wave: dict[int, int] = {}
    for index, layer in enumerate(graph.layers):
        if index not in cut.device:
            waits = [arrival.get(name, 0) for name in layer.inputs]
            waits += [wave[before] for before in graph.predecessors[index] if before in wave]
            wave[index] = max(waits, default=0)
    return [
        tuple(layer for layer, its in wave.items() if its == number)
        for number in sorted(set(wave.values()))
    ]


def _in_waves(
    situation: PlanningProblem, found: SchemeEstimate, waves: Sequence[tuple[int, ...]]
) -> SchemeEstimate:
    graph, program = situation.graph, found.program
    device = [segment for segment in program.segments if segment.side is Side.DEVICE]
    server = [server_segment(graph, number, sorted(layers)) for number, layers in enumerate(waves)]
    split = Program((*device, *server), program.uploads, program.downloads, program.steps)
    return judged(situation, replace(found, program=split))
