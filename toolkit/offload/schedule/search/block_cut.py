"""A lower bound on the highest peak from one block at a time.

When the first cut point of a block T is computed, every block that contains T is, and nothing of
T is uploaded yet. So some peak is at least min F(X + blocks containing T) - G(X) over the sets X
of cut points outside T: one minimum cut. The bound is the highest over all blocks.
"""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from offload.schedule.reduce import Reduced, bits
from offload.schedule.search.min_cut import minimiser
from offload.schedule.search.side import Floats, Side, product, side

_PREFIXES = 24
_MOST_BLOCKS = 600


def block_cut_bound_s(reduced: Reduced, order: Sequence[int], deadline_s: float) -> float:
    """The highest bound of any of the heaviest blocks, or of those there was time for.

    Blocks are tried by an estimate from above: the same expression at a few prefixes of a good
    order, which ends the search as soon as no estimate exceeds the bound found.
    """
    everything = (1 << len(reduced.cuts)) - 1
    walk = side(reduced, 0, everything, forward=True)
    tried = np.argsort(-walk.compute_s, kind="stable")[:_MOST_BLOCKS]
    estimates_s = _estimates_s(walk, tried, order)
    bound_s = 0.0
    for place in np.argsort(-estimates_s, kind="stable"):
        if estimates_s[place] <= bound_s or time.monotonic() > deadline_s:
            break
        bound_s = max(bound_s, _bound_s(reduced, _mask(walk, int(tried[place]))))
    return bound_s


def _mask(walk: Side, row: int) -> int:
    return sum([1 << walk.cuts[column] for column in np.nonzero(walk.member[row])[0]])


def _bound_s(reduced: Reduced, block: int) -> float:
    """One block's bound, with its containing blocks paid for."""
    others = {mask: s for mask, s in reduced.blocks.items() if block & ~mask}
    outside = ((1 << len(reduced.cuts)) - 1) & ~block
    chosen = minimiser(others, reduced.upload_s, 0, outside)
    containing_s = sum([s for mask, s in reduced.blocks.items() if not block & ~mask])
    touched_s = sum([s for mask, s in others.items() if mask & chosen])
    return containing_s + touched_s - sum([reduced.upload_s[bit] for bit in bits(chosen)])


def _estimates_s(walk: Side, tried: npt.NDArray[np.intp], order: Sequence[int]) -> Floats:
    """For each block tried, the least of its expression over prefixes of an order without it."""
    place = np.empty(len(order), dtype=np.intp)
    place[list(order)] = np.arange(len(order))
    first = np.where(walk.member, place, len(order)).min(axis=1)
    lengths = np.unique(np.linspace(0, len(order) - 1, _PREFIXES).astype(np.intp))
    untouched = first[None, :] >= lengths[:, None]
    height = walk.heights_and_peaks_s(order)[0][lengths]
    users = np.ascontiguousarray(walk.member[tried].T, dtype=np.float32)
    contains = product(walk.member, users) == walk.member[tried].sum(axis=1)
    above = product(untouched * walk.compute_s, contains.astype(np.float64))
    estimates: Floats = np.where(untouched[:, tried], height[:, None] + above, np.inf).min(axis=0)
    return estimates
