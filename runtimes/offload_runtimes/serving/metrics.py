"""What a server tells about itself: metrics for Prometheus and structured log records."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import offload
from offload.errors import BundleError, OffloadError
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

from offload_runtimes.versions import Versions

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
Ask = Callable[[], float]

LOG = logging.getLogger("offload.server")
LOG.addHandler(logging.NullHandler())
disable_created_metrics()  # type: ignore[no-untyped-call]


class Gauges:
    """Numbers that are asked for when Prometheus reads them."""

    def __init__(self) -> None:
        self._single: list[tuple[str, str, Ask]] = []
        self._labelled: list[tuple[str, str, str, Callable[[], Mapping[str, float]]]] = []

    def add(self, name: str, text: str, ask: Ask) -> None:
        """A number."""
        self._single.append((name, text, ask))

    def add_labelled(
        self, name: str, text: str, label: str, ask: Callable[[], Mapping[str, float]]
    ) -> None:
        """Numbers by the values of a label."""
        self._labelled.append((name, text, label, ask))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry."""
        for name, text, ask in self._single:
            yield GaugeMetricFamily(name, text, ask())
        for name, text, label, asks in self._labelled:
            family = GaugeMetricFamily(name, text, labels=[label])
            for value, number in asks().items():
                family.add_metric([value], number)
            yield family


class Observer:
    """Counts and logs what happens on one server.

    Attributes:
        registry: the server's metrics.
        gauges: for numbers that others know.
    """

    def __init__(self) -> None:
        # One for each server: several may run in a process. Names of gauges are not checked
        # against counters', for `offload_sessions` stands beside `offload_sessions_total`.
        self.registry = CollectorRegistry(auto_describe=False)
        self.gauges = Gauges()
        self.registry.register(self.gauges)
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
            "Frames over: answered, failed, cancelled by the device, or dropped with a session.",
            "bundle",
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
            "Rows that went through a segment at once, where it may take those of several frames.",
            registry=self.registry,
            buckets=_ROW_BUCKETS,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def describe(self, found: Versions, providers: Sequence[str]) -> None:
        """Show what runs here: the product, onnxruntime and the providers really in use."""
        Info("offload_build", "What runs here.", registry=self.registry).info(
            {
                "version": found.version,
                "onnxruntime": found.onnxruntime,
                "python": found.python,
                "provider": ",".join(providers) or "none",
            }
        )

    def text(self) -> str:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry).decode()

    def refused(self, reason: str, peer: str, detail: str = "") -> None:
        """A session was refused before it began."""
        self._refused.labels(reason).inc()
        fields = {"reason": reason, "peer": peer, **({"detail": detail} if detail else {})}
        LOG.warning("session refused", extra={"fields": fields})

    def reloaded(self, what: str, error: str = "") -> None:
        """Certificates or tokens were read anew, or could not be."""
        fields = {"what": what, **({"error": error} if error else {})}
        LOG.log(logging.ERROR if error else logging.INFO, "reloaded", extra={"fields": fields})

    def opened(self, session: int, peer: str, version: str | None) -> None:
        """A session began, with a device of this version."""
        self._sessions.inc()
        fields = {"session": session, "peer": peer, "version": version}
        LOG.info("session opened", extra={"fields": fields})
        if version is not None and version != offload.__version__:
            fields["server_version"] = offload.__version__
            LOG.warning("version differs", extra={"fields": fields})

    def closed(self, session: int, frames: int) -> None:
        """A session ended after so many frames."""
        LOG.info("session closed", extra={"fields": {"session": session, "frames": frames}})

    def failed(self, session: int, error: OffloadError, *, begun: bool = True) -> None:
        """A session or a frame failed, or a session was refused before it had `begun`."""
        kind = type(error).__name__
        self._errors.labels(kind).inc()
        if not begun:
            self._refused.labels(_reason(error)).inc()
        fields = {"session": session, "kind": kind, "error": str(error)}
        LOG.warning("refused", extra={"fields": fields})

    def broke(self, session: int, error: BaseException) -> None:
        """Something that nobody expected was raised: the log gets its traceback."""
        LOG.error("unexpected error", exc_info=error, extra={"fields": {"session": session}})

    def frame(self, bundle: str, outcome: str, latency_s: float | None) -> None:
        """A frame is over; `latency_s` after its first segment could run, if one could."""
        self._frames.labels(bundle[:12], outcome).inc()
        if outcome == "answered" and latency_s is not None:
            self._latency.labels(bundle[:12]).observe(latency_s)

    def switched(self, session: int, bundle: str, before: int, after: int) -> None:
        """A session's frames follow another plan."""
        self._switches.labels(bundle[:12]).inc()
        fields = {"session": session, "before": before, "after": after}
        LOG.info("plan switched", extra={"fields": fields})

    def passed(self, direction: str, size_bytes: int) -> None:
        """A message went `in` or `out`."""
        self._passed[direction].inc(size_bytes)

    def bundle(self, event: str, bundle: str, error: str = "") -> None:
        """A bundle is served from now on, is not any more, or (with an error) cannot be."""
        fields = {"bundle": bundle, **({"error": error} if error else {})}
        LOG.log(logging.WARNING if error else logging.INFO, event, extra={"fields": fields})

    def computed(self, queue_s: float, compute_s: float) -> None:
        """A segment waited and ran."""
        self._queue.observe(queue_s)
        self._compute.observe(compute_s)

    def batched(self, rows: int) -> None:
        """So many rows ran at once."""
        self._rows.observe(rows)

    def batching(self, bundle: str, part: str, why_not: str) -> None:
        """A part runs rows of several sessions at once, or why it does not (any more)."""
        fields = {"bundle": bundle[:12], "part": part, "batched": not why_not, "why_not": why_not}
        LOG.info("batching", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event and the event's own fields."""

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


def _reason(error: OffloadError) -> str:
    if isinstance(error, BundleError):
        return "bundle"
    return "draining" if error.retry else "protocol"


def log_to_stderr() -> None:
    """Write the server's log to stderr, one JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
