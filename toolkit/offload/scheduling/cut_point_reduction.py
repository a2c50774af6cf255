"""Reduce an instance to its cut points: exact, and independent of the size of the graph.

The signature of a layer is the set of cut points that need it (itself included). The layers of one
signature form a block: some optimal schedule computes them together, just before the first cut
point that needs them. So a schedule is an order of the cut points, and the compute time of a set
X of them, F(X) = sum of the blocks whose signature meets X, does not depend on their order.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from offload.scheduling.instance import Instance


@dataclass(frozen=True)
class ReducedInstance:
    """The cut points of an instance; sets of them are bit masks.

    Attributes:
        cuts: job index of each cut point, ascending.
        upload_s: seconds of upload of each cut point.
        blocks: seconds of compute by signature; layers that no cut point needs are left out.
        need: for each cut point, the cut points that must be computed before it.
        signature: the signature of each cut point.
        members: the jobs of each signature, ascending; signature 0: no cut point needs the job.
    """

    cuts: tuple[int, ...]
    upload_s: tuple[float, ...]
    blocks: dict[int, float]
    need: tuple[int, ...]
    signature: tuple[int, ...]
    members: Mapping[int, Sequence[int]]

    @cached_property
    def compute_s(self) -> float:
        """Seconds of compute of all layers that some cut point needs."""
        return sum(self.blocks.values())

    def set_compute_s(self, chosen: int) -> float:
        """F(X): seconds to compute all cut points of a mask and their ancestors; O(blocks)."""
        return sum([seconds for mask, seconds in self.blocks.items() if mask & chosen])


def reduce_to_cut_points(instance: Instance) -> ReducedInstance:
    """Compute the blocks and the precedence of the m cut points; O(V + E) operations on masks."""
    cuts = instance.cuts
    signature = [0] * len(instance.jobs)
    for bit, job in enumerate(cuts):
        signature[job] = 1 << bit
    for before, after in instance.edges_backwards:
        signature[before] |= signature[after]
    members: dict[int, list[int]] = {mask: [] for mask in dict.fromkeys(signature)}
    for job, mask in enumerate(signature):
        members[mask].append(job)
    compute_s = instance.compute_s
    blocks = {mask: sum([compute_s[job] for job in jobs]) for mask, jobs in members.items() if mask}
    own = tuple([signature[job] for job in cuts])
    need = [0] * len(cuts)
    for bit, mask in enumerate(own):
        for after in bits(mask & ~(1 << bit)):
            need[after] |= 1 << bit
    upload_s = tuple([instance.upload_s[job] for job in cuts])
    return ReducedInstance(cuts, upload_s, blocks, tuple(need), own, members)


def expand(
    instance: Instance, reduced: ReducedInstance, cut_order: Sequence[int]
) -> tuple[int, ...]:
    """The job order for an order of cut points (given by bit): each layer as late as possible.

    The layers before a cut point are in topological order; layers that no cut point needs come
    last. O(V log V).
    """
    rank = {bit: position for position, bit in enumerate(cut_order)}
    ranked: list[list[int]] = [[] for _ in range(len(cut_order) + 1)]
    for mask, jobs in reduced.members.items():
        ranked[min([rank[bit] for bit in bits(mask)], default=-1)] += jobs
    return tuple(itertools.chain.from_iterable(map(instance.in_order, ranked)))


def bits(mask: int) -> Iterator[int]:
    """Indexes of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
