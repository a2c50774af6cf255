"""Connections with one fault: cut, silent, or with a damaged, repeated or lost message."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from offload.errors import ServerError
from offload_runtimes.transport.connection import Connection, Stream

from tests.runtimes.memory_transport import MemoryConnector, PumpedStream


class Fault(StrEnum):
    """What happens to a connection.

    Attributes:
        CUT: it breaks.
        SILENCE: no message passes any more; neither end gets an error.
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
    """A fault, and the number of its message, counted over both directions from 0."""

    fault: Fault
    at: int


class FaultyConnection:
    """A connection with one fault."""

    def __init__(self, inner: Connection, plan: FaultPlan) -> None:
        self._inner = inner
        self._plan = plan
        self._count = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def send(self, message: bytes) -> None:
        """Send a message as the fault leaves it."""
        for passed in self._pass(message):
            self._inner.send(passed)

    def handle_briefly(self, _: Callable[[bytes], bool]) -> None:
        """All messages are received."""

    def receive(self) -> bytes | None:
        """The next message as the fault leaves it; a copy made by a fault is dropped."""
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
    """Opens streams within this process: each has the next fault of a list, later ones none."""

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
