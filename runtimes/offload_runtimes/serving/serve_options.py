"""Options of a server, for `offload serve`, `python -m offload_runtimes serve` and `Server`."""

from dataclasses import dataclass, field

from offload.errors import InputError

from offload_runtimes.engine import EngineOptions
from offload_runtimes.protocol.server_state import SessionLimits
from offload_runtimes.security.credentials import ServerSecurity


@dataclass(frozen=True)
class ServeOptions:
    """How a server runs segments, what it allows, and how it is secured.

    Attributes:
        engine: how onnxruntime runs the segments.
        workers: segments that run at the same time; sessions take turns.
        limits: limits of one session; `max_bytes` is also the most that a tensor without a fixed
            shape may take, unless `max_memory_bytes` allows less.
        max_sessions: sessions, and streams and single requests of KServe v2, at the same time;
            more are refused.
        max_run_s: seconds after which a segment's run is stopped.
        max_memory_bytes: memory for models and tensors beyond the bare process: three quarters for
            onnxruntime (weights, workspace, outputs), one quarter for uploads and unread answers of
            all sessions; None: no limit.
        max_releases: releases of one deployment to serve, including the current one; None: all
            that it keeps.
        batch_rows: the most rows of several sessions that run in one call; 1: each frame alone.
        batch_wait_s: how long a worker waits for rows of other sessions; 0: it takes those that
            wait already.
        reflection: let clients such as grpcurl read the services' descriptions (gRPC reflection);
            None: if only this machine can reach the server and grpcio-reflection is installed.
        metrics: `HOST:PORT` where Prometheus reads `/metrics`; None: nowhere.
        security: certificates and token; by default plaintext, for this machine only.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    workers: int = 1
    limits: SessionLimits = field(default_factory=SessionLimits)
    max_sessions: int = 64
    max_run_s: float = 60.0
    max_memory_bytes: int | None = None
    max_releases: int | None = None
    batch_rows: int = 1
    batch_wait_s: float = 0.0
    reflection: bool | None = None
    metrics: str | None = None
    security: ServerSecurity = field(default_factory=ServerSecurity)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_sessions < 1:
            raise InputError("workers and max_sessions must be at least 1")
        if self.max_releases is not None and self.max_releases < 1:
            raise InputError("max_releases must be at least 1: the current release is served")
        if self.batch_rows < 1:
            raise InputError(f"a batch needs room for at least 1 row, not {self.batch_rows}")
        if not 0 <= self.batch_wait_s <= 60:
            raise InputError(f"a worker may wait 0 to 60 s for a batch, not {self.batch_wait_s:g}")
