"""Measure the link to a running server: echoes of several sizes, each way apart."""

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from offload.cost.regression import Sample
from offload.errors import InputError, ServerError

import offload_runtimes.wire.offload_pb2 as pb
from offload_runtimes.grpc import PROBE_LIMIT_BYTES
from offload_runtimes.grpc.channel import probing
from offload_runtimes.security.credentials import ClientSecurity

Ask: TypeAlias = Callable[[bytes], bytes | None]
SIZES_BYTES = (1_000, 8_000, 32_000, 128_000, 512_000, 2_000_000)


def probe(
    server: str,
    *,
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    repeats: int = 5,
    budget_s: float = 15.0,
    timeout_s: float = 5.0,
    security: ClientSecurity | None = None,
) -> list[Sample]:
    """Time messages of several sizes to a server and back.

    A large request with an empty answer gives the way up, an empty request with a large answer
    the way down; half of the shortest empty round trip is taken off each. Larger sizes are left
    out when the time budget does not allow for them, so slow links are measured too.

    Returns:
        Samples in the order taken, smaller sizes first, at least `repeats` of the smallest.

    Raises:
        InputError: a size is negative or larger than servers answer.
        ServerError: the server can't be reached or went away.
    """
    if not sizes_bytes or min(sizes_bytes) < 0 or max(sizes_bytes) > PROBE_LIMIT_BYTES - 4096:
        raise InputError(f"probe sizes must be 0 to {PROBE_LIMIT_BYTES - 4096} bytes")
    samples: list[Sample] = []
    with probing(server, timeout_s, security) as ask:
        _round_trip_s(ask, 64_000, 64_000)  # lets the connection's windows grow
        half_s = min(_round_trip_s(ask, 0, 0) for _ in range(2 * repeats)) / 2
        end_s = time.monotonic() + budget_s
        for size in sorted(sizes_bytes):
            for _ in range(repeats):
                samples.append(_sample(ask, size, half_s))
                if time.monotonic() > end_s:
                    return samples
    return samples


def _sample(ask: Ask, size_bytes: int, half_s: float) -> Sample:
    up_s = _round_trip_s(ask, size_bytes, 0) - half_s
    down_s = _round_trip_s(ask, 0, size_bytes) - half_s
    return Sample(size_bytes, max(up_s, 0.0), max(down_s, 0.0))


def _round_trip_s(ask: Ask, up_bytes: int, down_bytes: int) -> float:
    # Random bytes: nothing on the way can make them fewer.
    request = pb.ProbeRequest(data=os.urandom(up_bytes), reply_bytes=down_bytes)
    message = request.SerializeToString()
    start_s = time.monotonic()
    if ask(message) is None:
        raise ServerError("the server ended the probe: is it shutting down?")
    return time.monotonic() - start_s
