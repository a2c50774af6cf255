"""Measure the link to a running server: echoes of several sizes, each way apart.

Messages are sent as an inference sends tensors: each after a pause, for after a computation the
other end is asleep, and from thread to thread as in a session. Sent back to back they would look
up to 1 ms quicker to start than any tensor will be.
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
"""How long one message may take on the slowest link that can be probed."""


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

    A large request with an empty answer gives the way up, an empty request with a large answer
    the way down; half of an empty round trip is taken off each. Larger sizes are left out when
    the time budget does not allow for them, so slow links are measured too.

    Args:
        server: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.
        sizes_bytes: payloads.
        repeats: messages of each size, each way.
        budget_s: seconds after which no more are sent.
        timeout_s: seconds to reach the server.
        security: certificates and token; None: plaintext.
        link: emulate a link of this cost, each way.

    Returns:
        Samples in the order taken, smaller sizes first, at least `repeats` of the smallest.

    Raises:
        InputError: a size is negative or larger than servers answer, or the address is not
            understood.
        ServerError: the server can't be reached, does not answer within `timeout_s`, or goes away
            later: a minute without an answer counts as gone.
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
            if number >= MIN_SIZES and _needed_s(samples[-1], size) * repeats > _left_s(end_s):
                return samples
            for _ in range(repeats):
                samples.append(_sample(ask, size, half_s))
                if _left_s(end_s) < 0:
                    return samples
    return samples


def _left_s(end_s: float) -> float:
    return end_s - time.monotonic()


def _needed_s(last: Sample, size_bytes: int) -> float:
    """What a larger size will take both ways, at most."""
    return (last.up_s + last.down_s) * size_bytes / max(last.size_bytes, 1)


def _sample(ask: Ask, size_bytes: int, half_s: float) -> Sample:
    up_s = _round_trip_s(ask, size_bytes, 0) - half_s
    down_s = _round_trip_s(ask, 0, size_bytes) - half_s
    return Sample(size_bytes, max(up_s, 0.0), max(down_s, 0.0))


def _round_trip_s(ask: Ask, up_bytes: int, down_bytes: int, timeout_s: float = SILENCE_S) -> float:
    # Random bytes: nothing on the way can make them fewer.
    request = pb.ProbeRequest(data=os.urandom(up_bytes), reply_bytes=down_bytes)
    message = request.SerializeToString()
    time.sleep(PAUSE_S)
    start_s = time.monotonic()
    ask(message, timeout_s)
    return time.monotonic() - start_s


@contextlib.contextmanager
def _asking(connector: GrpcConnector, timeout_s: float, link: LinkCost | None) -> Iterator[Ask]:
    """A function that sends a message to the server's echo service and waits for the answer."""
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
    """Takes answers, and last the reason why no more will come."""

    answers: Answers
    pipe: Pipe | None

    def received(self, message: bytes) -> None:
        if self.pipe:
            self.pipe.transit(len(message))
        self.answers.put(message)

    def ended(self, error: OffloadError | None) -> None:
        self.answers.put(error or ServerError("the server ended the probe: is it shutting down?"))
