"""What a session on the device needs of its connection to a server, of whichever kind."""

from collections.abc import Sequence
from typing import Protocol

from offload.errors import OffloadError

from offload_runtimes.device.segment_executor import FrameTensors
from offload_runtimes.protocol.messages import PackedTensor


class DeviceConnection(Protocol):
    """A connection over which a server computes its part of frames."""

    @property
    def error(self) -> OffloadError | None:
        """Why it is over; None while it lasts."""

    @property
    def leaving(self) -> bool:
        """Whether the server takes no more frames."""

    def open(self, timeout_s: float) -> None:
        """Connect; OffloadError if the server cannot be used."""

    def begin(self, frame: FrameTensors, until_s: float | None = None) -> None:
        """Give a frame its number; DeadlineError if the server takes no more until then."""

    def announce(self, frame: FrameTensors, defaults: Sequence[str]) -> None:
        """Begin a frame on the server before its tensors, among them these optional inputs."""

    def send(self, frame: FrameTensors, name: str, packed: PackedTensor) -> None:
        """Queue a tensor for sending and return at once."""

    def end(self, frame: FrameTensors) -> None:
        """Forget a frame and cancel it on the server; may be called twice."""

    def probe(self, size_bytes: int) -> None:
        """Have bytes sent both ways to measure the link, if the protocol can."""

    def beat(self) -> None:
        """Check that the server is alive; called every heartbeat."""

    def close(self) -> None:
        """End the connection; frames that still wait fail."""
