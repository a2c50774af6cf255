"""Counters, gauges and histograms, and the text that Prometheus reads.

The format is Prometheus's text exposition format 0.0.4; names follow its conventions
(base units, `_total` for counters).
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """A number per set of label values that only grows."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._head = f"# HELP {name} {text}\n# TYPE {name} counter\n"
        self._name = name
        self._labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *values: str, by: float = 1.0) -> None:
        """Count more under these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + by

    def text(self) -> str:
        """Its lines of the exposition."""
        with self._lock:
            rows = sorted(self._values.items())
        return self._head + "".join(
            f"{self._name}{_labelled(self._labels, values)} {_number(value)}\n"
            for values, value in rows
        )


class Gauge:
    """A number that is asked for when it is shown."""

    def __init__(self, name: str, text: str, ask: Callable[[], float]) -> None:
        self._head = f"# HELP {name} {text}\n# TYPE {name} gauge\n"
        self._name = name
        self._ask = ask

    def text(self) -> str:
        """Its lines of the exposition."""
        return f"{self._head}{self._name} {_number(self._ask())}\n"


class Histogram:
    """How often values fell into each bucket, per set of label values."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> None:
        self._head = f"# HELP {name} {text}\n# TYPE {name} histogram\n"
        self._name = name
        self._labels = tuple(labels)
        self._buckets = tuple(buckets)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Count a value under these label values."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._buckets) + 1))
            counts[bisect_left(self._buckets, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def text(self) -> str:
        """Its lines of the exposition."""
        with self._lock:
            rows = [(k, list(c), self._sums[k]) for k, c in sorted(self._counts.items())]
        return self._head + "".join(self._series(*row) for row in rows)

    def _series(self, labels: tuple[str, ...], counts: list[int], total: float) -> str:
        lines, seen = [], 0
        for bound, count in zip((*self._buckets, float("inf")), counts, strict=True):
            seen += count
            names = _labelled((*self._labels, "le"), (*labels, _number(bound)))
            lines.append(f"{self._name}_bucket{names} {seen}\n")
        names = _labelled(self._labels, labels)
        lines.append(f"{self._name}_sum{names} {_number(total)}\n")
        lines.append(f"{self._name}_count{names} {seen}\n")
        return "".join(lines)


class MetricsPort:
    """Answers GET /metrics over HTTP on an address of its own.

    Attributes:
        address: where it listens (`host:port`).
    """

    def __init__(self, host: str, port: int, text: Callable[[], str]) -> None:
        """Bind and serve; OSError when the port is in use."""

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            def do_GET(self) -> None:
                """Answer with the exposition, or 404."""
                body = text().encode() if self.path.split("?")[0] == "/metrics" else b"not here\n"
                self.send_response(200 if body != b"not here\n" else 404)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _labelled(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True))
    return f"{{{pairs}}}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
