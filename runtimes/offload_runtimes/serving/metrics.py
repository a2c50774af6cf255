"""Metrics for Prometheus and structured log records of a server."""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIServer

import offload
from offload.errors import BundleError, InputError, OffloadError
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily

from offload_runtimes.address import Address
from offload_runtimes.installation import Versions

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_AT_ONCE = 500  # updates of metrics that may wait
Reader = Callable[[], float | Mapping[str, float]]

LOG = logging.getLogger("offload.server")
LOG.addHandler(logging.NullHandler())
disable_created_metrics()  # type: ignore[no-untyped-call]


class Observer:
    """Counts and logs what happens on one server.

    Attributes:
        registry: the server's metrics.
    """

    def __init__(self) -> None:
        # One registry for each server, as a process may run several. Names are not checked for
        # clashes: the gauge `offload_sessions` and the counter `offload_sessions_total` would.
        self.registry = CollectorRegistry(auto_describe=False)
        self._gauges: list[tuple[str, str, Reader, str]] = []
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.registry.register(
            self
        )  # first: `collect` applies the waiting updates before others are read
        ProcessCollector(registry=self.registry)
        self._sessions = self._counter("offload_sessions_total", "Sessions opened.")
        self._refused = self._counter(
            "offload_refused_sessions_total",
            "Sessions refused: full, token, tls (a failed handshake), bundle, protocol, draining.",
            "reason",
        )
        self._errors = self._counter(
            "offload_errors_total", "Sessions and frames refused or failed, by kind.", "kind"
        )
        self._frames = self._counter(
            "offload_frames_total",
            "Frames that ended: answered, failed, cancelled by the device, or dropped.",
            "bundle",
            "plan",
            "outcome",
        )
        self._switches = self._counter(
            "offload_plan_switches_total", "Changes of plan within a session.", "bundle"
        )
        bytes_passed = self._counter(
            "offload_bytes_total", "Bytes of messages, in or out.", "direction"
        )
        self._passed = {name: bytes_passed.labels(name) for name in ("in", "out")}
        self._latency = Histogram(
            "offload_frame_seconds",
            "Seconds from a frame's first segment that could run to its last answer.",
            ["bundle"],
            registry=self.registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        stages = Histogram(
            "offload_stage_seconds",
            "Seconds a segment waited for a worker (queue) and ran (compute).",
            ["stage"],
            registry=self.registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        self._queue, self._compute = stages.labels("queue"), stages.labels("compute")
        self._rows = Histogram(
            "offload_batch_rows",
            "Rows of one call of a segment that may run rows of several frames.",
            registry=self.registry,
            buckets=_ROW_BUCKETS,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def add_gauge(self, name: str, text: str, read: Reader, *, label: str = "") -> None:
        """Export a number; with a label, `read` returns one for each of the label's values."""
        self._gauges.append((name, text, read, label))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Apply the waiting updates, and read all gauges; called by the registry."""
        self._count_waiting()
        for name, text, read, label in self._gauges:
            value = read()
            if isinstance(value, Mapping):
                family = GaugeMetricFamily(name, text, labels=[label])
                for label_value, number in value.items():
                    family.add_metric([label_value], number)
            else:
                family = GaugeMetricFamily(name, text, value)
            yield family

    def _later(self, count: Callable[..., None], *values: Any) -> None:
        """Queue an update of a metric until there are many, or until the metrics are read.

        A frame updates about nine metrics. Many updates in a row use the processor's caches better
        than a few in the middle of each frame.
        """
        self._waiting.append((count, values))
        if len(self._waiting) >= _AT_ONCE:
            self._count_waiting()

    def _count_waiting(self) -> None:
        with suppress(IndexError):
            while True:
                count, values = self._waiting.popleft()
                count(*values)

    def export_versions(self, versions: Versions, providers: Sequence[str]) -> None:
        """Export the versions of the product and onnxruntime, and the providers in use."""
        Info("offload_build", "What runs here.", registry=self.registry).info(
            {
                "version": versions.version,
                "onnxruntime": versions.onnxruntime,
                "python": versions.python,
                "provider": ",".join(providers) or "none",
            }
        )

    def serve_http(self, address: Address) -> WSGIServer:
        """Serve the metrics at an address; InputError if it is in use."""
        try:
            server, _ = start_http_server(address.port, address.host, self.registry)
        except OSError as error:
            raise InputError(
                f"cannot export metrics on {address} ({error.strerror}): choose another address"
            ) from error
        return server

    def text(self) -> str:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry).decode()

    def refused(self, reason: str, peer: str, detail: str = "") -> None:
        """Count and log a session that was refused before it began."""
        self._refused.labels(reason).inc()
        fields = {"reason": reason, "peer": peer, **({"detail": detail} if detail else {})}
        LOG.warning("session refused", extra={"fields": fields})

    def reloaded(self, what: str, error: str = "") -> None:
        """Log that certificates or tokens were read again, or why they could not be."""
        fields = {"what": what, **({"error": error} if error else {})}
        LOG.log(logging.ERROR if error else logging.INFO, "reloaded", extra={"fields": fields})

    def opened(self, session: int, peer: str, version: str | None) -> None:
        """Count and log a session that began, and warn if the device has another version."""
        self._sessions.inc()
        fields = {"session": session, "peer": peer, "version": version}
        LOG.info("session opened", extra={"fields": fields})
        if version is not None and version != offload.__version__:
            fields["server_version"] = offload.__version__
            LOG.warning("version differs", extra={"fields": fields})

    def closed(self, session: int, frames: int) -> None:
        """Log the end of a session."""
        LOG.info("session closed", extra={"fields": {"session": session, "frames": frames}})

    def failed(self, session: int, error: OffloadError, *, begun: bool = True) -> None:
        """Count and log a failed frame or session; not `begun`: it was refused at the start."""
        kind = type(error).__name__
        self._errors.labels(kind).inc()
        if not begun:
            retry = "draining" if error.retry else "protocol"
            reason = "bundle" if isinstance(error, BundleError) else retry
            self._refused.labels(reason).inc()
        fields = {"session": session, "kind": kind, "error": str(error)}
        LOG.warning("refused", extra={"fields": fields})

    def broke(self, session: int, error: BaseException) -> None:
        """Log an unexpected error with its traceback."""
        LOG.error("unexpected error", exc_info=error, extra={"fields": {"session": session}})

    def frame(self, bundle: str, plan: int, outcome: str, latency_s: float | None) -> None:
        """Count a frame that ended; `latency_s` counts from when its first segment could run."""
        self._later(self._count_frame, bundle, plan, outcome, latency_s)

    def _count_frame(self, bundle: str, plan: int, outcome: str, latency_s: float | None) -> None:
        self._frames.labels(bundle[:12], plan, outcome).inc()
        if outcome == "answered" and latency_s is not None:
            self._latency.labels(bundle[:12]).observe(latency_s)

    def switched(self, session: int, bundle: str, before: int, after: int) -> None:
        """Count and log a switch of plans within a session."""
        self._switches.labels(bundle[:12]).inc()
        fields = {"session": session, "before": before, "after": after}
        LOG.info("plan switched", extra={"fields": fields})

    def answered(
        self, bundle: str, plan: int, in_bytes: int, out_bytes: int, latency_s: float
    ) -> None:
        """Count a request that was answered at once, with the bytes of both messages."""
        self._later(self._count_answered, bundle, plan, in_bytes, out_bytes, latency_s)

    def _count_answered(
        self, bundle: str, plan: int, in_bytes: int, out_bytes: int, latency_s: float
    ) -> None:
        self._count_frame(bundle, plan, "answered", latency_s)
        self._passed["in"].inc(in_bytes)
        self._passed["out"].inc(out_bytes)

    def passed(self, direction: str, size_bytes: int) -> None:
        """Count the bytes of a message, `in` or `out`."""
        self._later(self._passed[direction].inc, size_bytes)

    def bundle(self, event: str, bundle: str, error: str = "") -> None:
        """Log that a bundle is served, is dropped, or (with an error) cannot be served."""
        fields = {"bundle": bundle, **({"error": error} if error else {})}
        LOG.log(logging.WARNING if error else logging.INFO, event, extra={"fields": fields})

    def warmed(self, bundle: str, runs: int, padded: Sequence[str], took_s: float) -> None:
        """Log that the workers warmed a bundle's engines up, and which parts pad their batches."""
        fields = {"bundle": bundle[:12], "runs": runs, "padded": list(padded), "seconds": took_s}
        LOG.info("warmed up", extra={"fields": fields})

    def computed(self, queue_s: float, compute_s: float) -> None:
        """Record how long a segment waited and ran."""
        self._later(self._count_computed, queue_s, compute_s)

    def _count_computed(self, queue_s: float, compute_s: float) -> None:
        self._queue.observe(queue_s)
        self._compute.observe(compute_s)

    def batched(self, rows: int) -> None:
        """Record the rows of one call."""
        self._later(self._rows.observe, rows)

    def batching(self, bundle: str, part: str, why_not: str) -> None:
        """Log whether a part runs rows of several sessions in one call, and why not."""
        fields = {"bundle": bundle[:12], "part": part, "batched": not why_not, "why_not": why_not}
        LOG.info("batching", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Formats log records as one JSON object a line: time, level, event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields = getattr(record, "fields", {})
        head = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            head["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**head, **fields})


def log_to_stderr() -> None:
    """Write the server's log to stderr, one JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
