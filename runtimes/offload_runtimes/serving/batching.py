"""Rows of several sessions through one segment at once: whether, how many, and who waits."""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from offload.bundle.bundle import ModelValue
from offload.bundle.compare import difference
from offload.errors import DeadlineError, InputError

from offload_runtimes.engine import Array, Call, Engine, dtype_of

Feeds = Mapping[str, Array]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

TOLERANCE = 1e-3  # of the largest value
HALF_TOLERANCE = 2e-2
_TRIAL_ROWS = (1, 2, 1)
_OPEN_SIZES = (16, 64, 224, 8, 3, 1)
_SEED = 5


@dataclass(frozen=True, slots=True)
class Batching:
    """How many rows run at once.

    Attributes:
        rows: at most so many; 1: every frame runs alone.
        wait_s: how long a worker waits for rows of other sessions; 0: it takes what waits already.
    """

    rows: int = 1
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"a batch must have room for 1 row at least, not {self.rows}")
        if not 0 <= self.wait_s <= 60:
            raise InputError(f"a worker may wait 0 to 60 s for a batch, not {self.wait_s:g}")


def rows_of(feeds: Feeds) -> int | None:
    """The size of axis 0 that all inputs share; None where they do not, it is 0, or one has none.

    Sequences and maps have none.
    """
    sizes = {
        value.shape[0] if isinstance(value, np.ndarray) and value.ndim else 0
        for value in feeds.values()
    }
    return sizes.pop() or None if len(sizes) == 1 else None


def shapes_of(feeds: Feeds) -> Shapes:
    """All sizes but those of axis 0: what inputs that run together must share."""
    return tuple(sorted((name, array.shape[1:]) for name, array in feeds.items()))


def joined(several: Sequence[Feeds]) -> dict[str, Array]:
    """Inputs one after the other along axis 0."""
    return {name: np.concatenate([feeds[name] for feeds in several]) for name in several[0]}


def parted(outputs: Sequence[Array], rows: Sequence[int]) -> list[list[Array]]:
    """Each one's own rows of all outputs, as views.

    Raises:
        InputError: an output has not as many rows as went in.
    """
    ends = np.cumsum(rows).tolist()
    for value in outputs:
        if not isinstance(value, np.ndarray) or not value.ndim or value.shape[0] != ends[-1]:
            came = value.shape if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise InputError(f"{ends[-1]} rows went in, but an output of {came} came out")
    starts = [0, *ends[:-1]]
    return [
        [array[start:end] for array in outputs] for start, end in zip(starts, ends, strict=True)
    ]


def disagreement(engine: Engine, limit_s: float) -> str:
    """Why rows do not run together as they do alone, tried on random ones; empty: they do.

    Each run may take so many seconds. Open sizes of other axes get the first of a few values
    that the engine takes.
    """
    for size in _OPEN_SIZES:
        try:
            drawn = np.random.default_rng(_SEED)
            several = [_draw(engine.inputs, rows, size, drawn) for rows in _TRIAL_ROWS]
            alone = [engine.run(None, feeds, limit_s) for feeds in several]
        except DeadlineError:
            return f"a trial took more than {limit_s:g} s"
        except InputError:
            continue
        return _compared(engine, several, alone, limit_s)
    return "it takes no random input to try it with"


def _compared(
    engine: Engine, several: Sequence[Feeds], alone: Sequence[Sequence[Array]], limit_s: float
) -> str:
    try:
        together = parted(engine.run(None, joined(several), limit_s), _TRIAL_ROWS)
    except (InputError, DeadlineError) as error:
        return f"rows cannot run together ({error})"
    pairs = zip(zip(*alone, strict=True), zip(*together, strict=True), strict=True)
    for value, (wanted, got) in zip(engine.outputs, pairs, strict=True):
        allowed = HALF_TOLERANCE if wanted[0].dtype.itemsize < 4 else TOLERANCE
        apart = max(map(difference, wanted, got))
        if apart > allowed:
            return f"{value.name!r} of rows together is off by {apart:.1e} of its largest value"
    return ""


def _draw(
    inputs: Sequence[ModelValue], rows: int, size: int, drawn: np.random.Generator
) -> dict[str, Array]:
    """So many random rows; InputError for a type that is not drawn."""
    return {value.name: _array(value, _sizes(value, rows, size), drawn) for value in inputs}


def _sizes(value: ModelValue, rows: int, size: int) -> tuple[int, ...]:
    inner = (value.shape or ())[1:]
    return (rows, *(each if isinstance(each, int) else size for each in inner))


def _array(value: ModelValue, shape: tuple[int, ...], drawn: np.random.Generator) -> Array:
    dtype: np.dtype[Any] = dtype_of(value.type)
    if dtype.kind == "f":
        return drawn.standard_normal(shape).astype(dtype)
    highest = 255 if value.type == "tensor(uint8)" else 1
    return drawn.integers(0, highest + 1, shape).astype(dtype)


S = TypeVar("S", bound=Hashable)
T = TypeVar("T")


class BatchQueue(Generic[S, T]):
    """What sessions wait for, by kind; only work of one kind is done together.

    Each item has its own turn among the workers. Whoever has the turn takes others' items along,
    one of each session before a second of any; a turn whose item was taken along is spent at once,
    so that nobody gets more turns than without.
    """

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._waiting: dict[Hashable, OrderedDict[S, deque[tuple[T, int]]]] = {}
        self._spent: Counter[tuple[Hashable, S]] = Counter()
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def spent(self) -> int:
        """Turns still to come whose items were taken along."""
        with self._changed:
            return self._spent.total()

    def add(self, kind: Hashable, session: S, item: T, rows: int) -> None:
        """Let an item of so many rows wait for a turn."""
        with self._changed:
            queues = self._waiting.setdefault(kind, OrderedDict())
            queues.setdefault(session, deque()).append((item, rows))
            self._changed.notify_all()

    def take(self, kind: Hashable, session: S, crowd: Callable[[], Iterable[S]]) -> list[T]:
        """A session's oldest item of a kind, then others' as far as there is room.

        Waits for more, if that is wanted, until every session of `crowd()` has one in it.
        Empty when the item was taken along before, or its session is gone.
        """
        give_up_s = time.monotonic() + self._batching.wait_s
        with self._changed:
            if self._spend(kind, session) or session not in self._waiting.get(kind, ()):
                return []
            item, rows = self._pop(kind, session)
            taken, room = [(session, item)], self._batching.rows - rows
            while True:
                room = self._fill(kind, taken, room)
                left_s = give_up_s - time.monotonic()
                full = room <= 0 or left_s <= 0 or self._stopped
                if full or {session for session, _ in taken}.issuperset(crowd()):
                    return [item for _, item in taken]
                self._changed.wait(left_s)

    def drop(self, session: S) -> None:
        """Forget the items of a session and its turns."""
        with self._changed:
            for place in [place for place in self._spent if place[1] == session]:
                del self._spent[place]
            for kind in [kind for kind, queues in self._waiting.items() if session in queues]:
                self._remove(kind, session)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody wait for more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _fill(self, kind: Hashable, taken: list[tuple[S, T]], room: int) -> int:
        """Take one item of each session in turn while one fits; the room that is left."""
        more = True
        while more and room > 0:
            more = False
            for session in list(self._waiting.get(kind, ())):
                _, rows = self._waiting[kind][session][0]
                if rows <= room:
                    item, _ = self._pop(kind, session)
                    self._spent[kind, session] += 1
                    taken.append((session, item))
                    room, more = room - rows, True
        return room

    def _pop(self, kind: Hashable, session: S) -> tuple[T, int]:
        """The oldest item of a session, which goes behind the others."""
        queues = self._waiting[kind]
        found = queues[session].popleft()
        if queues[session]:
            queues.move_to_end(session)
        else:
            self._remove(kind, session)
        return found

    def _remove(self, kind: Hashable, session: S) -> None:
        del self._waiting[kind][session]
        if not self._waiting[kind]:
            del self._waiting[kind]

    def _spend(self, kind: Hashable, session: S) -> bool:
        """Whether the item of this turn was taken along."""
        left = self._spent[kind, session]
        if left <= 1:
            del self._spent[kind, session]
        else:
            self._spent[kind, session] = left - 1
        return left > 0


class RunShare:
    """One frame's run of a segment: alone, or a share of a run for several.

    Attributes:
        stopped: nobody wants it any more.
    """

    def __init__(self, alone: Call) -> None:
        self._alone = alone
        self._joint: SharedRun | None = None
        self.stopped = False

    def stop(self) -> None:
        """Keep it from beginning, or end it; with others, only when it was the last one wanted."""
        self.stopped = True
        self._alone.stop()
        joint = self._joint
        if joint is not None:
            joint.check()

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run it alone; as `Call.run`."""
        return self._alone.run(outputs, feeds)

    def join(self, joint: "SharedRun | None") -> None:
        """Tell it which run it is a share of; None: of none any more."""
        self._joint = joint


class SharedRun:
    """One run for several shares."""

    def __init__(self, call: Call, shares: Sequence[RunShare]) -> None:
        self._call = call
        self._shares = shares
        for share in shares:
            share.join(self)
        self.check()

    def check(self) -> None:
        """End the run when no share is wanted any more."""
        if all(share.stopped for share in self._shares):
            self._call.stop()

    def run(
        self, outputs: Sequence[str], several: Sequence[Mapping[str, Array]], rows: Sequence[int]
    ) -> list[list[Array]]:
        """Each share's outputs; errors as `Call.run`, for all of them."""
        try:
            return parted(self._call.run(outputs, joined(several)), rows)
        finally:
            for share in self._shares:
                share.join(None)
