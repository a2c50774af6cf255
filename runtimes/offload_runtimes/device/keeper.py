"""Keep a session with a server alive: heart-beats while it lasts, attempts when it is lost."""

import threading
from collections.abc import Callable

from offload.errors import OffloadError, ServerError

from offload_runtimes.device.remote import Remote
from offload_runtimes.device.tally import Tally

_FIRST_TRY_S = 1.0
_PATIENCE_GROWTH = 1.5


class Keeper:
    """Owns the Remote of a session and replaces it after a loss.

    Args:
        make: makes a Remote that is not connected yet.
        first: the first Remote, open; None when the server could not be reached at the start.
        heartbeat_s: seconds between pings, and between attempts to reconnect.
        timeout_s: the longest a single attempt may take; attempts begin with 1 s.
        reconnect: whether to try again after a loss.
        tally: where losses are counted.
    """

    def __init__(
        self,
        make: Callable[[], Remote],
        first: Remote | None,
        *,
        heartbeat_s: float,
        timeout_s: float,
        reconnect: bool,
        tally: Tally,
    ) -> None:
        self._make = make
        self._remote = first
        self._opening: Remote | None = None
        self._lock = threading.Lock()
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._reconnect = reconnect
        self._tally = tally
        self._why: OffloadError = ServerError("the server was not there at the start")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._thread.start()

    @property
    def remote(self) -> Remote | None:
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

    def _try(self, lost: Remote | None, patience_s: float) -> None:
        if lost is not None:
            self._why = lost.error or self._why
            self._tally.add("losses")
            lost.close()
            self._remote = None
        with self._lock:
            if self._stopped.is_set():
                return
            self._opening = opening = self._make()
        try:
            opening.open(patience_s)
        except OffloadError as error:
            self._why = error
        with self._lock:
            self._opening = None
            if opening.error is None:
                self._remote = opening
        if self._stopped.is_set():
            opening.close()
