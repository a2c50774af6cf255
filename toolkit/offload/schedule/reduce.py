"""Reduce an instance to its cut points: exact, and small however large the graph.

The signature of a layer is the set of cut points that need it (itself included). Layers of one
signature are computed together in some optimal schedule, just before the first cut point that
needs them; so a schedule is an order of the cut points, and the compute time of a set X of them,
F(X) = sum of the blocks whose signature meets X, does not depend on their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offload.schedule.instance import Instance


@dataclass(frozen=True)
class Reduced:
    """The cut points of an instance; sets of them are bit masks.

    Attributes:
        cuts: job index of each cut point, ascending.
        upload_s: seconds of upload of each cut point.
        blocks: seconds of compute by signature; a layer no cut point needs is in none.
        need: for each cut point, the cut points that must be computed before it.
        signature: by job index.
    """

    cuts: tuple[int, ...]
    upload_s: tuple[float, ...]
    blocks: dict[int, float]
    need: tuple[int, ...]
    signature: tuple[int, ...]

    @cached_property
    def compute_s(self) -> float:
        """Seconds of compute of all layers that some cut point needs."""
        return sum(self.blocks.values())

    def set_compute_s(self, chosen: int) -> float:
        """F(X): seconds of compute before all cut points of a mask are computed; O(blocks)."""
        return sum([seconds for mask, seconds in self.blocks.items() if mask & chosen])


def reduce(instance: Instance) -> Reduced:
    """Blocks and precedence of the cut points; O(V + E) operations on masks of m bits."""
    cuts = instance.cuts
    signature = [0] * len(instance.jobs)
    for bit, job in enumerate(cuts):
        signature[job] = 1 << bit
    for before, after in instance.edges_backwards:
        signature[before] |= signature[after]
    blocks = dict.fromkeys(signature, 0.0)
    for mask, seconds in zip(signature, instance.compute_s, strict=True):
        blocks[mask] += seconds
    blocks.pop(0, None)
    need = [0] * len(cuts)
    for bit, job in enumerate(cuts):
        for after in bits(signature[job] & ~(1 << bit)):
            need[after] |= 1 << bit
    upload_s = tuple([instance.upload_s[job] for job in cuts])
    return Reduced(cuts, upload_s, blocks, tuple(need), tuple(signature))


def expand(instance: Instance, reduced: Reduced, cut_order: Sequence[int]) -> tuple[int, ...]:
    """The job order for an order of cut points (given by bit): each layer as late as may be.

    Layers go in topological order within the block of the first cut point that needs them; those
    that none needs go last. O(V log V).
    """
    rank = {0: len(cut_order)}
    for position, bit in reversed(list(enumerate(cut_order))):
        rank[1 << bit] = position
    by_bit = [rank[1 << bit] for bit in range(len(cut_order))]
    for mask in reduced.blocks:
        if mask not in rank:
            rank[mask] = min([by_bit[bit] for bit in bits(mask)])
    jobs = np.array(instance.topological)
    ranks = np.array([rank[mask] for mask in reduced.signature])[jobs]
    return tuple(jobs[np.argsort(ranks, kind="stable")].tolist())


def bits(mask: int) -> Iterator[int]:
    """Indexes of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
