"""Serve bundles: every session's segments run as soon as their inputs are here."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError, OffloadError, ServerError
from offload.plan.plan import Side

from offload_runtimes.device.closing import close_at_exit
from offload_runtimes.engine import Call, Engine, EngineOptions, load
from offload_runtimes.grpc.host import GrpcHost, split_address
from offload_runtimes.security.credentials import ServerSecurity
from offload_runtimes.serving.echo import echo
from offload_runtimes.serving.fair import FairWorkers
from offload_runtimes.serving.metrics import MetricsPort
from offload_runtimes.serving.observe import Observer
from offload_runtimes.session.server import (
    Close,
    Event,
    Limits,
    Over,
    Reply,
    Run,
    ServerSession,
    Switched,
)
from offload_runtimes.wire.contract import Contract, contracts, message_limit_bytes
from offload_runtimes.wire.transport import Connection

_POLL_S = 0.02
_WARM_LIMIT_S = 5.0
_SHORT_S = 0.0005  # below this, waking a worker costs more than a message that waits


@dataclass(frozen=True)
class Hosted:
    """A bundle that is served; plans share engines where they share parts.

    Attributes:
        bundle: the bundle.
        contracts: what may cross, for each plan.
        engines: an engine for each of the server's parts.
        last_s: how long each part took when it was last run.
    """

    bundle: Bundle
    contracts: tuple[Contract, ...]
    engines: Mapping[str, Engine]
    last_s: dict[str, float] = field(default_factory=dict)


def host(bundle: str | Path | Bundle, options: EngineOptions, max_run_s: float) -> Hosted:
    """Open a bundle's server part, load and warm its engines.

    Raises:
        BundleError: missing or damaged, or its server files are not here.
        InputError: onnxruntime refuses a segment.
    """
    if not isinstance(bundle, Bundle):
        bundle = open_bundle(bundle, (Side.SERVER,))
    segments = bundle.parts(Side.SERVER)
    engines = {s.part: load(bundle.segment_path(s.part), options) for s in segments}
    values = {v.name: v for e in engines.values() for v in (*e.outputs, *e.inputs)}
    for engine in engines.values():
        engine.warm(min(max_run_s, _WARM_LIMIT_S))
    return Hosted(bundle, contracts(bundle, values), engines)


class _Served:
    """One session being served: the state machine, its lock, and what runs for it."""

    def __init__(self, number: int, connection: Connection, session: ServerSession) -> None:
        self.number = number
        self.connection = connection
        self.session = session
        self.lock = threading.RLock()
        self.calls: dict[int, list[Call]] = {}

    def forget(self, frame: int, call: Call) -> None:
        """Note that a call is over."""
        calls = self.calls.get(frame, [])
        if call in calls:
            calls.remove(call)
        if not calls:
            self.calls.pop(frame, None)


@dataclass(frozen=True, slots=True)
class _Task:
    """A segment to run for a session.

    Attributes:
        run: the segment and its inputs.
        call: its run, which can be stopped.
        last_s: how long each part took when it was last run.
        asked_s: when it could have begun, by `time.monotonic`.
    """

    run: Run
    call: Call
    last_s: dict[str, float]
    asked_s: float

    @property
    def is_short(self) -> bool:
        return self.last_s.get(self.run.segment.part, _SHORT_S) < _SHORT_S


class Server:
    """Serves bundles, known by their digests, on one address."""

    def __init__(
        self,
        bundles: Iterable[str | Path | Bundle],
        listen: str = "127.0.0.1:0",
        *,
        options: EngineOptions | None = None,
        workers: int = 1,
        limits: Limits | None = None,
        max_sessions: int = 64,
        max_run_s: float = 60.0,
        metrics: str | None = None,
        security: ServerSecurity | None = None,
        insecure: bool = False,
    ) -> None:
        """Load everything; nothing is listened to before `start`.

        Args:
            bundles: bundles or their directories; the server's files suffice.
            listen: `HOST:PORT`; port 0 takes a free one.
            options: how onnxruntime runs the segments.
            workers: segments that run at the same time; sessions take turns.
            limits: what one session may hold.
            max_sessions: sessions at the same time; more are refused.
            max_run_s: seconds after which a segment's run is stopped.
            metrics: `HOST:PORT` for Prometheus to read `/metrics` from.
            security: certificates and token; None: plaintext, for this machine only.
            insecure: allow plaintext beyond this machine.

        Raises:
            BundleError: a bundle is missing, damaged or lacks its server part.
            InputError: an address or an option is wrong, or a segment is refused.
        """
        if workers < 1 or max_sessions < 1:
            raise InputError("workers and max_sessions must be at least 1")
        self._limits = limits or Limits()
        hosted = [host(bundle, options or EngineOptions(), max_run_s) for bundle in bundles]
        self._hosted = {h.bundle.digest: h for h in hosted}
        self._contracts = {digest: h.contracts for digest, h in self._hosted.items()}
        self._max_run_s = max_run_s
        self._sessions: set[_Served] = set()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._serving = False
        self._workers_count = workers
        self._workers: FairWorkers | None = None
        self._metrics = split_address(metrics) if metrics else None
        self._metrics_port: MetricsPort | None = None
        self._observer = Observer(
            lambda: len(self._sessions), lambda: self._workers.waiting if self._workers else 0
        )
        limit = max(map(message_limit_bytes, self._contracts.values()), default=0)
        self._host = GrpcHost(
            listen,
            self.serve,
            echo,
            message_limit_bytes=limit,
            max_sessions=max_sessions,
            backlog_bytes=max(4 * limit, 1 << 26),
            is_serving=lambda: self._serving,
            security=security or ServerSecurity(insecure=insecure),
        )

    @property
    def address(self) -> str:
        """Where it listens; after `start`, with the port really taken."""
        return self._host.address

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are read; None when nowhere."""
        return self._metrics_port.address if self._metrics_port else None

    @property
    def bundles(self) -> tuple[str, ...]:
        """Digests of the bundles served."""
        return tuple(self._hosted)

    def metrics_text(self) -> str:
        """The metrics as Prometheus reads them."""
        return self._observer.text()

    def start(self) -> Self:
        """Begin to listen; InputError when a port is in use."""
        self._workers = FairWorkers(self._workers_count)
        try:
            if self._metrics:
                self._metrics_port = _metrics_port(*self._metrics, self.metrics_text)
            self._serving = True
            self._host.start()
            close_at_exit(self)
        except OffloadError:
            self.stop()
            raise
        return self

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Take no new sessions and frames, wait for those in flight; whether all were answered."""
        self._serving = False
        for served in self._open_sessions():
            with served.lock:
                self._apply(served, served.session.drain())
        give_up_s = time.monotonic() + timeout_s
        while self._frames_in_flight() and time.monotonic() < give_up_s:
            time.sleep(_POLL_S)
        return not self._frames_in_flight()

    def stop(self, grace_s: float = 0.2) -> None:
        """End all sessions and the threads; may be called twice."""
        self._serving = False
        for served in self._open_sessions():
            self._close(served, ServerError("the server is shutting down: try again"))
        self._host.stop(grace_s)
        if self._workers:
            self._workers.stop()
            self._workers = None
        if self._metrics_port:
            self._metrics_port.close()
            self._metrics_port = None

    def close(self) -> None:
        """As `stop`."""
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve(self, connection: Connection) -> None:
        """Serve one session on a connection until it ends; one call, one thread."""
        session = ServerSession(self._contracts, self._limits)
        served = _Served(next(self._numbers), connection, session)
        with self._lock:
            self._sessions.add(served)
        self._observer.opened(served.number, getattr(connection, "peer", "memory"))
        try:
            if not self._serving:
                self._close(served, ServerError("the server is shutting down: try again"))
            while not session.closed and (data := connection.receive()) is not None:
                self._observer.passed("in", len(data))
                with served.lock:
                    tasks = self._apply(served, session.receive(data, time.monotonic()))
                self._start(served, tasks, here=True)
        finally:
            self._close(served)
            with self._lock:
                self._sessions.discard(served)
            self._observer.closed(served.number, session.frames)

    def _open_sessions(self) -> list[_Served]:
        with self._lock:
            return list(self._sessions)

    def _frames_in_flight(self) -> int:
        return sum(served.session.frames_in_flight for served in self._open_sessions())

    def _close(self, served: _Served, error: OffloadError | None = None) -> None:
        with served.lock:
            self._apply(served, served.session.close(error))
        if self._workers:
            self._workers.drop(served)
        served.connection.close()

    def _apply(self, served: _Served, events: Iterable[Event]) -> list[_Task]:
        """Do what the state machine asks for, but for the segments to run, which are returned.

        Called with the session's lock held; the segments are started without it.
        """
        tasks = []
        for event in events:
            match event:
                case Reply(data):
                    self._send(served, data)
                case Run():
                    tasks.append(self._task(served, event))
                case Over(frame, outcome):
                    self._observer.frame(served.session.bundle or "", outcome)
                    for call in served.calls.pop(frame, []):
                        call.stop()
                case Switched(before, after):
                    bundle = served.session.bundle or ""
                    self._observer.switched(served.number, bundle, before, after)
                case Close(data, error):
                    self._observer.failed(served.number, error)
                    self._send(served, data)
                    served.connection.close()
        return tasks

    def _send(self, served: _Served, data: bytes) -> None:
        try:
            served.connection.send(data)
            self._observer.passed("out", len(data))
        except ServerError as error:
            self._observer.failed(served.number, error)
            self._apply(served, served.session.close())
            served.connection.close()

    def _task(self, served: _Served, run: Run) -> _Task:
        assert served.session.bundle is not None  # or nothing could be run
        hosted = self._hosted[served.session.bundle]
        call = hosted.engines[run.segment.part].prepare(self._max_run_s)
        served.calls.setdefault(run.frame, []).append(call)
        return _Task(run, call, hosted.last_s, time.monotonic())

    def _start(self, served: _Served, tasks: list[_Task], *, here: bool = False) -> None:
        """Give segments to the workers; a short one may run `here`, on the caller's thread."""
        if self._workers is None:
            return
        for task in tasks:
            job = partial(self._run, served, task)
            here = here and len(tasks) == 1 and task.is_short
            if not (here and self._workers.run_here(job)):
                self._workers.submit(served, job)

    def _run(self, served: _Served, task: _Task) -> None:
        run, start_s = task.run, time.monotonic()
        try:
            arrays = task.call.run(run.segment.outputs, run.feeds)
        except OffloadError as error:
            with served.lock:
                events = served.session.failed(run, error)
                if events:
                    self._observer.failed(served.number, error)
                more = self._apply(served, events)
        else:
            end_s = time.monotonic()
            task.last_s[run.segment.part] = end_s - start_s
            self._observer.computed(start_s - task.asked_s, end_s - start_s)
            outputs = dict(zip(run.segment.outputs, arrays, strict=True))
            with served.lock:
                events = served.session.finished(run, outputs, start_s, end_s)
                more = self._apply(served, events)
        with served.lock:
            served.forget(run.frame, task.call)
        self._start(served, more)


def _metrics_port(host: str, port: int, text: Callable[[], str]) -> MetricsPort:
    try:
        return MetricsPort(host, port, text)
    except OSError as error:
        raise InputError(
            f"cannot show metrics on {host}:{port} ({error.strerror}): choose another address"
        ) from error
