"""The set of cut points with the smallest F - G, by a minimum cut (Picard 1976)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from offload.scheduling.cut_point_reduction import bits

_Flow = list[dict[int, float]]
"""By cut point, the seconds that each block sends to it."""


def lowest_closed_set(
    blocks: Mapping[int, float], upload_s: Sequence[float], low: int, high: int
) -> int:
    """The largest closed set X, low <= X <= high, of smallest F(X) - G(X); sets are bit masks."""
    free = high & ~low
    supply: dict[int, float] = {}
    for mask, seconds in blocks.items():
        if not mask & low and mask & free:
            supply[mask & free] = supply.get(mask & free, 0.0) + seconds
    return low | maximum_flow(supply, upload_s, free)[0]


def maximum_flow(
    blocks: Mapping[int, float], upload_s: Sequence[float], free: int
) -> tuple[int, dict[int, float]]:
    """The largest set X of free cut points of smallest F(X) - G(X), and a certificate.

    Each block sends its compute seconds to the free cut points that need it; a cut point takes at
    most its upload seconds. The cut points that cannot be saturated are the minimum. Maximum flow
    by shortest augmenting paths: O(blocks * (blocks + m)) operations on masks at worst, near
    O(blocks) when few blocks overlap.

    The planner's `FlowNetwork` is for any network; this one is for two layers of bit masks.

    The certificate is the seconds of each block that no cut point can take. If some blocks must be
    paid for whatever X is, the smallest F(X) - G(X) rises by at least their seconds in it.
    """
    room = [seconds if free >> bit & 1 else 0.0 for bit, seconds in enumerate(upload_s)]
    flow: _Flow = [{} for _ in room]
    fewest_first = sorted(blocks, key=int.bit_count)
    # Greedy start: each block fills its cut points one after another. Each step empties a block
    # or saturates a cut point: O(blocks + m) steps.
    vacant = sum([1 << bit for bit, seconds in enumerate(room) if seconds > 0])
    left: dict[int, float] = {}
    for mask in fewest_first:
        seconds = blocks[mask]
        for bit in bits(mask & vacant):
            amount = min(seconds, room[bit])
            room[bit] -= amount
            flow[bit][mask] = amount
            seconds -= amount
            if room[bit] <= 0:
                vacant ^= 1 << bit
            if seconds <= 0:
                break
        left[mask] = max(seconds, 0.0)
    epsilon = 1e-12 * max([1e-300, *blocks.values()])
    saturated = ~free
    for mask in fewest_first:
        while left[mask] > epsilon:
            reached, path = _augmenting_path(mask, room, flow, saturated, epsilon)
            if not path:
                saturated |= reached
                break
            left[mask] -= _augment(path, left[mask], room, flow, epsilon)
    return ~saturated, left


def _augmenting_path(
    start: int, room: list[float], flow: _Flow, saturated: int, epsilon: float
) -> tuple[int, list[tuple[int, int]]]:
    """Shortest residual path from a block to a cut point with room, as (block, cut point) pairs.

    The path starts at the cut point with room. Without a path, the mask of all cut points that
    the block reaches: they stay saturated.
    """
    block_before: dict[int, int] = {}
    bit_before: dict[int, int] = {start: -1}
    pending, reached = [start], saturated
    for block in pending:
        for bit in bits(block & ~reached):
            reached |= 1 << bit
            block_before[bit] = block
            if room[bit] > epsilon:
                path = []
                while bit >= 0:
                    path.append((block_before[bit], bit))
                    bit = bit_before[block_before[bit]]
                return reached, path
            for other, amount in flow[bit].items():
                if amount > epsilon and other not in bit_before:
                    bit_before[other] = bit
                    pending.append(other)
    return reached, []


def _augment(
    path: list[tuple[int, int]], limit: float, room: list[float], flow: _Flow, epsilon: float
) -> float:
    """Send flow along a path: each block moves flow from one cut point to the next."""
    last = path[0][1]
    amount = min(limit, room[last])
    for (block, _), (_, before) in pairwise(path):
        amount = min(amount, flow[before][block])
    room[last] -= amount
    for position, (block, bit) in enumerate(path):
        flow[bit][block] = flow[bit].get(block, 0.0) + amount
        if position + 1 < len(path):
            source = flow[path[position + 1][1]]
            source[block] -= amount
            if source[block] <= epsilon:
                del source[block]
    return amount
