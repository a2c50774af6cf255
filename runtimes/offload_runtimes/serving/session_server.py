"""Serve sessions on bundles, over connections that a transport accepts."""

import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from offload.bundle.bundle import Bundle
from offload.errors import InputError, OffloadError, ServerError
from offload.units import format_bytes

from offload_runtimes.address import Address, parse_address
from offload_runtimes.engine import Arena, arena_of
from offload_runtimes.installation import versions
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import ServerSession
from offload_runtimes.protocol.tensor_specs import TENSOR_LIMIT_BYTES
from offload_runtimes.security.credentials import ServerCredentials
from offload_runtimes.serving.bundles import ServedBundles
from offload_runtimes.serving.dispatch import Dispatcher
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.serving.sessions import OpenSessions, SegmentTask, SessionState
from offload_runtimes.transport.connection import Connection
from offload_runtimes.transport.streams import StreamHost

_POLL_S = 0.02
_LINK_FRACTION = 4  # a quarter of the memory is for uploads and answers, the rest for models
_LEAST_BYTES = 1 << 20
_BRIEF_BYTES = 1 << 18  # longer messages take long to decode


class SessionServer:
    """Serves sessions on bundles, known by their digests; it does not listen by itself.

    Attributes:
        paths: the bundles' directories, as they were given.
        streams: admits the calls of sessions.
    """

    def __init__(
        self, bundles: Iterable[str | Path | Bundle], options: ServeOptions | None = None
    ) -> None:
        """Load all bundles; sessions are served after `open`.

        Args:
            bundles: bundles or their directories; the server's files suffice. With `ROOT/current`
                of a deployment, the earlier releases that it keeps are served, too.
            options: how it runs; None: the defaults of `ServeOptions`.

        Raises:
            BundleError: a bundle is missing, damaged or lacks its server part.
            InputError: an option is wrong, or a segment is refused.
        """
        options = options or ServeOptions()
        bundles = tuple(bundles)
        self.paths = tuple(b.path if isinstance(b, Bundle) else Path(b) for b in bundles)
        self._limits = options.limits
        self._sessions = OpenSessions()
        self._serving = False
        self._observer = Observer()
        with _memory(options.max_memory_bytes) as (self._memory, arena):
            self._limit_bytes = int(
                min(TENSOR_LIMIT_BYTES, options.limits.max_bytes, self._memory.limit_bytes)
            )
            self._bundles = ServedBundles(
                bundles, options, self._limit_bytes, arena, self._observer, self._bundles_in_use
            )
        self._metrics = parse_address(options.metrics) if options.metrics else None
        if self._metrics and self._metrics.path:
            raise InputError(f"metrics cannot be read from {options.metrics}: give HOST:PORT")
        self._metrics_server: WSGIServer | None = None
        self._credentials = ServerCredentials(options.security, self._observer.reloaded)
        self._dispatcher = Dispatcher(
            self._bundles.loaded, options, self._observer, self._memory, self._batching_sessions
        )
        self.streams = StreamHost(
            options.max_sessions, self._memory, self._credentials, self._observer.refused
        )
        self._add_gauges(options.max_memory_bytes)

    def _add_gauges(self, max_memory_bytes: int | None) -> None:
        """Export what the server and its parts know, and the versions, to Prometheus."""
        add = self._observer.add_gauge
        add("offload_sessions", "Sessions open now.", lambda: len(self._sessions))
        add(
            "offload_queue_length",
            "Segments waiting for a worker now.",
            lambda: self._dispatcher.waiting,
        )
        add(
            "offload_held_bytes",
            "Bytes of uploads and unread answers now.",
            lambda: self._memory.held_bytes,
        )
        if max_memory_bytes is not None:
            link_bytes = self._memory.limit_bytes
            limits = {"link": link_bytes, "models": max_memory_bytes - link_bytes}
            add(
                "offload_memory_limit_bytes",
                "Bytes allowed for uploads and answers (link) and for onnxruntime (models).",
                lambda: limits,
                label="part",
            )
        add(
            "offload_certificate_expiry_timestamp_seconds",
            "When each certificate ends, in seconds since 1970.",
            self._credentials.expiries_s,
            label="file",
        )
        self._observer.export_versions(versions(), self.providers)

    @property
    def metrics_address(self) -> str | None:
        """Address of the metrics; None when they are not exported."""
        if self._metrics is None or self._metrics_server is None:
            return None
        return str(replace(self._metrics, port=self._metrics_server.server_port))

    @property
    def bundles(self) -> tuple[str, ...]:
        """Digests of the bundles that take new sessions, those it was given first."""
        return self._bundles.order

    @property
    def max_message_bytes(self) -> int:
        """The longest message of a session."""
        return self._bundles.max_message_bytes

    @property
    def providers(self) -> tuple[str, ...]:
        """Short names of the execution providers in use (`cuda:1`: the second GPU), no repeats."""
        loaded = list(self._bundles.loaded.values())
        engines = (engine for bundle in loaded for engine in bundle.engines.values())
        return tuple(dict.fromkeys(engine.provider for engine in engines))

    @property
    def alone(self) -> dict[str, str]:
        """Why parts run each frame alone; parts as `BUNDLE/PART`, with shortened digests."""
        return {
            f"{digest[:12]}/{part}": reason
            for digest, bundle in list(self._bundles.loaded.items())
            for part, reason in bundle.alone.items()
        }

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return len(self._sessions)

    @property
    def certificate_expiries_s(self) -> Mapping[str, float]:
        """When each certificate ends, seconds since 1970, by its file; empty without TLS."""
        return self._credentials.expiries_s()

    def reload(self) -> None:
        """Read certificates and tokens again; open sessions continue.

        An unusable file is logged, and its previous content stays in use. Changed files are also
        read without this call.
        """
        self._credentials.reload()

    def reload_bundles(self, *, even_unchanged: bool = True) -> None:
        """Load releases deployed since, and bundles that have replaced others on disk.

        Open sessions continue with their bundle. A bundle that is not served any more takes no new
        sessions, and is unloaded after its last session. A bundle that cannot be served is logged;
        then all bundles served before stay. With `max_memory_bytes` nothing can be loaded later;
        that is logged, too.

        Args:
            even_unchanged: read the directories even if no root has another release.
        """
        self._bundles.reload(even_unchanged=even_unchanged)

    def refused(self, reason: str, peer: str, detail: str) -> None:
        """Count and log a session that did not begin, such as a failed TLS handshake."""
        self._observer.refused(reason, peer, detail)

    def metrics_text(self) -> str:
        """The metrics in Prometheus's text format."""
        return self._observer.text()

    def open(self, metrics_ports: int = 1) -> None:
        """Start the workers, export the metrics, and accept sessions.

        `metrics_ports`: how many ports to try for the metrics, beginning with the given one.

        Raises:
            InputError: the ports of the metrics are in use.
        """
        self._dispatcher.open()
        self._bundles.warm_workers(self._dispatcher.on_every_worker)
        if self._metrics:
            self._metrics_server = self._export(self._metrics, metrics_ports)
        self._serving = True

    def _export(self, address: Address, ports: int) -> WSGIServer:
        for port in range(address.port, address.port + ports - 1):
            with suppress(InputError):
                return self._observer.serve_http(replace(address, port=port))
        return self._observer.serve_http(replace(address, port=address.port + ports - 1))

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Refuse new work and wait for the frames in flight; True if all were answered."""
        self._serving = False
        for session in self._sessions:
            with session.lock:
                self._dispatcher.apply(session, session.protocol.drain())
        give_up_s = time.monotonic() + timeout_s
        while self._frames_in_flight() and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)
        return not self._frames_in_flight()

    def end_sessions(self) -> None:
        """End all sessions with an error; new ones are refused."""
        self._serving = False
        why = "the server is shutting down: try again"
        for session in self._sessions:
            self._close(session, ServerError(why))
        for request in tuple(self._sessions.running):
            request.stop(ServerError(why))

    def stop(self) -> None:
        """End all sessions and the workers; may be called twice."""
        self.end_sessions()
        self._dispatcher.stop()
        if self._metrics_server:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
            self._metrics_server = None

    def serve(self, connection: Connection) -> None:
        """Serve one session on a connection until it ends; one call, one thread."""
        number = self._sessions.next_number()
        # Evicted by its number: a reference to the session would keep it and its tensors alive.
        account = self._memory.reserve(partial(self._evict, number))
        protocol = ServerSession(
            self._bundles.contracts,
            self._limits,
            account,
            self._bundles.max_message_bytes,
            self._bundles.names,
        )
        session = SessionState(number, connection, protocol)
        protocol.wait_s = partial(self._dispatcher.wait_s, weakref.ref(session))
        self._sessions.add(session)
        peer, version = getattr(connection, "peer", "memory"), getattr(connection, "version", None)
        self._observer.opened(number, peer, version)
        try:
            if not self._serving:
                self._close(session, ServerError("the server is shutting down: try again"))
            connection.handle_briefly(partial(self._handle_briefly, session, protocol))
            while not protocol.closed and (data := connection.receive()) is not None:
                with session.lock:
                    tasks = self._tasks_of(session, protocol, data)
                self._dispatcher.start(session, tasks, here=True)
        finally:
            self._close(session)
            self._sessions.discard(session)
            self._observer.closed(number, protocol.frames)

    def _handle_briefly(self, session: SessionState, protocol: ServerSession, data: bytes) -> bool:
        """Handle a message without blocking; False if that may take long."""
        if len(data) > _BRIEF_BYTES or not session.lock.acquire(blocking=False):
            return False
        try:
            tasks = [] if protocol.closed else self._tasks_of(session, protocol, data)
        finally:
            session.lock.release()
        self._dispatcher.start(session, tasks, here=True, is_brief=True)
        return True

    def _tasks_of(
        self, session: SessionState, protocol: ServerSession, data: bytes
    ) -> list[SegmentTask]:
        """Handle a message with the session's lock held; return the segments to run."""
        self._observer.passed("in", len(data))
        return self._dispatcher.apply(session, protocol.receive(data, time.monotonic()))

    def _evict(self, number: int) -> None:
        """End a session on a thread of its own: the caller holds another session's lock."""
        error = ServerError("session evicted: idle while other sessions wait for memory")
        for session in self._sessions:
            if session.number == number:
                threading.Thread(target=self._close, args=(session, error), daemon=True).start()

    def _bundles_in_use(self) -> set[str | None]:
        """Digests of the bundles of open sessions."""
        digests: set[str | None] = {each.bundle for each in tuple(self._sessions.running)}
        for session in self._sessions:
            with session.lock:  # its hello may be in progress
                digests.add(session.protocol.bundle)
        return digests

    def _batching_sessions(self, digest: str) -> list[SessionState]:
        """The open sessions on a bundle whose frames may run in batches."""
        return [
            session
            for session in self._sessions
            if not session.runs_alone
            and session.protocol.bundle == digest
            and not session.protocol.closed
        ]

    def _frames_in_flight(self) -> int:
        of_sessions = sum(session.protocol.frames_in_flight for session in self._sessions)
        return of_sessions + len(self._sessions.running)

    def _close(self, session: SessionState, error: OffloadError | None = None) -> None:
        with session.lock:
            self._dispatcher.apply(session, session.protocol.close(error))
        self._dispatcher.drop(session)
        session.connection.close()


@contextmanager
def _memory(limit_bytes: int | None) -> Iterator[tuple[MemoryBudget, Arena | None]]:
    """The budget for uploads and answers, and the arena for models loaded inside the block."""
    if limit_bytes is None:
        yield MemoryBudget(), None
        return
    rule = f"--max-memory {format_bytes(limit_bytes)}"
    if limit_bytes < _LEAST_BYTES:
        raise InputError(f"{rule} is too little: allow at least {format_bytes(_LEAST_BYTES)}")
    link_bytes = limit_bytes // _LINK_FRACTION
    with arena_of(limit_bytes - link_bytes, rule) as arena:
        yield MemoryBudget(link_bytes), arena
