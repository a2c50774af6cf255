"""The interface between a session on the device and any kind of connection to a server."""

from collections.abc import Callable, Sequence
from typing import Protocol

from offload.errors import OffloadError

from offload_runtimes.device.segment_executor import FrameTensors
from offload_runtimes.protocol.messages import PackedTensor


class DeviceConnection(Protocol):
    """A connection to a server that computes its part of each frame.

    Attributes:
        on_loss: called once it is over, and when the server takes no more frames.
    """

    on_loss: Callable[[], None]

    @property
    def server(self) -> str:
        """The server's address, as it stands in error messages."""

    @property
    def error(self) -> OffloadError | None:
        """Why it is over; None while it lasts."""

    @property
    def leaving(self) -> bool:
        """Whether the server takes no more frames."""

    def open(self, timeout_s: float) -> None:
        """Connect; OffloadError if the server cannot be used."""

    def begin(self, frame: FrameTensors, until_s: float | None = None) -> None:
        """Begin a frame; DeadlineError if the server takes no other frame until then."""

    def announce(self, frame: FrameTensors, defaults: Sequence[str]) -> None:
        """Begin a frame on the server before its tensors, among them these optional inputs."""

    def send(self, frame: FrameTensors, name: str, packed: PackedTensor) -> None:
        """Queue a tensor for sending and return at once."""

    def end(self, frame: FrameTensors) -> None:
        """Forget a frame and cancel it on the server; may be called twice."""

    def probe(self, size_bytes: int) -> None:
        """Send bytes both ways to measure the link, if the protocol supports it."""

    def beat(self) -> None:
        """Check that the server is alive; called every heartbeat."""

    def close(self) -> None:
        """End the connection; frames that still wait fail."""
