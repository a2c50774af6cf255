"""The search space: closed sets, walked from the front or from the back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offload.scheduling.cut_point_reduction import ReducedInstance, bits


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


Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_ONE_THREAD = 200_000


class StateView(NamedTuple):
    """What N states see.

    Attributes:
        height: of each state (N).
        peak: the highest point of each step (N x m).
        end: the height after each step (N x m).
        open: which steps may be taken (N x m).
        left: of each block (N x B): from the front whether it is still to be computed, from the
            back how many of its cut points are not taken.
    """

    height: Floats
    peak: Floats
    end: Floats
    open: Flags
    left: npt.NDArray[np.int16]

    def at(self, rows: npt.NDArray[Any]) -> "StateView":
        """What some of the states see, by index or flag."""
        return StateView(*[column[rows] for column in self])

    def put(self, rows: npt.NDArray[Any], fresh: "StateView") -> None:
        """Replace what some of the states see."""
        self.height[rows], self.peak[rows], self.end[rows] = fresh.height, fresh.peak, fresh.end
        self.open[rows], self.left[rows] = fresh.open, fresh.left

    @classmethod
    def joined(cls, views: Sequence["StateView"]) -> "StateView":
        """What all the states of several views see."""
        return cls(*[np.concatenate(columns) for columns in zip(*views, strict=True)])


@dataclass(frozen=True)
class SearchSpace:
    """One direction over the cut points between two closed sets.

    Attributes:
        cuts: bits of the cut points between them: the columns of every array.
        compute_s: seconds of each block (B).
        member: which cut points need which block (B x m).
        upload_s: seconds of each cut point (m).
        need: need[i, j] where i must be taken before j (m x m).
        base_s: height of the state where nothing is taken.
        forward: from the front, or from the back.
    """

    cuts: tuple[int, ...]
    compute_s: Floats
    member: Flags
    upload_s: Floats
    need: Flags
    base_s: float
    forward: bool

    @cached_property
    def _weight(self) -> Floats:
        return self.member * self.compute_s[:, None]

    @cached_property
    def _need(self) -> npt.NDArray[np.float32] | None:
        return self.need.astype(np.float32) if self.need.any() else None

    @cached_property
    def _blocks(self) -> Mapping[int, float]:
        """Seconds by the mask of columns, for the minimum cut."""
        packed = np.packbits(self.member, axis=1, bitorder="little")
        masks = [int.from_bytes(row.tobytes(), "little") for row in packed]
        return dict(zip(masks, self.compute_s.tolist(), strict=True))

    @cached_property
    def _rows(self) -> npt.NDArray[np.int16]:
        return np.ascontiguousarray(self.member.T, dtype=np.int16)

    def start(self) -> StateView:
        """What the state sees where nothing is taken."""
        taken = np.zeros((1, len(self.cuts)), dtype=np.bool_)
        height = np.array([self.base_s], dtype=np.float64)
        left = self._first_left[None].copy()  # views are written to
        return self._view(height, self._first_change[None], left, taken)

    @cached_property
    def _first_left(self) -> npt.NDArray[np.int16]:
        users = self.member.sum(axis=1).astype(np.int16)
        return np.ones_like(users) if self.forward else users

    @cached_property
    def _first_change(self) -> Floats:
        counted = self._weight if self.forward else self._weight[self._first_left == 1]
        total: Floats = counted.sum(axis=0)
        return total

    def step(self, view: StateView, extra: Flags, taken: Flags) -> StateView:
        """What states see after taking more columns (N x m each); `taken` includes them.

        Only blocks that change are summed: each changes but twice on a whole walk.
        """
        states, columns = np.nonzero(extra)
        starts = np.searchsorted(states, np.arange(len(extra)))
        hit = np.add.reduceat(self._rows[columns], starts, axis=0)
        if self.forward:
            fresh = (view.left > 0) & (hit > 0)
            height = view.height + fresh @ self.compute_s - extra @ self.upload_s
            change = (view.peak - view.height[:, None]) - self._summed(fresh)
            return self._view(height, change, view.left & ~fresh, taken)
        left = view.left - hit
        gone = (left == 0) & (view.left > 0)
        height = view.height - gone @ self.compute_s + extra @ self.upload_s
        change = (view.peak - view.end) + self._summed((left == 1) & (view.left > 1))
        return self._view(height, change, left, taken)

    def _view(
        self, height: Floats, change: Floats, left: npt.NDArray[np.int16], taken: Flags
    ) -> StateView:
        """From the front a step's change is the compute it adds, from the back what it frees."""
        away = ~taken
        step = away if self._need is None else away & (product(away, self._need) == 0)
        if self.forward:
            peak = height[:, None] + change
            return StateView(height, peak, peak - self.upload_s, step, left)
        peak = height[:, None] + self.upload_s
        return StateView(height, peak, peak - change, step, left)

    def _summed(self, blocks: Flags) -> Floats:
        """For each state, the seconds of some blocks under each of their cut points."""
        states, chosen = np.nonzero(blocks)
        if len(states) * 8 > blocks.size:
            dense: Floats = product(blocks, self._weight)
            return dense
        total = np.zeros((len(blocks), len(self.cuts)))
        if len(states):
            firsts = np.nonzero(np.diff(states, prepend=-1))[0]
            total[states[firsts]] = np.add.reduceat(self._weight[chosen], firsts, axis=0)
        return total

    def after(self, taken: Flags, height_s: float) -> "SearchSpace":
        """What is left to walk from a state; equal blocks are merged."""
        away = ~taken
        touched = self.member[:, taken].any(axis=1)
        rows = ~touched if self.forward else self.member[:, away].any(axis=1)
        member, compute_s = _merged(self.member[np.ix_(rows, away)], self.compute_s[rows])
        return SearchSpace(
            cuts=tuple([self.cuts[column] for column in np.nonzero(away)[0]]),
            compute_s=compute_s,
            member=member,
            upload_s=self.upload_s[away],
            need=self.need[np.ix_(away, away)],
            base_s=height_s,
            forward=self.forward,
        )

    def lowest(self, taken: Flags) -> Flags:
        """The lowest state on the way to the one where these columns are taken, itself included."""
        columns = np.nonzero(taken)[0].tolist()
        everything = (1 << len(self.cuts)) - 1
        mask = sum([1 << column for column in columns])
        upload_s = self.upload_s.tolist()
        if self.forward:
            found = minimiser(self._blocks, upload_s, 0, mask)
        else:
            found = everything & ~minimiser(self._blocks, upload_s, everything & ~mask, everything)
        lowest = np.zeros_like(taken)
        lowest[list(bits(found))] = True
        return lowest if lowest.any() else taken  # as low as the start: so is the state itself

    def in_order(self, bits_taken: Sequence[int]) -> list[int]:
        """Bits in the order of computation, from the order of taking."""
        return list(bits_taken if self.forward else reversed(bits_taken))

    def first_peak_s(self) -> float:
        """The lowest peak of any first step: a bound on the highest of all."""
        view = self.start()
        return float(view.peak[view.open].min())

    def greedy(self) -> list[int]:
        """Bits in the order of taking: always the lowest peak, then the lowest end."""
        change, left = self._first_change.copy(), self._first_left.copy()
        away, waits = np.ones(len(self.cuts), dtype=np.bool_), self.need.sum(axis=0)
        order: list[int] = []
        while len(order) < len(self.cuts):
            climb = change if self.forward else self.upload_s
            fall = self.upload_s if self.forward else change
            peak = np.where(away & (waits == 0), np.maximum(climb, 0.0), np.inf)
            lowest = np.nonzero(peak == peak.min())[0]
            column = int(lowest[(climb - fall)[lowest].argmin()])
            order.append(self.cuts[column])
            away[column] = False
            waits -= self.need[column]
            self._take(column, left, change)
        return order

    def _take(self, column: int, left: npt.NDArray[np.int16], change: Floats) -> None:
        """What one more column changes for the steps still open, in place."""
        users = self._users[column]
        if self.forward:
            fresh = users[left[users] > 0]
            left[fresh] = 0
            change -= self._weight[fresh].sum(axis=0)
        else:
            left[users] -= 1
            change += self._weight[users[left[users] == 1]].sum(axis=0)

    @cached_property
    def _users(self) -> list[npt.NDArray[np.intp]]:
        """By column, the blocks that need it."""
        return [rows.nonzero()[0] for rows in self._rows]

    def heights_and_peaks_s(self, bits_taken: Sequence[int]) -> tuple[Floats, Floats]:
        """The height before each step of an order of taking, and the step's peak.

        From the front a block is computed at the first of its cut points, from the back it is
        left at the last.
        """
        column = {bit: place for place, bit in enumerate(self.cuts)}
        order = np.array([column[bit] for bit in bits_taken])
        member = self.member[:, order]
        step = member.argmax(axis=1) if self.forward else -1 - member[:, ::-1].argmax(axis=1)
        change_s = np.bincount(step % len(order), weights=self.compute_s, minlength=len(order))
        upload_s = self.upload_s[order]
        climb_s, fall_s = (change_s, upload_s) if self.forward else (upload_s, change_s)
        ends = self.base_s + np.cumsum(climb_s - fall_s)
        heights = np.append(self.base_s, ends[:-1])
        return heights, heights + climb_s

    def peak_s(self, bits_taken: Sequence[int]) -> float:
        """The highest peak of an order of taking."""
        return float(self.heights_and_peaks_s(bits_taken)[1].max())


def search_space(reduced: ReducedInstance, low: int, high: int, forward: bool) -> SearchSpace:
    """The cut points in high but not in low, walked from low upwards or from high downwards."""
    free = high & ~low
    cuts = tuple(bits(free))
    kept = {mask: s for mask, s in reduced.blocks.items() if not mask & low and mask & free}
    member, compute_s = _merged(flags(list(kept), cuts), np.array(list(kept.values())))
    need = flags(reduced.need, cuts)[list(cuts)]
    start = low if forward else high
    sent_s = sum([reduced.upload_s[bit] for bit in bits(start)])
    return SearchSpace(
        cuts=cuts,
        compute_s=compute_s,
        member=member,
        upload_s=np.array([reduced.upload_s[bit] for bit in cuts]),
        need=need.T if forward else need,
        base_s=reduced.set_compute_s(start) - sent_s,
        forward=forward,
    )


def flags(masks: Sequence[int], cuts: Sequence[int]) -> Flags:
    """A row a mask, a column a cut point."""
    width = max([1, *(mask.bit_length() for mask in masks), *(bit + 1 for bit in cuts)])
    packed = b"".join([mask.to_bytes(-(-width // 8), "little") for mask in masks])
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(len(masks), -(-width // 8))
    found = np.unpackbits(rows, axis=1, bitorder="little").astype(np.bool_)
    chosen: Flags = found[:, list(cuts)]
    return chosen


def _merged(member: Flags, compute_s: Floats) -> tuple[Flags, Floats]:
    """Equal rows as one, their seconds added."""
    if not member.size:
        return member, compute_s
    keys = row_keys(member)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    summed: Floats = np.bincount(group, weights=compute_s).astype(np.float64)
    return member[first], summed


def row_keys(rows: Flags) -> npt.NDArray[np.void]:
    """One value a row, equal where the rows are."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).ravel()


def product(rows: npt.NDArray[Any], matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """rows @ matrix, in pieces too small for the BLAS to spread over threads.

    Its threads wait for each other by spinning, which on a busy machine is ten times slower.
    """
    inner, outer = matrix.shape
    if not (len(rows) and inner and outer):
        return np.zeros((len(rows), outer), dtype=matrix.dtype)
    span = min(outer, max(1, _ONE_THREAD // (16 * max(1, inner))))
    piece = min(len(rows), max(16, _ONE_THREAD // max(1, inner * span)))
    count = -(-len(rows) // piece)
    padded = np.zeros((count * piece, inner), dtype=matrix.dtype)
    padded[: len(rows)] = rows
    pieces = padded.reshape(count, piece, inner)
    spans = [pieces @ matrix[:, start : start + span] for start in range(0, outer, span)]
    joined = spans[0] if len(spans) == 1 else np.concatenate(spans, axis=2)
    return joined.reshape(count * piece, outer)[: len(rows)]
