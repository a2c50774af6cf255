"""Measure the link to a running server: echoes of several sizes, up and down separately.

Messages are sent as an inference sends tensors: each after a pause, because the other end sleeps
during a computation, and from thread to thread as in a session. Sent back to back, they would
start up to 1 ms faster than any tensor.
"""

import contextlib
import os
import queue
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from offload.costs.link import MIN_SIZES, Sample
from offload.errors import InputError, OffloadError, ServerError
from offload.units import format_s

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.address import parse_address
from offload_runtimes.emulate import LinkCost, OwnThread, Pipe
from offload_runtimes.security.credentials import ClientSecurity
from offload_runtimes.transport import PROBE, PROBE_LIMIT_BYTES
from offload_runtimes.transport.connection import Mailbox
from offload_runtimes.transport.grpc_client import GrpcConnector

Ask: TypeAlias = Callable[[bytes, float], object]
Answers: TypeAlias = "queue.SimpleQueue[bytes | OffloadError]"
SIZES_BYTES = (1_000, 8_000, 32_000, 128_000, 512_000, 2_000_000, 8_000_000)
PAUSE_S = 0.02
SILENCE_S = 60.0
"""Timeout of one message, on the slowest link that can be probed."""


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

    A large request with an empty reply measures the upload, an empty request with a large reply
    the download; half of an empty round trip is subtracted from each. Sizes that exceed the time
    budget are left out, so slow links are measured too.

    Args:
        server: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
        sizes_bytes: payloads.
        repeats: messages of each size in each direction.
        budget_s: seconds after which no more messages are sent.
        timeout_s: seconds to reach the server.
        security: certificates and token; None: plaintext.
        link: emulate a link of this cost.

    Returns:
        Samples in the order taken, smaller sizes first, at least `repeats` of the smallest.

    Raises:
        InputError: a size is negative or larger than the server's limit, or the address is not
            understood.
        ServerError: the server can't be reached, does not reply within `timeout_s`, or stops
            replying for a minute.
    """
    if not sizes_bytes or min(sizes_bytes) < 0 or max(sizes_bytes) > PROBE_LIMIT_BYTES - 4096:
        raise InputError(f"probe sizes must be 0 to {PROBE_LIMIT_BYTES - 4096} bytes")
    samples: list[Sample] = []
    with _asking(
        GrpcConnector(parse_address(server), PROBE_LIMIT_BYTES, security), timeout_s, link
    ) as ask:
        _round_trip_s(ask, 0, 0, timeout_s)
        _round_trip_s(ask, 64_000, 64_000)  # lets the connection's windows grow
        half_s = statistics.median(_round_trip_s(ask, 0, 0) for _ in range(2 * repeats)) / 2
        end_s = time.monotonic() + budget_s
        for number, size in enumerate(sorted(sizes_bytes)):
            if number >= MIN_SIZES:
                last = samples[-1]
                most_s = (last.up_s + last.down_s) * size / max(last.size_bytes, 1) * repeats
                if most_s > end_s - time.monotonic():
                    return samples
            for _ in range(repeats):
                up_s = _round_trip_s(ask, size, 0) - half_s
                down_s = _round_trip_s(ask, 0, size) - half_s
                samples.append(Sample(size, max(up_s, 0.0), max(down_s, 0.0)))
                if time.monotonic() > end_s:
                    return samples
    return samples


def _round_trip_s(ask: Ask, up_bytes: int, down_bytes: int, timeout_s: float = SILENCE_S) -> float:
    # Random bytes cannot be compressed on the way.
    request = pb.ProbeRequest(data=os.urandom(up_bytes), reply_bytes=down_bytes)
    message = request.SerializeToString()
    time.sleep(PAUSE_S)
    start_s = time.monotonic()
    ask(message, timeout_s)
    return time.monotonic() - start_s


@contextlib.contextmanager
def _asking(connector: GrpcConnector, timeout_s: float, link: LinkCost | None) -> Iterator[Ask]:
    """A function that sends a message to the server's echo service and waits for the reply."""
    outbox: Mailbox = queue.SimpleQueue()
    inbox: Answers = queue.SimpleQueue()
    up, down = (Pipe(link.upload_s), Pipe(link.download_s)) if link else (None, None)
    stream = connector.open(PROBE, _outgoing(outbox, up), timeout_s)
    stream.deliver(OwnThread(_ProbeAnswers(inbox, down)) if link else _ProbeAnswers(inbox, None))

    def ask(message: bytes, answer_timeout_s: float) -> None:
        outbox.put(message)
        try:
            answer = inbox.get(timeout=answer_timeout_s)
        except queue.Empty:
            raise ServerError(
                f"server {connector.address} is connected but did not answer a probe in"
                f" {format_s(answer_timeout_s)}: check that it is `offload serve`, not overloaded"
            ) from None
        if isinstance(answer, OffloadError):
            raise answer

    try:
        yield ask
    finally:
        outbox.put(None)
        stream.close()
        stream.wait(timeout_s)


def _outgoing(outbox: Mailbox, pipe: Pipe | None) -> Iterator[bytes]:
    while (message := outbox.get()) is not None:
        if pipe:
            pipe.transit(len(message))
        yield message


@dataclass(frozen=True, slots=True)
class _ProbeAnswers:
    """Receives replies, and last the reason why there are no more."""

    answers: Answers
    pipe: Pipe | None

    def received(self, message: bytes) -> None:
        if self.pipe:
            self.pipe.transit(len(message))
        self.answers.put(message)

    def ended(self, error: OffloadError | None) -> None:
        self.answers.put(error or ServerError("the server ended the probe: is it shutting down?"))
