"""Keep a connection to the server: ping it, and reconnect after it is lost."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from offload.errors import BundleError, OffloadError, ServerError

from offload_runtimes.device.connection import DeviceConnection
from offload_runtimes.device.counters import LOG, Counters
from offload_runtimes.device.session_options import OnServerLoss, SessionOptions

_FIRST_TIMEOUT_S = 1.0
_TIMEOUT_GROWTH = 1.5
_MAX_REFUSED_WAIT_S = 5.0  # between attempts while the server does not hold the bundle
_REFUSED_WAIT_GROWTH = 2.0


@dataclass(frozen=True, eq=False)
class Successor:
    """Another bundle that may replace one that the server does not hold.

    Attributes:
        new_connection: makes a connection for it that is not open yet; None: it needs no server.
        take_over: makes it the session's bundle, over an open connection. Raises OffloadError if
            it cannot run here.
    """

    new_connection: Callable[[], DeviceConnection | None]
    take_over: Callable[[DeviceConnection | None], None]


class ReconnectLoop:
    """Owns the connection of a session, pings the server and reconnects on a thread of its own.

    While the server does not hold the session's bundle, `find_successor` is called at every
    heartbeat for another bundle. The loop ends once a successor has taken over.

    Args:
        make: makes a connection that is not open yet.
        first: the first connection, open; None if the server could not be used at the start.
        why: why the server could not be used at the start.
        options: `heartbeat_s` between pings, and between attempts to reconnect;
            `connect_timeout_s` for one attempt at most, attempts begin with 1 s.
        counters: where losses are counted.
        find_successor: returns another bundle to run, None if there is none. Raises OffloadError,
            with what to do, if there is one that cannot run in this session.
    """

    def __init__(
        self,
        make: Callable[[], DeviceConnection],
        first: DeviceConnection | None,
        why: OffloadError | None,
        options: SessionOptions,
        counters: Counters,
        find_successor: Callable[[], Successor | None],
    ) -> None:
        self._make = make
        self._connection = first
        self._opening: DeviceConnection | None = None
        self._lock = threading.Lock()
        self._heartbeat_s = options.heartbeat_s
        self._timeout_s = options.connect_timeout_s
        self._reconnect = options.on_server_loss != OnServerLoss.LOCAL
        self._counters = counters
        self._find_successor = find_successor
        self._tried: Successor | None = None
        self._is_refused = isinstance(why, BundleError)
        self._refused_wait_s = options.heartbeat_s
        self._next_try_s = 0.0
        self._warned: set[str] = set()
        self._warnings: list[OffloadError] = []
        self._why: OffloadError = ServerError("the server could not be reached at the start")
        if why is not None:
            self._failed(why)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconnect", daemon=True)
        self._thread.start()

    @property
    def connection(self) -> DeviceConnection | None:
        """The connection if it is alive and the server takes frames."""
        connection = self._connection
        if connection is None or connection.error is not None or connection.leaving:
            return None
        return connection

    @property
    def why(self) -> OffloadError:
        """Why the server was last lost."""
        connection = self._connection
        if connection is None:
            return self._why
        return connection.error or ServerError("the server is shutting down: try again")

    def take_warnings(self) -> list[OffloadError]:
        """Errors that will not pass by themselves and were not reported to the user yet.

        One of the server and one of a successor, until the server is back.
        """
        if not self._warnings:
            return []
        with self._lock:
            warnings, self._warnings = self._warnings, []
        return warnings

    def close(self) -> None:
        """End the session and stop the thread; may be called twice."""
        with self._lock:
            self._stopped.set()
            connections = [c for c in (self._opening, self._connection) if c is not None]
        for connection in connections:
            connection.close()
        if self._thread is not threading.current_thread():
            self._thread.join(self._timeout_s + 1)

    def _run(self) -> None:
        timeout_s = min(_FIRST_TIMEOUT_S, self._timeout_s)
        while not self._stopped.wait(self._heartbeat_s):
            connection = self._connection
            if connection is not None and connection.error is None:
                timeout_s = min(_FIRST_TIMEOUT_S, self._timeout_s)
                connection.beat()
            elif self._reconnect:
                self._try(connection, timeout_s)
                timeout_s = min(timeout_s * _TIMEOUT_GROWTH, self._timeout_s)
        self._find_successor = lambda: None  # it refers to the session's models
        self._tried = None

    def _try(self, lost: DeviceConnection | None, timeout_s: float) -> None:
        """Try to reconnect, or else to change to another bundle if the server refuses this one."""
        if lost is not None:
            self._why = (lost.error or self._why).with_traceback(None)
            self._counters.add("losses")
            lost.close()
            self._connection = None
        is_due = time.monotonic() >= self._next_try_s
        if is_due:
            connection = self._make()
            if self._open(connection, timeout_s):
                self._connection = connection
                self._is_refused = False
                self._refused_wait_s, self._next_try_s = self._heartbeat_s, 0.0
                self._warned.clear()
                if self._stopped.is_set():  # `close` was too early to see the connection
                    connection.close()
                return
            if isinstance(self._why, BundleError):
                self._is_refused = True
                self._next_try_s = time.monotonic() + self._refused_wait_s
                longer_s = self._refused_wait_s * _REFUSED_WAIT_GROWTH
                self._refused_wait_s = min(longer_s, max(_MAX_REFUSED_WAIT_S, self._heartbeat_s))
        if self._is_refused:
            self._try_successor(timeout_s, is_due=is_due)

    def _try_successor(self, timeout_s: float, *, is_due: bool) -> None:
        """Change to another bundle: a new one at once, the same one again only if `is_due`."""
        connection: DeviceConnection | None = None
        try:
            successor = self._find_successor()
            if successor is None or (successor is self._tried and not is_due):
                return
            self._tried = successor
            connection = successor.new_connection()
            if connection is not None and not self._open(connection, timeout_s):
                return
            successor.take_over(connection)
            self._stopped.set()
        except OffloadError as error:
            if connection is not None:
                connection.close()
            self._failed(error, "successor")

    def _open(self, connection: DeviceConnection, timeout_s: float) -> bool:
        """Connect; whether the server accepted the session."""
        with self._lock:
            if self._stopped.is_set():
                return False
            self._opening = connection
        try:
            connection.open(timeout_s)
        except OffloadError as error:
            self._failed(error)
            return False
        finally:
            with self._lock:
                self._opening = None
        return connection.error is None

    def _failed(self, error: OffloadError, who: str = "server") -> None:
        """Record why the server, or a successor, cannot be used."""
        self._why = error.with_traceback(None)  # its frames refer to the session's models
        if error.retry or who in self._warned:
            return
        self._warned.add(who)
        with self._lock:
            self._warnings.append(error)
        LOG.warning(f"{who} refused", extra={"fields": {"error": str(error)}})
