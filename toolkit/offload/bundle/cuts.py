"""Places to cut a graph in two."""

import random
from collections.abc import Iterable

from offload.bundle.extract import Part, part_of
from offload.errors import InputError
from offload.graph.load import Model
from offload.graph.model import Graph

DEVICE_FILE, SERVER_FILE = "device-0.onnx", "server-0.onnx"


def distinct_cuts(graph: Graph, most: int, seed: int = 0) -> tuple[frozenset[int], ...]:
    """Different down-closed sets of layers, from nothing to everything.

    Half of them are beginnings of the graph's order, evenly spread, with both ends; the others
    are what some random layers need, so that branches are also cut apart. All cuts of a small
    graph come out if `most` allows.

    Args:
        graph: what to cut.
        most: how many at most; at least 2.
        seed: of the choice.
    """
    count = len(graph.layers)
    beginnings = min(count + 1, max(2, (most + 1) // 2))
    steps = max(beginnings - 1, 1)
    found = dict.fromkeys(frozenset(range(i * count // steps)) for i in range(beginnings))
    rng = random.Random(seed)
    for _ in range(8 * most if count else 0):
        if len(found) >= most:
            break
        picked = rng.sample(range(count), min(count, rng.choice((1, 1, 2, 3))))
        found.setdefault(graph.ancestors(picked))
    return tuple(sorted(found, key=lambda device: (len(device), sorted(device))))


def halves(graph: Graph, device: Iterable[int]) -> dict[str, Part]:
    """The two parts of a cut by file name; outputs that no layer makes are the server's."""
    kept = frozenset(device)
    rest = [index for index in range(len(graph.layers)) if index not in kept]
    loose = [name for name in graph.outputs if name not in graph.producer]
    return {DEVICE_FILE: part_of(graph, kept), SERVER_FILE: part_of(graph, rest, loose)}


def parts_at(model: Model, tensors: Iterable[str]) -> dict[str, Part]:
    """The two parts of a cut at tensors, straight from the file: no layers, no costs.

    The device computes what the tensors need and the server the rest; all that the server then
    lacks crosses, so more tensors may. O(nodes).

    Raises:
        InputError: a tensor that the model doesn't have.
    """
    wiring = model.wiring
    device: set[int] = set()
    wanted = set(tensors)
    for name in wanted:
        if name not in wiring.producer and not wiring.is_given(name):
            raise InputError(f"the model has no tensor {name!r} to cut at")
    needed, rest = set(wiring.outputs), []
    for index in reversed(wiring.order):
        if index in wiring.constant:
            continue
        if not wanted.isdisjoint(wiring.makes[index]):
            device.add(index)
            wanted.update(wiring.reads[index])
        elif not needed.isdisjoint(wiring.makes[index]):
            rest.append(index)
            needed.update(wiring.reads[index])
    made = [name for index in sorted(device) for name in wiring.makes[index] if name in needed]
    given = [name for name in wiring.inputs if name in wanted]
    later = {name for index in rest for name in wiring.reads[index]}
    later.update(name for name in wiring.outputs if name in wiring.inputs)
    crosses = [name for name in (*wiring.inputs, *made) if name in later]
    answers = [name for name in wiring.outputs if name not in set(made)]
    return {
        DEVICE_FILE: Part(tuple(sorted(device)), tuple(given), tuple(made)),
        SERVER_FILE: Part(tuple(sorted(rest)), tuple(crosses), tuple(answers)),
    }


def crossing(parts: dict[str, Part]) -> tuple[str, ...]:
    """Values that the device makes and the server needs."""
    needed = set(parts[SERVER_FILE].inputs)
    return tuple(name for name in parts[DEVICE_FILE].outputs if name in needed)
