"""Batching: run rows of several sessions through one segment in one call."""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from offload.bundle.bundle import ModelValue
from offload.bundle.compare import difference
from offload.errors import DeadlineError, InputError

from offload_runtimes.engine import Array, Engine, dtype_of

Feeds = Mapping[str, Array]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

TOLERANCE = 1e-3  # of the largest value
HALF_TOLERANCE = 2e-2
_TRIAL_ROWS = (1, 2, 1)
_OPEN_SIZES = (16, 64, 224, 8, 3, 1)
_SEED = 5


def shapes_of(feeds: Feeds) -> Shapes:
    """All sizes but those of axis 0; inputs that run together must share them."""
    return tuple(sorted((name, array.shape[1:]) for name, array in feeds.items()))


def join_rows(several: Sequence[Feeds], padding: int = 0) -> dict[str, Array]:
    """Concatenate inputs along axis 0, and repeat the last row `padding` times."""
    joined = {}
    for name, last in several[-1].items():
        extra = [np.repeat(last[-1:], padding, axis=0)] if padding else []
        joined[name] = np.concatenate([*(feeds[name] for feeds in several), *extra])
    return joined


def split_rows(outputs: Sequence[Array], rows: Sequence[int]) -> list[list[Array]]:
    """Split all outputs along axis 0, as views: a list of outputs for each number of rows.

    Raises:
        InputError: an output does not have as many rows as the inputs.
    """
    ends = np.cumsum(rows).tolist()
    for value in outputs:
        if not isinstance(value, np.ndarray) or not value.ndim or value.shape[0] != ends[-1]:
            got = value.shape if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise InputError(f"{ends[-1]} rows went in, but an output of {got} came out")
    starts = [0, *ends[:-1]]
    return [
        [array[start:end] for array in outputs] for start, end in zip(starts, ends, strict=True)
    ]


def disagreement(engine: Engine, limit_s: float) -> str:
    """Why rows cannot run together, found by a trial on random rows; empty: they can.

    Each run may take `limit_s`. Open sizes of other axes get the first of a few values that the
    engine accepts.
    """
    for size in _OPEN_SIZES:
        try:
            rng = np.random.default_rng(_SEED)
            several = [_random_rows(engine.inputs, rows, size, rng) for rows in _TRIAL_ROWS]
            alone = [engine.run(None, feeds, limit_s) for feeds in several]
        except DeadlineError:
            return f"a trial took more than {limit_s:g} s"
        except InputError:
            continue
        try:
            together = split_rows(engine.run(None, join_rows(several), limit_s), _TRIAL_ROWS)
        except (InputError, DeadlineError) as error:
            return f"rows cannot run together ({error})"
        pairs = zip(zip(*alone, strict=True), zip(*together, strict=True), strict=True)
        for value, (expected, got) in zip(engine.outputs, pairs, strict=True):
            allowed = HALF_TOLERANCE if expected[0].dtype.itemsize < 4 else TOLERANCE
            worst = max(map(difference, expected, got))
            if worst > allowed:
                return f"{value.name!r} of rows together is off by {worst:.1e} of its largest value"
        return ""
    return "the model accepts none of the random inputs of the trial"


def _random_rows(
    inputs: Sequence[ModelValue], rows: int, open_size: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Random inputs of a number of rows; InputError for a type without a generator."""
    feeds: dict[str, Array] = {}
    for value in inputs:
        sizes = (value.shape or ())[1:]
        shape = (rows, *(size if isinstance(size, int) else open_size for size in sizes))
        dtype: np.dtype[Any] = dtype_of(value.type)
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            highest = 255 if value.type == "tensor(uint8)" else 1
            feeds[value.name] = rng.integers(0, highest + 1, shape).astype(dtype)
    return feeds


S = TypeVar("S", bound=Hashable)
T = TypeVar("T")


class BatchQueue(Generic[S, T]):
    """Items that wait to run in batches, by session and key; only equal keys run together.

    Each item has its own turn among the workers. The session whose turn it is also takes items of
    other sessions: one of each session before a second one of any. The turn of an item that was
    taken this way is spent without work, so that batching gives no session more turns.
    """

    def __init__(self, max_rows: int, wait_s: float = 0.0) -> None:
        """Make an empty queue.

        Args:
            max_rows: the most rows of a batch.
            wait_s: how long `take` waits for items of other sessions.
        """
        self._max_rows = max_rows
        self._wait_s = wait_s
        self._waiting: dict[Hashable, OrderedDict[S, deque[tuple[T, int]]]] = {}
        self._spent: Counter[tuple[Hashable, S]] = Counter()
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def spent(self) -> int:
        """Turns still to come of items that other sessions took."""
        with self._changed:
            return self._spent.total()

    def add(self, key: Hashable, session: S, item: T, rows: int) -> None:
        """Queue an item, which has this number of rows."""
        with self._changed:
            queues = self._waiting.setdefault(key, OrderedDict())
            queues.setdefault(session, deque()).append((item, rows))
            self._changed.notify_all()

    def take(self, key: Hashable, session: S, sessions: Callable[[], Iterable[S]]) -> list[T]:
        """Take a session's oldest item of a key, and items of other sessions that fit.

        Waits up to `wait_s` until each of `sessions()` has an item in the batch. Returns
        nothing when another session took the item before, or the session was dropped.
        """
        give_up_s = time.monotonic() + self._wait_s
        with self._changed:
            spent = self._spent.pop((key, session), 0)
            if spent > 1:
                self._spent[key, session] = spent - 1
            if spent or session not in self._waiting.get(key, ()):
                return []
            item, rows = self._pop(key, session)
            taken, room = [(session, item)], self._max_rows - rows
            while True:
                room = self._fill(key, taken, room)
                left_s = give_up_s - time.monotonic()
                full = room <= 0 or left_s <= 0 or self._stopped
                if full or {session for session, _ in taken}.issuperset(sessions()):
                    return [item for _, item in taken]
                self._changed.wait(left_s)

    def drop(self, session: S) -> None:
        """Forget the items of a session and its turns."""
        with self._changed:
            for turn in [turn for turn in self._spent if turn[1] == session]:
                del self._spent[turn]
            for key in [key for key, queues in self._waiting.items() if session in queues]:
                self._remove(key, session)
            self._changed.notify_all()

    def stop(self) -> None:
        """End all waiting in `take`, now and later."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _fill(self, key: Hashable, taken: list[tuple[S, T]], room: int) -> int:
        """Take one item of each session in turn while one fits; returns the room left."""
        progress = True
        while progress and room > 0:
            progress = False
            for session in list(self._waiting.get(key, ())):
                _, rows = self._waiting[key][session][0]
                if rows <= room:
                    item, _ = self._pop(key, session)
                    self._spent[key, session] += 1
                    taken.append((session, item))
                    room, progress = room - rows, True
        return room

    def _pop(self, key: Hashable, session: S) -> tuple[T, int]:
        """The oldest item of a session, which moves behind the other sessions."""
        queues = self._waiting[key]
        entry = queues[session].popleft()
        if queues[session]:
            queues.move_to_end(session)
        else:
            self._remove(key, session)
        return entry

    def _remove(self, key: Hashable, session: S) -> None:
        del self._waiting[key][session]
        if not self._waiting[key]:
            del self._waiting[key]
