"""One bound on the bytes that all sessions of a server hold together, and who must give way."""

import math
import threading
import time
from collections.abc import Callable

_PATIENCE_S = 5.0


class MemoryBudget:
    """Bytes of uploads and of answers that devices have not read, over all sessions.

    What is held is added up anew from what each account holds whenever one wants more, so that
    there is no counter to go wrong.
    """

    def __init__(self, limit_bytes: float = math.inf, patience_s: float = _PATIENCE_S) -> None:
        """An account may lie still so long while others lack memory before it is evicted."""
        self.limit_bytes = limit_bytes
        self._patience_s = patience_s
        self._accounts: set[Reservation] = set()  # those that hold something
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """What all accounts hold now."""
        with self._lock:
            return self._sum()

    def account(self, evict: Callable[[], object]) -> "Reservation":
        """A new account, which holds nothing.

        `evict` is called, at most once, when others lack the memory that lies still here; it must
        return at once and lead to a `hold(0)` soon.
        """
        return Reservation(self, evict)

    def hold(self, account: "Reservation", size_bytes: int, still: bool) -> bool:
        """See `Reservation.hold`."""
        with self._lock:
            more_bytes = size_bytes - account.held_bytes
            if more_bytes > 0 and self._sum() + more_bytes > self.limit_bytes:
                evicted = self._outstayed(account)
            else:
                account.note(size_bytes, still)
                (self._accounts.add if size_bytes else self._accounts.discard)(account)
                return True
        if evicted is not None:
            evicted.evict()
        return False

    def _sum(self) -> int:
        return sum([account.held_bytes for account in self._accounts])

    def _outstayed(self, asking: "Reservation") -> "Reservation | None":
        """The account that has lain still the longest, if that is too long."""
        before_s = time.monotonic() - self._patience_s
        others = (other for other in self._accounts if other is not asking)
        still = [other for other in others if other.still_since_s < before_s]
        chosen = min(still, key=lambda other: other.still_since_s, default=None)
        if chosen is not None:
            chosen.still_since_s = math.inf  # once is enough
        return chosen


class Reservation:
    """What one session, or one stream's unread answers, hold of a memory.

    Attributes:
        evict: makes the holder give up what it holds.
        held_bytes: what it holds.
        still_since_s: since when only the device can free it; infinity while the server can.
    """

    def __init__(self, memory: MemoryBudget, evict: Callable[[], object]) -> None:
        self._memory = memory
        self.evict = evict
        self.held_bytes = 0
        self.still_since_s = math.inf

    @property
    def limit_bytes(self) -> float:
        """What all accounts together may hold."""
        return self._memory.limit_bytes

    def hold(self, size_bytes: int, *, still: bool = True) -> bool:
        """Hold so much from now on; False, and nothing changes, where all hold too much then.

        Holding less never fails. `still`: only the device can free it, the server has no work to
        do on it.
        """
        if not size_bytes and not self.held_bytes:
            return True  # as for most answers, which are small
        return self._memory.hold(self, size_bytes, still)

    def note(self, size_bytes: int, still: bool) -> None:
        """What it holds now; called by the memory alone."""
        self.held_bytes = size_bytes
        self.still_since_s = time.monotonic() if still else math.inf
