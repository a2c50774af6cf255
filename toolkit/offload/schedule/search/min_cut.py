"""The set of cut points where uploads are furthest ahead of compute, by one minimum cut.

D(X) = F(X) - G(X) is submodular, and its minimum over closed sets is a project selection problem
(Picard 1976): blocks are costs, cut points are profits. Closed sets come by themselves: a block
that reaches a cut point reaches all that need it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from offload.schedule.reduce import bits


def minimiser(blocks: Mapping[int, float], upload_s: Sequence[float], low: int, high: int) -> int:
    """The largest closed set X, low <= X <= high, of smallest F(X) - G(X); sets are bit masks."""
    free = high & ~low
    supply: dict[int, float] = {}
    for mask, seconds in blocks.items():
        if not mask & low and mask & free:
            supply[mask & free] = supply.get(mask & free, 0.0) + seconds
    return low | drain(supply, upload_s, free)[0]


def drain(
    blocks: Mapping[int, float], upload_s: Sequence[float], free: int
) -> tuple[int, dict[int, float]]:
    """The largest set X of free cut points of smallest F(X) - G(X), and a certificate.

    Blocks pour their compute into the free cut points they reach, as much as each can take
    (maximum flow by shortest augmenting paths); what cannot be drowned is the minimiser.
    O(blocks * (blocks + m)) operations on masks at worst, near O(blocks) when few overlap.

    The certificate is the seconds of each block that no cut point can take: to pay for some
    blocks whatever X is lifts the smallest F(X) - G(X) by what is left of them, at least.
    """
    room = [seconds if free >> bit & 1 else 0.0 for bit, seconds in enumerate(upload_s)]
    flow: list[dict[int, float]] = [{} for _ in room]
    fewest_first = sorted(blocks, key=int.bit_count)
    left = _poured(blocks, fewest_first, room, flow)
    scale = 1e-12 * max([1e-300, *blocks.values()])
    drowned = ~free
    for mask in fewest_first:
        while left[mask] > scale:
            reached, path = _path_to_room(mask, room, flow, drowned, scale)
            if not path:
                drowned |= reached
                break
            left[mask] -= _augment(path, left[mask], room, flow, scale)
    return ~drowned, left


_Flow = list[dict[int, float]]
_Path = list[tuple[int, int]]


def _poured(
    supply: Mapping[int, float], masks: Sequence[int], room: list[float], flow: _Flow
) -> dict[int, float]:
    """Greedy start: each block fills its cut points one after the other; what is left of each.

    Every step empties a block or fills a cut point: O(blocks + m) of them.
    """
    vacant = sum([1 << bit for bit, seconds in enumerate(room) if seconds > 0])
    left = {}
    for mask in masks:
        seconds = supply[mask]
        for bit in bits(mask & vacant):
            part = min(seconds, room[bit])
            room[bit] -= part
            flow[bit][mask] = part
            seconds -= part
            if room[bit] <= 0:
                vacant ^= 1 << bit
            if seconds <= 0:
                break
        left[mask] = max(seconds, 0.0)
    return left


def _path_to_room(
    start: int, room: list[float], flow: _Flow, drowned: int, scale: float
) -> tuple[int, _Path]:
    """Shortest residual path from a block to a cut point with room: pairs (block, cut point).

    Without one, the mask of all cut points that the block reaches: they have no room for ever.
    """
    came: dict[int, int] = {}
    giver: dict[int, int] = {start: -1}
    pending, reached = [start], drowned
    for block in pending:
        for bit in bits(block & ~reached):
            reached |= 1 << bit
            came[bit] = block
            if room[bit] > scale:
                return reached, _trace(bit, came, giver)
            for other, amount in flow[bit].items():
                if amount > scale and other not in giver:
                    giver[other] = bit
                    pending.append(other)
    return reached, []


def _trace(bit: int, came: Mapping[int, int], giver: Mapping[int, int]) -> _Path:
    path = []
    while bit >= 0:
        path.append((came[bit], bit))
        bit = giver[came[bit]]
    return path


def _augment(path: _Path, wanted: float, room: list[float], flow: _Flow, scale: float) -> float:
    """Send along a path, last pair first: each block moves flow from one cut point to the next."""
    last = path[0][1]
    amount = min(wanted, room[last])
    for (block, _), (_, before) in pairwise(path):
        amount = min(amount, flow[before][block])
    room[last] -= amount
    for place, (block, bit) in enumerate(path):
        flow[bit][block] = flow[bit].get(block, 0.0) + amount
        if place + 1 < len(path):
            giver = flow[path[place + 1][1]]
            giver[block] -= amount
            if giver[block] <= scale:
                del giver[block]
    return amount
