"""An emulated link, a slower device and faults, so that one machine can stand for two."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

from offload.errors import InputError, OffloadError, ServerError

from offload_runtimes.transport.connection import (
    Connection,
    MemoryConnector,
    PumpedStream,
    Receiver,
    Stream,
)


class LinkCost(Protocol):
    """What a message costs each way; `offload.costs.link.Link` is one."""

    def upload_s(self, size_bytes: float) -> float:
        """Seconds from device to server."""

    def download_s(self, size_bytes: float) -> float:
        """Seconds from server to device."""


class Pipe:
    """One direction of an emulated link: messages pass one after another, each at its cost.

    Called from one thread only, which it holds up for as long as the message is on its way.
    """

    def __init__(
        self,
        cost_s: Callable[[float], float],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cost_s = cost_s
        self._clock = clock
        self._sleep = sleep
        self._free_s = float("-inf")

    def transit(self, size_bytes: int) -> None:
        """Return when a message that is ready now has passed."""
        self._free_s = max(self._clock(), self._free_s) + self._cost_s(size_bytes)
        sleep_until(self._free_s, self._clock, self._sleep)


class OwnThread:
    """A receiver that may take its time: it is called on a thread of its own."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="link", daemon=True).start()

    def received(self, message: bytes) -> None:
        """Have the receiver take a message."""
        self._calls.put(partial(self._receiver.received, message))

    def ended(self, error: OffloadError | None) -> None:
        """Tell the receiver, after all messages, and end the thread."""
        self._calls.put(partial(self._receiver.ended, error))
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def sleep_until(
    due_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sleep to a point in time; a sleep that ends early goes on."""
    while (left_s := due_s - clock()) > 0:
        sleep(left_s)


class Pacer:
    """Makes this machine behave like one `slowdown` times slower.

    Each run of a piece of work takes `slowdown` times the piece's median warm duration, or as
    long as it takes where that is longer; pacing to the duration just measured would amplify cold
    starts and noise. Sessions that share a pacer are paced alike: it knows a piece by its content.
    """

    KEPT = 15

    def __init__(
        self,
        slowdown: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not slowdown >= 1:
            raise InputError(f"slow-down must be at least 1, not {slowdown:g}")
        self.slowdown = slowdown
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[str, list[float]] = {}
        self._settled = False
        self._lock = threading.Lock()

    def learn(self, key: str, duration_s: float) -> None:
        """Note how long a piece of work took when warm."""
        with self._lock:
            if not self._settled:
                seen = self._seen.setdefault(key, [])
                seen.append(duration_s)
                del seen[: -self.KEPT]

    def settle(self, factor: float = 1.0) -> None:
        """Hold on to the shortest durations: a piece then takes as long in one run as in another.

        What else the machine does only ever makes work take longer. `factor` on all of them
        corrects for a machine that is slower now than when it was measured.
        """
        with self._lock:
            self._settled = True
            self._seen = {key: [factor * min(seen)] for key, seen in self._seen.items()}

    def warm_s(self, key: str) -> float | None:
        """The piece's median warm duration; None when it was never seen."""
        with self._lock:
            seen = self._seen.get(key)
            return sorted(seen)[len(seen) // 2] if seen else None

    def pace(self, key: str, start_s: float | None = None) -> None:
        """Sleep until a slower machine would be done that began at `start_s`.

        None: this machine has just done the work, in its usual time.
        """
        if self.slowdown > 1 and (warm_s := self.warm_s(key)) is not None:
            began_s = self._clock() - warm_s if start_s is None else start_s
            sleep_until(began_s + self.slowdown * warm_s, self._clock, self._sleep)


class Fault(StrEnum):
    """What befalls a connection.

    Attributes:
        CUT: it breaks.
        SILENCE: nothing passes any more, and neither end is told.
        CORRUPT: one bit of one message is flipped.
        DUPLICATE: one message passes twice.
        DROP: one message is lost, all others pass.
    """

    CUT = "cut"
    SILENCE = "silence"
    CORRUPT = "corrupt"
    DUPLICATE = "duplicate"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """A fault and the message it befalls, counted over both directions from 0."""

    fault: Fault
    at: int


class FaultyConnection:
    """A connection that a fault befalls, once."""

    def __init__(self, inner: Connection, plan: FaultPlan) -> None:
        self._inner = inner
        self._plan = plan
        self._count = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def send(self, message: bytes) -> None:
        """Hand a message over, or what the fault makes of it."""
        for passed in self._pass(message):
            self._inner.send(passed)

    def receive(self) -> bytes | None:
        """The next message, or what the fault makes of it; a copy made by a fault is dropped."""
        while (message := self._inner.receive()) is not None:
            passed = self._pass(message)
            if passed:
                return passed[0]
        if self._silent:
            self._closed.wait()
        return None

    def close(self) -> None:
        """End the stream."""
        self._closed.set()
        self._inner.close()

    @property
    def _silent(self) -> bool:
        return self._plan.fault is Fault.SILENCE and self._count > self._plan.at

    def _pass(self, message: bytes) -> list[bytes]:
        with self._lock:
            number, self._count = self._count, self._count + 1
        if self._silent:
            return []
        if number != self._plan.at:
            return [message]
        match self._plan.fault:
            case Fault.CORRUPT:
                middle = len(message) // 2
                flipped = bytes([message[middle] ^ 1]) if message else b""
                return [message[:middle] + flipped + message[middle + 1 :]]
            case Fault.DUPLICATE:
                return [message, message]
            case Fault.DROP:
                return []
            case _:
                self._inner.close()
                raise ServerError("the connection was cut: try again")


class FaultyConnector:
    """Gives every stream within this process the next fault of a list; later ones are sound."""

    def __init__(self, inner: MemoryConnector, plans: list[FaultPlan]) -> None:
        self._inner = inner
        self._plans = list(plans)
        self.address = inner.address

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> Stream:
        """A new stream."""
        del timeout_s
        sound = self._inner.open()
        connection = FaultyConnection(sound, self._plans.pop(0)) if self._plans else sound
        return PumpedStream(connection, outgoing)
