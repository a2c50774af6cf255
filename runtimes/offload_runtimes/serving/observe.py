"""What a server tells about itself: metrics for Prometheus and structured log records."""

import json
import logging
from collections.abc import Callable

from offload_runtimes.serving.metrics import Counter, Gauge, Histogram

_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

LOG = logging.getLogger("offload.server")
LOG.addHandler(logging.NullHandler())


class Observer:
    """Counts and logs what happens on one server."""

    def __init__(
        self,
        sessions: Callable[[], float],
        waiting: Callable[[], float],
        held_bytes: Callable[[], float],
    ) -> None:
        """They tell how many sessions are open, segments queued and bytes held for sessions."""
        self._gauges = (
            Gauge("offload_sessions", "Sessions open now.", sessions),
            Gauge("offload_queue_length", "Segments waiting for a worker now.", waiting),
            Gauge("offload_held_bytes", "Bytes of uploads and unread answers now.", held_bytes),
        )
        self._sessions = Counter("offload_sessions_total", "Sessions opened.")
        self._refused = Counter(
            "offload_errors_total", "Sessions and frames refused or failed, by kind.", ["kind"]
        )
        self._frames = Counter(
            "offload_frames_total",
            "Frames over: answered, failed, cancelled by the device, or dropped with a session.",
            ["bundle", "outcome"],
        )
        self._switches = Counter(
            "offload_plan_switches_total", "Changes of plan within a session.", ["bundle"]
        )
        self._bytes = Counter("offload_bytes_total", "Bytes of messages, in or out.", ["direction"])
        self._stages = Histogram(
            "offload_stage_seconds",
            "Seconds a segment waited for a worker (queue) and ran (compute).",
            ["stage"],
        )
        self._rows = Histogram(
            "offload_batch_rows",
            "Rows that went through a segment at once, where it may take those of several frames.",
            buckets=_ROW_BUCKETS,
        )

    def text(self) -> str:
        """The exposition of all metrics."""
        frames = (self._sessions, self._refused, self._frames, self._switches)
        metrics = (*self._gauges, *frames, self._bytes, self._stages, self._rows)
        return "".join(metric.text() for metric in metrics)

    def opened(self, session: int, peer: str) -> None:
        """A session began."""
        self._sessions.add()
        LOG.info("session opened", extra={"fields": {"session": session, "peer": peer}})

    def closed(self, session: int, frames: int) -> None:
        """A session ended after so many frames."""
        LOG.info("session closed", extra={"fields": {"session": session, "frames": frames}})

    def failed(self, session: int, error: Exception) -> None:
        """A session or a frame was refused or failed."""
        kind = type(error).__name__
        self._refused.add(kind)
        fields = {"session": session, "kind": kind, "error": str(error)}
        LOG.warning("refused", extra={"fields": fields})

    def broke(self, session: int, error: BaseException) -> None:
        """Something that nobody expected was raised: the log gets its traceback."""
        LOG.error("unexpected error", exc_info=error, extra={"fields": {"session": session}})

    def frame(self, bundle: str, outcome: str) -> None:
        """A frame is over."""
        self._frames.add(bundle[:12], outcome)

    def switched(self, session: int, bundle: str, before: int, after: int) -> None:
        """A session's frames follow another plan."""
        self._switches.add(bundle[:12])
        fields = {"session": session, "before": before, "after": after}
        LOG.info("plan switched", extra={"fields": fields})

    def passed(self, direction: str, size_bytes: int) -> None:
        """A message went `in` or `out`."""
        self._bytes.add(direction, by=size_bytes)

    def computed(self, queue_s: float, compute_s: float) -> None:
        """A segment waited and ran."""
        self._stages.observe(queue_s, "queue")
        self._stages.observe(compute_s, "compute")

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
