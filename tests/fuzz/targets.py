"""Fuzz targets: each takes bytes and fails only where the product is wrong.

A target suppresses the four errors. Any other exception is a finding, as is a broken invariant, a
hang, or more memory than the process may have.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from offload.errors import OffloadError
from offload_runtimes.engine import size_bytes
from offload_runtimes.protocol import codecs
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.client_state import DeviceSession, DownloadReceived
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import Close, Event, Reply, RunSegment, ServerSession

from tests.fuzz import kserve
from tests.fuzz.bundles import BUNDLES, read_manifest, read_plan
from tests.fuzz.draw import Draw
from tests.fuzz.messages import (
    DIGEST,
    LIMIT_BYTES,
    ROOM,
    damaged,
    message,
    outputs,
    two_contracts,
)

_SEEDS = 40


@dataclass(frozen=True, slots=True)
class Target:
    """A function to fuzz.

    Attributes:
        run: takes a fuzzer's bytes.
        seeds: bytes to begin with.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def parse(data: bytes) -> None:
    """The frame parser, on bytes as they are or on a valid or nearly valid message."""
    draw = Draw(data)
    kind = draw.byte() % 3
    raw = draw.rest() if kind == 0 else message(draw)
    raw = damaged(raw, draw) if kind == 2 else raw
    with suppress(wire.ProtocolError):
        head, payload = wire.parse(raw)
        if head.WhichOneof("body") == "tensor":
            for contract in two_contracts():
                header, value = wire.decode_tensor(head.tensor, payload, contract.uploads)
                assert header.size_bytes <= LIMIT_BYTES
                assert size_bytes(value) <= header.memory_bytes + 256
                if header.dtype is not None:
                    assert (value.shape, value.dtype) == (header.shape, header.dtype)
        elif head.WhichOneof("body") == "failure":
            assert isinstance(wire.decode_failure(head.failure, "here"), OffloadError)


def decode(data: bytes) -> None:
    """The codecs: decoding gives the expected bytes or ValueError, and undoes encoding."""
    draw = Draw(data)
    codec = codecs.codec(draw.one_of(codecs.NAMES))
    shape = tuple(draw.byte() % 9 for _ in range(draw.byte() % 4))
    width = draw.one_of((1, 2, 4, 8))
    size_bytes = int(np.prod(shape)) * width
    with suppress(ValueError):
        assert len(codec.decode(draw.blob(), size_bytes, shape)) == size_bytes
    raw = draw.rest()[:size_bytes].ljust(size_bytes, b"\0")
    if codec.name not in ("png", "jpeg", "jpeg95") or (
        width == 1 and codecs.suits(codec.name, "uint8", shape)
    ):
        back = bytes(codec.decode(codec.encode(raw, shape), size_bytes, shape))
        assert len(back) == size_bytes
        assert codec.name.startswith("jpeg") or back == raw


class _Server:
    """A server's session, its running segments, and another session that holds memory."""

    def __init__(self) -> None:
        self.memory = MemoryBudget(4 * LIMIT_BYTES)
        self.others = self.memory.reserve(lambda: None)
        reservation = self.memory.reserve(lambda: None)
        self.session = ServerSession({DIGEST: two_contracts()}, ROOM, reservation)
        self.running: list[RunSegment] = []

    def step(self, draw: Draw) -> list[Event]:
        """One event that may happen to a session."""
        choice = draw.byte() % 16
        if choice == 0:
            return self.session.receive(damaged(self._message(draw), draw), 0.0)
        if choice == 1:
            self.others.hold(draw.byte() * 64)
            return []
        if choice == 2:
            return self.session.drain() if draw.byte() > 200 else self.session.receive(b"", 0.0)
        if choice < 6 and self.running:
            run = self.running.pop(draw.byte() % len(self.running))
            if draw.byte() < 200:
                return self.session.finished(run, outputs(run.segment, draw), 0.0, 1.0)
            return self.session.failed(run, OffloadError("it cannot be computed"))
        return self.session.receive(self._message(draw), 0.0)

    def _message(self, draw: Draw) -> bytes:
        return message(draw, self.session._received + 1)

    def take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RunSegment):
                self.running.append(event)
            elif isinstance(event, Reply | Close):
                wire.parse(event.data)

    def check(self) -> None:
        uploaded_bytes = sum(frame.uploaded_bytes for frame in self.session._all_frames())
        assert 0 <= uploaded_bytes <= ROOM.max_bytes
        all_bytes = uploaded_bytes + self.others.held_bytes
        assert self.memory.held_bytes == all_bytes <= self.memory.limit_bytes
        assert self.session.frames_in_flight <= ROOM.max_frames
        assert not self.session.closed or uploaded_bytes == self.session.frames_in_flight == 0


def serve(data: bytes) -> None:
    """The server's session with messages and results in any order; it never raises."""
    draw, server = Draw(data), _Server()
    if draw.byte() < 250:
        server.take(server.session.receive(DeviceSession(two_contracts(), "here").hello(), 0.0))
    while not draw.is_empty:
        server.take(server.step(draw))
        server.check()
    for run in server.running:
        server.take(server.session.failed(run, OffloadError("it cannot be computed")))
    server.session.close()
    server.check()


def drive(data: bytes) -> None:
    """The device's session with any answers of a server: an OffloadError or an event."""
    draw, session = Draw(data), DeviceSession(two_contracts(), "here")
    while not draw.is_empty:
        choice = draw.byte() % 8
        if choice == 0:
            session.open_frame(draw.byte() % 2)
        elif choice == 1:
            session.cancel(draw.number())
        else:
            right = message(draw, session._received + 1)
            answer = right if choice > 2 else damaged(right, draw)
            with suppress(OffloadError):
                event = session.receive(answer)
                assert not isinstance(event, DownloadReceived) or event.size_bytes <= LIMIT_BYTES


def scattered() -> list[bytes]:
    """Random bytes, short and long, the same every time."""
    chance = random.Random(0)
    return [chance.randbytes(3 * length) for length in range(1, _SEEDS)]


TARGETS = {
    "parse": Target(parse, scattered),
    "decode": Target(decode, scattered),
    "serve": Target(serve, scattered),
    "drive": Target(drive, scattered),
    "manifest": Target(read_manifest, lambda: [BUNDLES[0].manifest, *scattered()]),
    "kserve": Target(kserve.kserve_messages, lambda: [*kserve.seeds(), *scattered()]),
    "plan": Target(read_plan, lambda: [BUNDLES[0].plan, *scattered()]),
}
