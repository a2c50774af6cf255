"""Keep a connection to a server: ping it, and reconnect after it is lost, to the next server."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offload.errors import BundleError, DeadlineError, OffloadError, ServerError

from offload_runtimes.device.connection import DeviceConnection
from offload_runtimes.device.counters import LOG, Counters
from offload_runtimes.device.session_options import OnServerLoss, SessionOptions

_FIRST_TIMEOUT_S = 1.0
_TIMEOUT_GROWTH = 1.5
_MAX_REFUSED_WAIT_S = 5.0  # between attempts while the server does not hold the bundle
_REFUSED_WAIT_GROWTH = 2.0
_SUCCESSOR = "successor"
_CHECK_S = 0.1  # between checks whether an inference that waits for the next server was cancelled


class ServerRotation:
    """The servers of a session in their order, used round and round.

    Attributes:
        count: how many there are.
        current: index of the one that is in use, or that the next attempt to connect goes to.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.current = 0

    def advance(self) -> None:
        """Go on to the next server: this one was lost, is leaving or refused the session."""
        self.current = (self.current + 1) % self.count


def connect_in_turn(
    servers: ServerRotation,
    make: Callable[[], DeviceConnection],
    connect: Callable[[DeviceConnection], None],
) -> DeviceConnection:
    """Connect to the current server, or else to the next one that accepts the session.

    Each server is tried once.

    Args:
        servers: the servers; the one that is connected to is the current one afterwards.
        make: makes a connection to the current server that is not open yet.
        connect: opens a connection, or raises OffloadError.

    Raises:
        OffloadError: the error of the only server.
        BundleError: none of several accepts the session, and one does not hold the bundle.
        ServerError: none of several accepts the session.
    """
    errors: list[OffloadError] = []
    for _ in range(servers.count):
        connection = make()
        try:
            connect(connection)
        except OffloadError as error:
            errors.append(error.with_traceback(None))
            servers.advance()
        else:
            return connection
    raise _none_usable(errors)


def _none_usable(errors: Sequence[OffloadError]) -> OffloadError:
    """One error for those of all servers."""
    first, *others = errors
    if not others:
        return first
    text = f"none of the {len(errors)} servers can be used: {'; '.join(map(str, errors))}"
    is_refused = any(isinstance(each, BundleError) for each in errors)
    error = BundleError(text) if is_refused else ServerError(text)
    error.retry = any(each.retry for each in errors)
    error.option = next((each.option for each in errors if each.option), None)
    return error


@dataclass(frozen=True, eq=False)
class Successor:
    """Another bundle that may replace one that the server does not hold.

    Attributes:
        new_connection: makes a connection for it, to the current server, that is not open yet;
            None: it needs no server.
        take_over: makes it the session's bundle, over an open connection. Raises OffloadError if
            it cannot run here.
    """

    new_connection: Callable[[], DeviceConnection] | None
    take_over: Callable[[DeviceConnection | None], None]


class ReconnectLoop:
    """Owns the connection of a session, pings the server and reconnects on a thread of its own.

    With several servers, a server that is lost or takes no more frames is replaced at once: the
    next ones are tried in turn. After a round without success the loop waits, as with one server.

    While the server does not hold the session's bundle, `find_successor` is called at every
    heartbeat for another bundle. The loop ends once a successor has taken over.

    Args:
        servers: the servers; the current one is that of `first`.
        make: makes a connection to the current server that is not open yet.
        first: the first connection, open; None if the server could not be used at the start.
        refusals: the servers that could not be used at the start, by address, and why.
        options: `heartbeat_s` between pings, and between attempts to reconnect;
            `connect_timeout_s` for one attempt at most, attempts begin with 1 s.
        counters: where losses are counted.
        find_successor: returns another bundle to run, None if there is none. Raises OffloadError,
            with what to do, if there is one that cannot run in this session.
    """

    def __init__(
        self,
        servers: ServerRotation,
        make: Callable[[], DeviceConnection],
        first: DeviceConnection | None,
        refusals: Sequence[tuple[str, OffloadError]],
        options: SessionOptions,
        counters: Counters,
        find_successor: Callable[[], Successor | None],
    ) -> None:
        self._servers = servers
        self._make = make
        self._connection: DeviceConnection | None = None
        self._opening: DeviceConnection | None = None
        self._leaving: list[DeviceConnection] = []  # their servers still answer the last frames
        self._server = ""  # address of the last server in use
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._has_failed = first is None  # the last round of attempts to connect
        self._is_lost = threading.Event()
        self._quick = 0  # servers replaced since the last heartbeat
        self._heartbeat_s = options.heartbeat_s
        self._timeout_s = options.connect_timeout_s
        self._reconnect = options.on_server_loss != OnServerLoss.LOCAL
        self._counters = counters
        self._find_successor = find_successor
        self._tried: Successor | None = None
        self._is_refused = any(isinstance(error, BundleError) for _, error in refusals)
        self._refused_wait_s = options.heartbeat_s
        self._next_try_s = 0.0
        self._warned: set[str] = set()
        self._warnings: list[OffloadError] = []
        self._why: OffloadError = ServerError("the server could not be reached at the start")
        for server, error in refusals:
            self._failed(error, server)
        if first is not None:
            self._use(first)
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
    def alternatives(self) -> int:
        """How many other servers an inference can be sent to if one is lost."""
        return self._servers.count - 1 if self._reconnect else 0

    def wait(
        self, until_s: float | None, is_cancelled: Callable[[], bool]
    ) -> DeviceConnection | None:
        """The connection; with other servers, wait while a lost one is being replaced.

        None: no server can be used now, or `is_cancelled` returned True.

        Raises:
            DeadlineError: the time is over, by `time.monotonic`.
        """
        with self._changed:
            while (connection := self.connection) is None and self.alternatives:
                if self._has_failed or self._stopped.is_set() or is_cancelled():
                    return None
                left_s = _CHECK_S if until_s is None else until_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineError("no server was found within the time allowed")
                self._changed.wait(min(left_s, _CHECK_S))
        return connection

    @property
    def why(self) -> OffloadError:
        """Why the server was last lost."""
        connection = self._connection
        if connection is None:
            return self._why
        return connection.error or ServerError(
            f"server {connection.server} is shutting down: try again"
        )

    def take_warnings(self) -> list[OffloadError]:
        """Errors that will not pass by themselves and were not reported to the user yet.

        One of each server and one of a successor, until a server is back.
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
            self._is_lost.set()
            self._changed.notify_all()
            current = [c for c in (self._opening, self._connection) if c is not None]
            connections = [*current, *self._leaving]
        for connection in connections:
            connection.close()
        if self._thread is not threading.current_thread():
            self._thread.join(self._timeout_s + 1)

    def _run(self) -> None:
        timeout_s = min(_FIRST_TIMEOUT_S, self._timeout_s)
        while self._wait_for_beat():
            self._attend_leaving()
            connection = self._connection
            if connection is not None and not self._is_to_replace(connection):
                timeout_s = min(_FIRST_TIMEOUT_S, self._timeout_s)
                connection.beat()
            elif self._reconnect:
                self._try(connection, timeout_s)
                timeout_s = min(timeout_s * _TIMEOUT_GROWTH, self._timeout_s)
        self._find_successor = lambda: None  # it refers to the session's models
        self._tried = None

    def _wait_for_beat(self) -> bool:
        """Wait for a heartbeat, or until a server is to be replaced; False: the loop is over.

        Servers that accept the session and are lost at once are replaced once per heartbeat.
        """
        if self._quick < self._servers.count:
            was_lost = self._is_lost.wait(self._heartbeat_s)
        else:
            was_lost = self._stopped.wait(self._heartbeat_s)
        self._is_lost.clear()
        if not was_lost:
            self._quick = 0
        return not self._stopped.is_set()

    def _is_to_replace(self, connection: DeviceConnection) -> bool:
        return connection.error is not None or (connection.leaving and self.alternatives > 0)

    def _attend_leaving(self) -> None:
        """Ping the servers that still answer their last frames, and close the others."""
        for connection in tuple(self._leaving):
            if connection.error is None:
                connection.beat()
            if connection.error is not None:
                connection.close()
                self._leaving.remove(connection)

    def _use(self, connection: DeviceConnection) -> None:
        """Use a connection that is open from the next frame on."""
        if self._server and connection.server != self._server:
            fields = {"before": self._server, "after": connection.server, "why": str(self._why)}
            LOG.warning("server changed", extra={"fields": fields})
        self._server = connection.server
        if self.alternatives:
            connection.on_loss = self._is_lost.set
            if connection.error is not None or connection.leaving:
                self._is_lost.set()
        with self._changed:
            self._connection = connection
            self._has_failed = False
            self._changed.notify_all()

    def _leave(self, connection: DeviceConnection) -> None:
        """Stop using a server that was lost or that takes no more frames."""
        self._why = (connection.error or self.why).with_traceback(None)
        if connection.error is None:
            self._leaving.append(connection)
        else:
            self._counters.add("losses")
            connection.close()
        self._connection = None
        self._quick += 1
        self._servers.advance()

    def _try(self, lost: DeviceConnection | None, timeout_s: float) -> None:
        """Try to reconnect, or else to change to another bundle if the server refuses this one."""
        if lost is not None:
            self._leave(lost)
        is_due = time.monotonic() >= self._next_try_s
        if is_due:
            connection = self._connect(self._make, timeout_s)
            if connection is not None:
                self._use(connection)
                self._is_refused = False
                self._refused_wait_s, self._next_try_s = self._heartbeat_s, 0.0
                self._warned.clear()
                if self._stopped.is_set():  # `close` was too early to see the connection
                    connection.close()
                return
            with self._changed:
                self._has_failed = True
                self._changed.notify_all()
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
            if successor.new_connection is not None:
                connection = self._connect(successor.new_connection, timeout_s)
                if connection is None:
                    return
            successor.take_over(connection)
            self._stopped.set()
        except OffloadError as error:
            if connection is not None:
                connection.close()
            self._failed(error, _SUCCESSOR)

    def _connect(
        self, make: Callable[[], DeviceConnection], timeout_s: float
    ) -> DeviceConnection | None:
        """Connect to the current server or the next ones; None: none of them accepts the session.

        `timeout_s` limits the attempt for each server.
        """

        def open_it(connection: DeviceConnection) -> None:
            with self._lock:
                if self._stopped.is_set():
                    raise ServerError("the session was closed")
                self._opening = connection
            try:
                connection.open(timeout_s)
                if connection.error is not None:
                    raise connection.error
            except OffloadError as error:
                self._failed(error, connection.server)
                connection.close()
                raise
            finally:
                with self._lock:
                    self._opening = None

        try:
            return connect_in_turn(self._servers, make, open_it)
        except OffloadError as error:
            self._why = error.with_traceback(None)
            return None

    def _failed(self, error: OffloadError, who: str) -> None:
        """Record why a server, or a successor, cannot be used."""
        self._why = error.with_traceback(None)  # its frames refer to the session's models
        if error.retry or who in self._warned:
            return
        self._warned.add(who)
        with self._lock:
            self._warnings.append(error)
        what = who if who == _SUCCESSOR else "server"
        LOG.warning(f"{what} refused", extra={"fields": {"error": str(error)}})
