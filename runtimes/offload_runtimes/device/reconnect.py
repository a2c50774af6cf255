"""Keep a session with a server alive: heart-beats while it lasts, attempts when it is lost."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from offload.errors import BundleError, OffloadError, ServerError

from offload_runtimes.device.counters import Counters
from offload_runtimes.device.plan_selector import LOG
from offload_runtimes.device.server_connection import ServerConnection

_FIRST_TRY_S = 1.0
_PATIENCE_GROWTH = 1.5
_REFUSED_WAIT_S = 5.0  # the longest between attempts while the server does not hold the bundle
_REFUSED_GROWTH = 2.0


class Successor(Protocol):
    """Another bundle that may take the place of one that the server does not hold."""

    def connection(self) -> ServerConnection | None:
        """A connection for it that is not open yet; None: it needs no server."""

    def take_over(self, remote: ServerConnection | None) -> None:
        """Become the session's bundle, with a connection that is open.

        Raises:
            OffloadError: it cannot be run here.
        """


class ReconnectLoop:
    """Owns the Remote of a session and replaces it after a loss.

    While the server does not hold the session's bundle, `find_successor` is asked at every
    heart-beat for another one; the keeper ends once a successor has taken over.

    Args:
        make: makes a Remote that is not connected yet.
        first: the first Remote, open; None when the server could not be used at the start.
        why: what was wrong with the server at the start.
        heartbeat_s: seconds between pings, and between attempts to reconnect.
        timeout_s: the longest a single attempt may take; attempts begin with 1 s.
        reconnect: whether to try again after a loss.
        tally: where losses are counted.
        find_successor: gives another bundle to run; None: there is none. Raises OffloadError, with
            what to do, when there is one that cannot be run in this session.
    """

    def __init__(
        self,
        make: Callable[[], ServerConnection],
        first: ServerConnection | None,
        *,
        heartbeat_s: float,
        timeout_s: float,
        reconnect: bool,
        tally: Counters,
        why: OffloadError | None = None,
        find_successor: Callable[[], Successor | None] = lambda: None,
    ) -> None:
        self._make = make
        self._remote = first
        self._opening: ServerConnection | None = None
        self._lock = threading.Lock()
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._reconnect = reconnect
        self._tally = tally
        self._find_successor = find_successor
        self._tried: Successor | None = None
        self._is_refused = isinstance(why, BundleError)
        self._refused_wait_s = heartbeat_s
        self._next_try_s = 0.0
        self._warned: set[str] = set()
        self._warnings: list[OffloadError] = []
        self._why: OffloadError = ServerError("the server was not there at the start")
        if why is not None:
            self._failed(why)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._thread.start()

    @property
    def remote(self) -> ServerConnection | None:
        """The session with the server if it is alive and takes frames."""
        remote = self._remote
        if remote is None or remote.error is not None or remote.leaving:
            return None
        return remote

    @property
    def why(self) -> OffloadError:
        """What was wrong when the server was last lost."""
        remote = self._remote
        if remote is None:
            return self._why
        return remote.error or ServerError("the server is shutting down: try again")

    def take_warnings(self) -> list[OffloadError]:
        """What the user should know about the server and was not told yet.

        Errors that will not pass by themselves: of the server and of a successor, one each until
        the server is back.
        """
        if not self._warnings:
            return []
        with self._lock:
            taken, self._warnings = self._warnings, []
        return taken

    def close(self) -> None:
        """End the session and stop watching; may be called twice."""
        with self._lock:
            self._stopped.set()
            remotes = [r for r in (self._opening, self._remote) if r is not None]
        for remote in remotes:
            remote.close()
        if self._thread is not threading.current_thread():
            self._thread.join(self._timeout_s + 1)

    def _watch(self) -> None:
        patience_s = min(_FIRST_TRY_S, self._timeout_s)
        while not self._stopped.wait(self._heartbeat_s):
            remote = self._remote
            if remote is not None and remote.error is None:
                patience_s = min(_FIRST_TRY_S, self._timeout_s)
                remote.beat()
            elif self._reconnect:
                self._try(remote, patience_s)
                patience_s = min(patience_s * _PATIENCE_GROWTH, self._timeout_s)
        self._find_successor = lambda: None  # it refers to the session's models
        self._tried = None

    def _try(self, lost: ServerConnection | None, patience_s: float) -> None:
        if lost is not None:
            self._why = (lost.error or self._why).with_traceback(None)
            self._tally.add("losses")
            lost.close()
            self._remote = None
        is_due = time.monotonic() >= self._next_try_s
        if is_due and self._open(self._make, patience_s, self._connected):
            return
        if is_due and isinstance(self._why, BundleError):
            self._is_refused = True
            self._next_try_s = time.monotonic() + self._refused_wait_s
            longer_s = self._refused_wait_s * _REFUSED_GROWTH
            self._refused_wait_s = min(longer_s, max(_REFUSED_WAIT_S, self._heartbeat_s))
        if self._is_refused:
            self._try_successor(patience_s, is_due=is_due)

    def _connected(self, remote: ServerConnection) -> None:
        self._remote = remote
        self._is_refused = False
        self._refused_wait_s, self._next_try_s = self._heartbeat_s, 0.0
        self._warned.clear()

    def _try_successor(self, patience_s: float, *, is_due: bool) -> None:
        """Change to another bundle: at once when there is a new one, then as often as to this."""
        try:
            successor = self._find_successor()
            if successor is None or (successor is self._tried and not is_due):
                return
            self._tried = successor
            if (connection := successor.connection()) is None:
                successor.take_over(None)
                self._stopped.set()
                return
        except OffloadError as error:
            self._failed(error, "successor")
            return

        def take_over(remote: ServerConnection) -> None:
            try:
                successor.take_over(remote)
            except OffloadError as error:
                remote.close()
                self._failed(error, "successor")
                return
            self._stopped.set()

        self._open(lambda: connection, patience_s, take_over)

    def _open(
        self,
        make: Callable[[], ServerConnection],
        patience_s: float,
        opened: Callable[[ServerConnection], None],
    ) -> bool:
        """Connect and hand the connection on; whether the server took it."""
        with self._lock:
            if self._stopped.is_set():
                return False
            self._opening = opening = make()
        try:
            opening.open(patience_s)
        except OffloadError as error:
            self._failed(error)
            return False
        finally:
            with self._lock:
                self._opening = None
        if opening.error is not None:
            return False
        opened(opening)
        if self._stopped.is_set() and self._remote is opening:
            opening.close()
        return True

    def _failed(self, error: OffloadError, who: str = "server") -> None:
        """Note why the server, or a successor, cannot be used."""
        self._why = error.with_traceback(None)  # its frames refer to the session's models
        if error.retry or who in self._warned:
            return
        self._warned.add(who)
        with self._lock:
            self._warnings.append(error)
        LOG.warning(f"{who} refused", extra={"fields": {"error": str(error)}})
