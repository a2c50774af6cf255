"""Serve bundles: every session's segments run as soon as their inputs are here."""

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self
from wsgiref.simple_server import WSGIServer

from offload.bundle.bundle import Bundle
from offload.errors import InputError, OffloadError, ServerError
from offload.units import format_bytes
from prometheus_client import start_http_server

from offload_runtimes.address import Address, parse_address
from offload_runtimes.closing import close_at_exit
from offload_runtimes.engine import Arena, EngineOptions, arena_of, short_name
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import ServerSession, SessionLimits
from offload_runtimes.protocol.tensor_specs import (
    TENSOR_LIMIT_BYTES,
    Contract,
    upload_limit_bytes,
)
from offload_runtimes.security.credentials import ServerSecurity
from offload_runtimes.security.server_credentials import ServerCredentials
from offload_runtimes.serving.batching import Batching
from offload_runtimes.serving.bundles import (
    BundleSource,
    LoadedBundle,
    check_memory,
    load_bundle,
    mark_of,
    sources,
)
from offload_runtimes.serving.dispatch import Dispatcher
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.shared_runs import BatchRunner, SessionState
from offload_runtimes.transport.connection import Connection
from offload_runtimes.transport.grpc_server import GrpcHost
from offload_runtimes.versions import versions

_POLL_S = 0.02
_LINK_SHARE = 4  # one in so many bytes is for what crosses the link, the rest for models
_LEAST_BYTES = 1 << 20


class Server:
    """Serves bundles, known by their digests, on one address.

    Attributes:
        paths: the bundles' directories, as they were given.
    """

    def __init__(
        self,
        bundles: Iterable[str | Path | Bundle],
        listen: str = "127.0.0.1:0",
        *,
        options: EngineOptions | None = None,
        workers: int = 1,
        limits: SessionLimits | None = None,
        max_sessions: int = 64,
        max_run_s: float = 60.0,
        max_memory_bytes: int | None = None,
        max_releases: int | None = None,
        batching: Batching | None = None,
        metrics: str | None = None,
        security: ServerSecurity | None = None,
        insecure: bool = False,
    ) -> None:
        """Load everything; nothing is listened to before `start`.

        Args:
            bundles: bundles or their directories; the server's files suffice. With `ROOT/current`
                of a deployment, the earlier releases that it keeps are served, too.
            listen: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`; port 0 takes a free one.
            options: how onnxruntime runs the segments.
            workers: segments that run at the same time; sessions take turns.
            limits: what one session may hold; also the most that a tensor without a fixed shape
                may take, where `max_memory_bytes` does not allow less.
            max_sessions: sessions at the same time; more are refused.
            max_run_s: seconds after which a segment's run is stopped.
            max_memory_bytes: what models and tensors may take beyond the bare process: three
                quarters for onnxruntime (weights, what it computes, outputs), one for uploads and
                unread answers of all sessions; None: no limit.
            max_releases: releases of one deployment to serve, the current one included; None: all
                that it keeps.
            batching: how many rows of several sessions may run at once; None: each frame alone.
            metrics: `HOST:PORT` for Prometheus to read `/metrics` from.
            security: certificates and token; None: plaintext, for this machine only.
            insecure: allow plaintext beyond this machine.

        Raises:
            BundleError: a bundle is missing, damaged or lacks its server part.
            InputError: an address or an option is wrong, or a segment is refused.
        """
        if workers < 1 or max_sessions < 1:
            raise InputError("workers and max_sessions must be at least 1")
        self._limits = limits or SessionLimits()
        options = options or EngineOptions()
        if max_releases is not None and max_releases < 1:
            raise InputError("max_releases must be at least 1: the current release is served")
        self._given = tuple(bundles)
        self._max_releases = max_releases
        self._mark = mark_of(self._given)
        self._reloading = threading.Lock()
        self._hosted: dict[str, LoadedBundle] = {}
        self._names: dict[str, str] = {}
        self._contracts: dict[str, tuple[Contract, ...]] = {}
        with _memory(max_memory_bytes) as (self._memory, arena):
            batching = batching or Batching()
            limit_bytes = int(
                min(TENSOR_LIMIT_BYTES, self._limits.max_bytes, self._memory.limit_bytes)
            )
            self._host_bundle = partial(
                load_bundle,
                options=options,
                max_run_s=max_run_s,
                batching=batching,
                limit_bytes=limit_bytes,
            )
            for source in sources(self._given, max_releases):
                try:
                    self._take(source, arena)
                except OffloadError as error:
                    if source.is_required:
                        raise
                    text = f"{source.path.name} is not served: {error}"
                    warnings.warn(text, RuntimeWarning, stacklevel=2)
        self._order = tuple(self._contracts)
        self._is_bounded = max_memory_bytes is not None
        self.paths = tuple(source.path for source in sources(self._given, 1))
        self._sessions: set[SessionState] = set()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._serving = False
        self._forget: Callable[[], None] = lambda: None
        self._metrics = _metrics_address(metrics) if metrics else None
        self._metrics_server: WSGIServer | None = None
        self._observer = Observer()
        address = parse_address(listen)
        security = security or ServerSecurity(insecure=insecure)
        security.check(address)
        self._credentials = ServerCredentials(security, self._observer.reloaded)
        batches = BatchRunner(batching, self._hosted, self._observer, self._memory, self._crowd)
        self._batches = batches
        self._dispatcher = Dispatcher(self._hosted, workers, max_run_s, self._observer, batches)
        agreed = [contract for each in self._contracts.values() for contract in each]
        self._max_message_bytes = upload_limit_bytes(agreed)
        self._host = GrpcHost(
            address,
            self.serve,
            receive_limit_bytes=self._max_message_bytes,
            max_sessions=max_sessions,
            memory=self._memory,
            credentials=self._credentials,
            refused=self._observer.refused,
        )
        self._show(max_memory_bytes)

    def _take(self, source: BundleSource, arena: Arena | None = None) -> str:
        """Load a bundle unless it is served already; its digest."""
        bundle = source.open()
        if bundle.digest not in self._hosted:
            self._hosted[bundle.digest] = self._loaded(source, bundle, arena)
        self._names[bundle.digest] = source.name
        self._contracts[bundle.digest] = self._hosted[bundle.digest].contracts
        return bundle.digest

    def _loaded(
        self, source: BundleSource, bundle: Bundle, arena: Arena | None = None
    ) -> LoadedBundle:
        others = list(self._hosted.values())
        if not source.is_required:
            check_memory(bundle, others)
        return self._host_bundle(bundle, arena=arena, others=others)

    def _show(self, max_memory_bytes: int | None) -> None:
        """Let Prometheus read what the server and its parts know."""
        gauges = self._observer.gauges
        gauges.add("offload_sessions", "Sessions open now.", lambda: len(self._sessions))
        gauges.add(
            "offload_queue_length",
            "Segments waiting for a worker now.",
            lambda: self._dispatcher.waiting,
        )
        gauges.add(
            "offload_held_bytes",
            "Bytes of uploads and unread answers now.",
            lambda: self._memory.held_bytes,
        )
        if max_memory_bytes is not None:
            link_bytes = self._memory.limit_bytes
            limits = {"link": link_bytes, "models": max_memory_bytes - link_bytes}
            gauges.add_labelled(
                "offload_memory_limit_bytes",
                "Bytes allowed for what crosses (link) and for onnxruntime (models).",
                "part",
                lambda: limits,
            )
        gauges.add_labelled(
            "offload_certificate_expiry_timestamp_seconds",
            "When each certificate ends, in seconds since 1970.",
            "file",
            self._credentials.expiries_s,
        )
        self._observer.describe(versions(), self.providers)

    @property
    def address(self) -> str:
        """Where it listens; after `start`, with the port really taken."""
        return self._host.address

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are read; None when nowhere."""
        if self._metrics is None or self._metrics_server is None:
            return None
        return str(replace(self._metrics, port=self._metrics_server.server_port))

    @property
    def bundles(self) -> tuple[str, ...]:
        """Digests of the bundles served, those it was given first."""
        return self._order

    @property
    def providers(self) -> tuple[str, ...]:
        """Short names of the execution providers really in use, without repeats."""
        engines = (engine for h in list(self._hosted.values()) for engine in h.engines.values())
        return tuple(dict.fromkeys(short_name(engine.providers[0]) for engine in engines))

    @property
    def alone(self) -> dict[str, str]:
        """Of each part that runs frames alone, why; parts as `BUNDLE/PART`, digests cut short."""
        return {
            f"{digest[:12]}/{part}": why
            for digest, hosted in list(self._hosted.items())
            for part, why in hosted.alone.items()
        }

    @property
    def sessions(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    @property
    def certificate_expiries_s(self) -> Mapping[str, float]:
        """When each certificate ends, seconds since 1970, by its file; empty without TLS."""
        return self._credentials.expiries_s()

    def reload(self) -> None:
        """Read certificates and tokens again; open sessions go on.

        Files that cannot be used are logged, and what was read before stays. They are read again
        without this, too, when they change.
        """
        self._credentials.reload()

    def reload_bundles(self, *, even_unchanged: bool = True) -> None:
        """Take up releases deployed since, and other bundles that their directories hold by now.

        Open sessions go on with their bundle. One that is not to be served any more takes no new
        sessions, and goes with its last session. A bundle that cannot be served is logged; all
        that were served are then served on. With `max_memory_bytes` nothing can be loaded later:
        that is logged, too.

        Args:
            even_unchanged: look at the directories even if no root has another release.
        """
        with self._reloading:
            self._drop_unused()
            mark = mark_of(self._given)
            if not even_unchanged and mark == self._mark:
                return
            self._mark = mark
            wanted: dict[str, str] = {}
            complete = True
            for source in sources(self._given, self._max_releases):
                try:
                    digest = self._taken_up(source)
                except OffloadError as error:
                    self._observer.bundle("bundle not taken up", source.path.name, str(error))
                    complete = complete and not source.is_required
                else:
                    wanted.setdefault(digest, source.name)
            if complete:
                self._serve_only(wanted)

    def _taken_up(self, source: BundleSource) -> str:
        """Serve a bundle from now on; its digest."""
        bundle = source.open()
        if bundle.digest in self._hosted:
            return self._take(replace(source, bundle=bundle))
        if self._is_bounded:
            raise InputError(
                f"release {bundle.digest[:12]} cannot be loaded while --max-memory holds: restart"
                " the server"
            )
        hosted = self._loaded(source, bundle)
        if upload_limit_bytes(hosted.contracts) > self._max_message_bytes:
            raise InputError(
                f"release {bundle.digest[:12]} takes longer messages than those before: restart"
                " the server"
            )
        self._hosted[bundle.digest] = hosted
        digest = self._take(replace(source, bundle=bundle))
        self._batches.report(digest)
        self._observer.bundle("bundle taken up", digest[:12])
        return digest

    def _serve_only(self, wanted: Mapping[str, str]) -> None:
        """Take new sessions for these bundles alone."""
        for digest in [digest for digest in self._contracts if digest not in wanted]:
            del self._contracts[digest]
            self._observer.bundle("bundle dropped", digest[:12])
        self._order = tuple(wanted)
        self._names.update(wanted)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Let go of bundles that take no new sessions and have none."""
        gone = [digest for digest in self._hosted if digest not in self._contracts]
        if not gone:
            return
        for served in self._open_sessions():
            with served.lock:  # a hello may be under way
                if served.session.bundle in gone:
                    gone.remove(served.session.bundle)
        for digest in gone:
            del self._hosted[digest]
            self._names.pop(digest, None)

    def refused(self, reason: str, peer: str, detail: str) -> None:
        """Count and log a session that did not begin, like one whose TLS handshake failed."""
        self._observer.refused(reason, peer, detail)

    def metrics_text(self) -> str:
        """The metrics as Prometheus reads them."""
        return self._observer.text()

    def start(self) -> Self:
        """Begin to listen; InputError when a port is in use."""
        try:
            self._dispatcher.open()
            if self._metrics:
                self._metrics_server = _metrics_server(self._metrics, self._observer)
            self._serving = True
            self._host.set_serving(True)
            self._host.start()
            self._forget = close_at_exit(self.stop)
        except OffloadError:
            self.stop()
            raise
        return self

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Take no new sessions and frames, wait for those in flight; whether all were answered."""
        self._serving = False
        self._host.set_serving(False)
        for served in self._open_sessions():
            with served.lock:
                self._dispatcher.apply(served, served.session.drain())
        give_up_s = time.monotonic() + timeout_s
        while self._frames_in_flight() and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)
        return not self._frames_in_flight()

    def stop(self, grace_s: float = 0.2) -> None:
        """End all sessions and the threads; may be called twice."""
        self._serving = False
        self._host.set_serving(False)
        for served in self._open_sessions():
            self._close(served, ServerError("the server is shutting down: try again"))
        self._host.stop(grace_s)
        self._dispatcher.stop()
        if self._metrics_server:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
            self._metrics_server = None
        self._forget()

    def close(self) -> None:
        """As `stop`."""
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve(self, connection: Connection) -> None:
        """Serve one session on a connection until it ends; one call, one thread."""
        number = next(self._numbers)
        # By its number: an account that held on to its session would outlive it with all tensors.
        account = self._memory.reserve(partial(self._evict, number))
        session = ServerSession(
            self._contracts, self._limits, account, self._max_message_bytes, self._names
        )
        served = SessionState(number, connection, session)
        with self._lock:
            self._sessions.add(served)
        peer, version = getattr(connection, "peer", "memory"), getattr(connection, "version", None)
        self._observer.opened(served.number, peer, version)
        try:
            if not self._serving:
                self._close(served, ServerError("the server is shutting down: try again"))
            while not session.closed and (data := connection.receive()) is not None:
                self._observer.passed("in", len(data))
                with served.lock:
                    tasks = self._dispatcher.apply(served, session.receive(data, time.monotonic()))
                self._dispatcher.start(served, tasks, here=True)
        finally:
            self._close(served)
            with self._lock:
                self._sessions.discard(served)
            self._observer.closed(served.number, session.frames)

    def _evict(self, number: int) -> None:
        """End a session on a thread of its own: who asks for it holds another session's lock."""
        error = ServerError("others need the memory that this session holds without using it")
        for served in self._open_sessions():
            if served.number == number:
                threading.Thread(target=self._close, args=(served, error), daemon=True).start()

    def _open_sessions(self) -> list[SessionState]:
        with self._lock:
            return list(self._sessions)

    def _crowd(self, digest: str) -> list[SessionState]:
        """The open sessions on a bundle whose rows may run with others'."""
        able = (served for served in self._open_sessions() if not served.spoils)
        return [s for s in able if s.session.bundle == digest and not s.session.closed]

    def _frames_in_flight(self) -> int:
        return sum(served.session.frames_in_flight for served in self._open_sessions())

    def _close(self, served: SessionState, error: OffloadError | None = None) -> None:
        with served.lock:
            self._dispatcher.apply(served, served.session.close(error))
        self._dispatcher.drop(served)
        served.connection.close()


@contextmanager
def _memory(limit_bytes: int | None) -> Iterator[tuple[MemoryBudget, Arena | None]]:
    """What bounds what crosses, and what models that are loaded inside may take."""
    if limit_bytes is None:
        yield MemoryBudget(), None
        return
    if limit_bytes < _LEAST_BYTES:
        least = format_bytes(_LEAST_BYTES)
        raise InputError(f"--max-memory {format_bytes(limit_bytes)} is too little: allow {least}")
    link_bytes = limit_bytes // _LINK_SHARE
    rule = f"--max-memory {format_bytes(limit_bytes)}"
    with arena_of(limit_bytes - link_bytes, rule) as arena:
        yield MemoryBudget(link_bytes), arena


def _metrics_address(text: str) -> Address:
    address = parse_address(text)
    if address.path:
        raise InputError(f"metrics cannot be read from {text}: give HOST:PORT")
    return address


def _metrics_server(address: Address, observer: Observer) -> WSGIServer:
    try:
        server, _ = start_http_server(address.port, address.host, observer.registry)
    except OSError as error:
        raise InputError(
            f"cannot show metrics on {address} ({error.strerror}): choose another address"
        ) from error
    return server
