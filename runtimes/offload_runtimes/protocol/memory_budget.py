"""Limit the bytes that all sessions of a server hold, and evict idle sessions if needed."""

import math
import threading
import time
from collections.abc import Callable

_PATIENCE_S = 5.0


class MemoryBudget:
    """Limits the bytes of uploads and of unread answers, over all sessions.

    The sum is computed anew from all reservations whenever one grows, so no counter can drift.
    """

    def __init__(self, limit_bytes: float = math.inf, patience_s: float = _PATIENCE_S) -> None:
        """A reservation that was idle for `patience_s` is evicted if others lack memory."""
        self.limit_bytes = limit_bytes
        self._patience_s = patience_s
        self._reservations: set[Reservation] = set()  # those that are not empty
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of all reservations now."""
        with self._lock:
            return self._sum()

    def reserve(self, evict: Callable[[], object]) -> "Reservation":
        """A new reservation of 0 bytes.

        `evict` is called at most once, if the reservation is idle while others lack memory. It
        must return at once and lead to a `hold(0)` soon.
        """
        return Reservation(self, evict)

    def hold(self, reservation: "Reservation", size_bytes: int, idle: bool) -> bool:
        """See `Reservation.hold`."""
        evicted: Reservation | None = None
        with self._lock:
            more_bytes = size_bytes - reservation.held_bytes
            if (
                more_bytes <= 0
                or self.limit_bytes == math.inf  # then the sum need not be computed
                or self._sum() + more_bytes <= self.limit_bytes
            ):
                reservation.held_bytes = size_bytes
                reservation.idle_since_s = time.monotonic() if idle else math.inf
                change = self._reservations.add if size_bytes else self._reservations.discard
                change(reservation)
                return True
            before_s = time.monotonic() - self._patience_s
            others = [
                other
                for other in self._reservations
                if other is not reservation and other.idle_since_s < before_s
            ]
            if others:
                evicted = min(others, key=lambda other: other.idle_since_s)
                evicted.idle_since_s = math.inf  # evict it only once
        if evicted is not None:
            evicted.evict()
        return False

    def _sum(self) -> int:
        return sum([reservation.held_bytes for reservation in self._reservations])


class Reservation:
    """Bytes that one session, or the unread answers of one stream, hold of a budget.

    Attributes:
        evict: makes the owner release the bytes.
        held_bytes: bytes held now.
        idle_since_s: since when only the device can release them; infinity while the server can.
    """

    def __init__(self, budget: MemoryBudget, evict: Callable[[], object]) -> None:
        self._budget = budget
        self.evict = evict
        self.held_bytes = 0
        self.idle_since_s = math.inf

    @property
    def limit_bytes(self) -> float:
        """Limit of all reservations together."""
        return self._budget.limit_bytes

    def hold(self, size_bytes: int, *, idle: bool = True) -> bool:
        """Change the bytes held; False, and no change, if all would exceed the limit.

        Holding fewer bytes never fails. `idle`: the server has no work to do on them, only the
        device can release them.
        """
        if not size_bytes and not self.held_bytes:
            return True  # most answers are small and need no reservation
        return self._budget.hold(self, size_bytes, idle)

    def use(self) -> None:
        """Mark the reservation as in use until the next `hold`: it is not evicted."""
        self.idle_since_s = math.inf
