"""The search space: closed sets of cut points, walked from the front or from the back.

A state is a closed set of cut points that are taken. Its height is F - G of the set. Taking a cut
point climbs to a peak by its compute and then falls by its upload; from the back, the other way
round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offload.scheduling.cut_point_reduction import ReducedInstance, bits
from offload.scheduling.search.minimum_cut import lowest_closed_set

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_ONE_THREAD = 200_000


class StateView(NamedTuple):
    """Heights and possible steps of N states, as arrays.

    Attributes:
        height: of each state (N).
        peak: the highest point of each step (N x m).
        end: the height after each step (N x m).
        open: which steps respect precedence (N x m).
        left: for each block (N x B), walking from the front: 1 if it is still to be computed;
            from the back: the number of its cut points that are not scheduled yet.
    """

    height: Floats
    peak: Floats
    end: Floats
    open: Flags
    left: npt.NDArray[np.int16]

    def at(self, rows: npt.NDArray[Any]) -> "StateView":
        """The view of some states, by index or flag."""
        return StateView(*[column[rows] for column in self])

    def put(self, rows: npt.NDArray[Any], fresh: "StateView") -> None:
        """Replace the view of some states, in place."""
        columns: tuple[npt.NDArray[Any], ...] = self
        for column, values in zip(columns, fresh, strict=True):
            column[rows] = values

    @classmethod
    def joined(cls, views: Sequence["StateView"]) -> "StateView":
        """One view of the states of several views."""
        return cls(*[np.concatenate(columns) for columns in zip(*views, strict=True)])


@dataclass(frozen=True)
class SearchSpace:
    """The cut points between two closed sets, walked in one direction.

    Attributes:
        cuts: bits of the cut points between the sets: the columns of every array.
        compute_s: seconds of each block (B).
        member: which cut points need which block (B x m).
        upload_s: seconds of each cut point (m).
        need: need[i, j] where i must be taken before j (m x m).
        base_s: height of the start state, where nothing is taken.
        forward: whether the walk is from the front; else from the back.
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

    @cached_property
    def _first_left(self) -> npt.NDArray[np.int16]:
        users = self.member.sum(axis=1).astype(np.int16)
        return np.ones_like(users) if self.forward else users

    @cached_property
    def _first_change(self) -> Floats:
        counted = self._weight if self.forward else self._weight[self._first_left == 1]
        total: Floats = counted.sum(axis=0)
        return total

    def start(self) -> StateView:
        """The view of the start state."""
        taken = np.zeros((1, len(self.cuts)), dtype=np.bool_)
        height = np.array([self.base_s], dtype=np.float64)
        left = self._first_left[None].copy()  # views are written to
        return self._view(height, self._first_change[None], left, taken)

    def step(self, view: StateView, extra: Flags, taken: Flags) -> StateView:
        """The view after taking more columns (N x m each); `taken` includes them.

        Sums only the blocks that change: each changes only twice on a whole walk.
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
        """The change of a step is the compute that it adds (front) or removes (back)."""
        away = ~taken
        step = away if self._need is None else away & (product(away, self._need) == 0)
        if self.forward:
            peak = height[:, None] + change
            return StateView(height, peak, peak - self.upload_s, step, left)
        peak = height[:, None] + self.upload_s
        return StateView(height, peak, peak - change, step, left)

    def _summed(self, blocks: Flags) -> Floats:
        """For each state, the seconds of the given blocks by the cut points that need them."""
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
        """The space that remains after a state; equal blocks are merged."""
        away = ~taken
        touched = self.member[:, taken].any(axis=1)
        rows = ~touched if self.forward else self.member[:, away].any(axis=1)
        member, compute_s = _merge_blocks(self.member[np.ix_(rows, away)], self.compute_s[rows])
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
        """The lowest state among the subsets of the given state, itself included."""
        everything = (1 << len(self.cuts)) - 1
        mask = sum([1 << column for column in np.nonzero(taken)[0].tolist()])
        blocks, upload_s = self._blocks, self.upload_s.tolist()
        if self.forward:
            state = lowest_closed_set(blocks, upload_s, 0, mask)
        else:
            floor = everything & ~mask
            state = everything & ~lowest_closed_set(blocks, upload_s, floor, everything)
        lowest = np.zeros_like(taken)
        lowest[list(bits(state))] = True
        return lowest if lowest.any() else taken  # only the start is as low: take the whole state

    def in_order(self, bits_taken: Sequence[int]) -> list[int]:
        """Bits in the order of computation, from the order of taking."""
        return list(bits_taken if self.forward else reversed(bits_taken))

    def first_peak_s(self) -> float:
        """The lowest peak of any first step: a lower bound on the highest peak of any order."""
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
            blocks = self._rows[column].nonzero()[0]
            if self.forward:
                fresh = blocks[left[blocks] > 0]
                left[fresh] = 0
                change -= self._weight[fresh].sum(axis=0)
            else:
                left[blocks] -= 1
                change += self._weight[blocks[left[blocks] == 1]].sum(axis=0)
        return order

    def peak_s(self, bits_taken: Sequence[int]) -> float:
        """The highest peak of an order of taking.

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
        ends_s = self.base_s + np.cumsum(climb_s - fall_s)
        return float((np.append(self.base_s, ends_s[:-1]) + climb_s).max())


def search_space(reduced: ReducedInstance, low: int, high: int, forward: bool) -> SearchSpace:
    """The cut points in high but not in low, walked from low upwards or from high downwards."""
    free = high & ~low
    cuts = tuple(bits(free))
    blocks = {mask: s for mask, s in reduced.blocks.items() if not mask & low and mask & free}
    member, compute_s = _merge_blocks(flags(list(blocks), cuts), np.array(list(blocks.values())))
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
    """Bit masks as a table of booleans: one row a mask, one column a cut point."""
    width = max([1, *(mask.bit_length() for mask in masks), *(bit + 1 for bit in cuts)])
    packed = b"".join([mask.to_bytes(-(-width // 8), "little") for mask in masks])
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(len(masks), -(-width // 8))
    columns: Flags = np.unpackbits(rows, axis=1, bitorder="little").astype(np.bool_)[:, list(cuts)]
    return columns


def _merge_blocks(member: Flags, compute_s: Floats) -> tuple[Flags, Floats]:
    """Merge equal rows and add their seconds."""
    if not member.size:
        return member, compute_s
    _, first, group = np.unique(row_keys(member), return_index=True, return_inverse=True)
    summed: Floats = np.bincount(group, weights=compute_s).astype(np.float64)
    return member[first], summed


def row_keys(rows: Flags) -> npt.NDArray[np.void]:
    """One value a row, equal for equal rows."""
    packed = np.ascontiguousarray(np.packbits(rows, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1]))).ravel()


def product(rows: npt.NDArray[Any], matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """rows @ matrix, in blocks too small for the BLAS to spread over threads.

    BLAS threads wait for each other by spinning, which is ten times slower on a busy machine.
    """
    inner, outer = matrix.shape
    if not (len(rows) and inner and outer):
        return np.zeros((len(rows), outer), dtype=matrix.dtype)
    span = min(outer, max(1, _ONE_THREAD // (16 * max(1, inner))))
    size = min(len(rows), max(16, _ONE_THREAD // max(1, inner * span)))
    count = -(-len(rows) // size)
    padded = np.zeros((count * size, inner), dtype=matrix.dtype)
    padded[: len(rows)] = rows
    blocks = padded.reshape(count, size, inner)
    spans = [blocks @ matrix[:, start : start + span] for start in range(0, outer, span)]
    joined = spans[0] if len(spans) == 1 else np.concatenate(spans, axis=2)
    return joined.reshape(count * size, outer)[: len(rows)]
