"""Measure the link to a running server with echoes of several sizes, each direction apart.

A pause precedes each message, as a computation precedes each tensor, and messages pass from thread
to thread as in a session. Without the pauses, the threads of both ends would still be awake and
messages would start up to 1 ms sooner than tensors do.
"""

import os
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Self

from offload.costs.link_fit import MIN_SIZES, Sample, fit_link
from offload.errors import InputError, OffloadError, ServerError
from offload.units import format_s

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.address import parse_address
from offload_runtimes.device.session_options import LinkCost
from offload_runtimes.security.credentials import ClientSecurity
from offload_runtimes.transport import PROBE, PROBE_LIMIT_BYTES
from offload_runtimes.transport.connection import Connector
from offload_runtimes.transport.grpc_client import GrpcConnector

SIZES_BYTES = (1_000, 8_000, 32_000, 128_000, 512_000, 2_000_000, 8_000_000)
PAUSE_S = 0.02
SILENCE_S = 60.0
"""Longest time of one message, on the slowest link that can be probed."""
_ATTEMPTS = 3


def until_steady(take: Callable[[], Sequence[Sample]]) -> list[Sample]:
    """Probe again, up to three times in all, until the samples of all probes fit a link.

    Raises:
        InputError: the link is too unsteady.
        OffloadError: a probe failed.
    """
    samples: list[Sample] = []
    for left in reversed(range(_ATTEMPTS)):
        samples += take()
        try:
            fit_link(samples)
        except InputError:
            if not left:
                raise
        else:
            break
    return samples


def probe(
    server: str,
    *,
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    repeats: int = 5,
    budget_s: float = 15.0,
    timeout_s: float = 5.0,
    security: ClientSecurity | None = None,
    link: LinkCost | None = None,
) -> list[Sample]:
    """Time messages of several sizes to a server and back.

    A large request with an empty answer measures the upload, an empty request with a large answer
    the download; half of an empty round trip is subtracted from each. Sizes that do not fit the
    time budget are left out, so that slow links can be measured, too.

    Args:
        server: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
        sizes_bytes: payloads.
        repeats: messages of each size in each direction.
        budget_s: seconds after which no more are sent.
        timeout_s: seconds to reach the server.
        security: certificates and token; None: plaintext.
        link: emulate a link with these costs in each direction.

    Returns:
        Samples in the order taken, smaller sizes first, at least `repeats` of the smallest.

    Raises:
        InputError: a size is negative or larger than servers answer, or the address cannot be
            read.
        ServerError: the server cannot be reached, does not answer within `timeout_s`, or is lost
            later: it counts as lost after a minute without an answer.
    """
    if not sizes_bytes or min(sizes_bytes) < 0 or max(sizes_bytes) > PROBE_LIMIT_BYTES - 4096:
        raise InputError(f"probe sizes must be 0 to {PROBE_LIMIT_BYTES - 4096} bytes")
    connector: Connector
    connector = GrpcConnector(parse_address(server), PROBE_LIMIT_BYTES, security, method=PROBE)
    if link is not None:
        from offload_runtimes.emulation.link import EmulatedLink

        connector = EmulatedLink(connector, link, is_delayed=lambda _: True)
    samples: list[Sample] = []
    with _ProbeStream(connector, timeout_s) as stream:
        stream.round_trip_s(0, 0, timeout_s)
        stream.round_trip_s(64_000, 64_000)  # lets the connection's windows grow
        half_s = statistics.median(stream.round_trip_s(0, 0) for _ in range(2 * repeats)) / 2
        end_s = time.monotonic() + budget_s
        for number, size_bytes in enumerate(sorted(sizes_bytes)):
            if number >= MIN_SIZES:
                last = samples[-1]
                needed_s = (last.up_s + last.down_s) * size_bytes / max(last.size_bytes, 1)
                if needed_s * repeats > end_s - time.monotonic():
                    return samples
            for _ in range(repeats):
                up_s = stream.round_trip_s(size_bytes, 0) - half_s
                down_s = stream.round_trip_s(0, size_bytes) - half_s
                samples.append(Sample(size_bytes, max(up_s, 0.0), max(down_s, 0.0)))
                if time.monotonic() > end_s:
                    return samples
    return samples


class _ProbeStream:
    """A stream to the server's echo service."""

    def __init__(self, connector: Connector, timeout_s: float) -> None:
        self._server = connector.address
        self._timeout_s = timeout_s
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes | OffloadError] = queue.SimpleQueue()
        outgoing = iter(self._outbox.get, None)
        self._stream = connector.connect(outgoing, timeout_s)
        self._stream.deliver(self)

    def received(self, message: bytes) -> None:
        """An answer came."""
        self._answers.put(message)

    def ended(self, error: OffloadError | None) -> None:
        """No more answers will come."""
        self._answers.put(error or ServerError("the server ended the probe: is it shutting down?"))

    def round_trip_s(self, up_bytes: int, down_bytes: int, timeout_s: float = SILENCE_S) -> float:
        """Send a message after a pause and wait for its answer; the seconds in between."""
        # Random bytes cannot be compressed on their way.
        request = pb.ProbeRequest(data=os.urandom(up_bytes), reply_bytes=down_bytes)
        message = request.SerializeToString()
        time.sleep(PAUSE_S)
        start_s = time.monotonic()
        self._outbox.put(message)
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise ServerError(
                f"server {self._server} is connected but did not answer a probe in"
                f" {format_s(timeout_s)}: check that it is `offload serve`, not overloaded"
            ) from None
        if isinstance(answer, OffloadError):
            raise answer
        return time.monotonic() - start_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._outbox.put(None)
        self._stream.close()
        self._stream.wait(self._timeout_s)
