"""Work of many sessions that could be done together, while it waits."""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from offload_runtimes.serving.batching import Batching

S = TypeVar("S", bound=Hashable)
T = TypeVar("T")


class Gathered(Generic[S, T]):
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
