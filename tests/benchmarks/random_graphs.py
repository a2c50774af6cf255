"""Random scheduling instances of the shapes that networks have, by seed."""

import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping

from offload.scheduling.instance import Instance, Job

Family = Callable[[int, int, int], Instance]
"""Makes an instance from a seed, a number of layers before trimming, and of cut points."""

RATIOS = (0.5, 1.0, 2.0)
"""Total compute over total upload: order matters when the two are about equal."""


def out_tree(seed: int, layers: int, cuts: int) -> Instance:
    """A random out-tree whose leaves upload: the paper's model."""
    dice = random.Random(seed)
    edges = [(dice.randrange(max(0, b - 2 * cuts), b), b) for b in range(1, layers)]
    leaves = sorted(set(range(layers)) - {a for a, _ in edges})
    return _instance(dice, edges, dice.sample(leaves, min(cuts, len(leaves))))


def series_parallel(seed: int, layers: int, cuts: int) -> Instance:
    """Random compositions, side by side or through a joining layer; any layer may upload."""
    dice = random.Random(seed)
    parts = [([k], [k]) for k in range(layers)]
    edges: list[tuple[int, int]] = []
    while len(parts) > 1:
        place = dice.randrange(len(parts) - 1)
        (sources, sinks), (later_sources, later_sinks) = parts[place], parts.pop(place + 1)
        if dice.random() < 0.5 and len(sinks) * len(later_sources) <= 16:
            edges += [(a, b) for a in sinks for b in later_sources]
            parts[place] = sources, later_sinks
        else:
            parts[place] = sources + later_sources, sinks + later_sinks
    return _instance(dice, edges, dice.sample(range(layers), min(cuts, layers)))


def randwire(seed: int, layers: int, cuts: int) -> Instance:
    """Watts-Strogatz wiring WS(4, 0.75) as in RandWire, cut across a prefix; even layers."""
    dice = random.Random(seed)
    pairs = set()
    for a in range(layers):
        for hop in (1, 2):
            b = (a + hop) % layers
            if dice.random() < 0.75:
                b = (a + dice.randrange(1, layers)) % layers
            pairs.add((min(a, b), max(a, b)))
    prefix = int(layers * dice.uniform(0.4, 0.8))
    crossing = sorted({a for a, b in pairs if a < prefix <= b})
    chosen = dice.sample(crossing, min(cuts, len(crossing)))
    return _instance(dice, sorted(pairs), chosen, even=True)


def dense_layered(seed: int, layers: int, cuts: int) -> Instance:
    """Levels about as wide as deep, every layer fed by two to five of the level before.

    Half of the seeds upload from sinks only, half from anywhere.
    """
    dice = random.Random(seed)
    width = max(6, round(math.sqrt(layers) * dice.choice((0.7, 1.0, 1.5))))
    edges = []
    for b in range(width, layers):
        level = b // width * width
        edges += [(a, b) for a in dice.sample(range(level - width, level), dice.randint(2, 5))]
    needed = {a for a, _ in edges}
    pool = [v for v in range(layers) if v not in needed] if dice.random() < 0.5 else []
    if len(pool) < cuts:
        pool = list(range(layers))
    return _instance(dice, sorted(edges), dice.sample(pool, min(cuts, len(pool))))


FAMILIES: Mapping[str, Family] = {
    "out-tree": out_tree,
    "series-parallel": series_parallel,
    "RandWire-like": randwire,
    "dense layered": dense_layered,
}


def _instance(
    dice: random.Random,
    edges: Iterable[tuple[int, int]],
    cuts: Collection[int],
    even: bool = False,
) -> Instance:
    """Random times; layers that no cut point needs are removed."""
    kept = _ancestors(edges, cuts)
    index = {layer: place for place, layer in enumerate(sorted(kept))}

    def draw() -> float:
        return dice.uniform(0.8, 1.2) if even else dice.lognormvariate(0.0, 1.0)

    compute_s = {layer: draw() for layer in index}
    upload_s = {layer: draw() for layer in sorted(cuts)}
    scale = sum(compute_s.values()) / sum(upload_s.values()) / dice.choice(RATIOS)
    return Instance(
        tuple(Job(f"l{v}", compute_s[v], scale * upload_s.get(v, 0.0)) for v in index),
        tuple((index[a], index[b]) for a, b in edges if a in index and b in index),
    )


def _ancestors(edges: Iterable[tuple[int, int]], cuts: Iterable[int]) -> set[int]:
    before: dict[int, list[int]] = {}
    for a, b in edges:
        before.setdefault(b, []).append(a)
    kept: set[int] = set()
    pending = list(cuts)
    while pending:
        layer = pending.pop()
        if layer not in kept:
            kept.add(layer)
            pending += before.get(layer, [])
    return kept
