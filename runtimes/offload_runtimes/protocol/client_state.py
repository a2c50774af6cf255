"""Protocol state of a session on the device, without I/O: messages in, events out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from offload.errors import OffloadError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.messages import ProtocolError
from offload_runtimes.protocol.tensor_specs import Contract


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The server accepted the session.

    Attributes:
        max_frames: frames that may be in flight at the same time.
        max_message_bytes: the largest message that the server accepts.
    """

    max_frames: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class ServerSpan:
    """A run of a segment, or the arrival of a tensor, in seconds of the server's clock.

    An arrival (`is_arrival`) has no start.
    """

    name: str
    start_s: float
    end_s: float
    is_arrival: bool


@dataclass(frozen=True, slots=True)
class DownloadReceived:
    """A tensor of a frame came; the server queued it at `sent_s` of its clock.

    `value` is an array, a list or a dict, `size_bytes` long when decoded.
    """

    frame: int
    name: str
    value: Any
    size_bytes: int
    sent_s: float
    spans: tuple[ServerSpan, ...]


@dataclass(frozen=True, slots=True)
class FailureReceived:
    """One frame failed, or (frame None) the whole session."""

    frame: int | None
    error: OffloadError


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The server answered a ping at `server_s` of its clock."""

    number: int
    server_s: float


@dataclass(frozen=True, slots=True)
class ServerLeaving:
    """The server accepts no more frames."""


Event: TypeAlias = SessionOpened | DownloadReceived | FailureReceived | PongReceived | ServerLeaving


@dataclass(slots=True)
class _ClientFrame:
    """A frame in flight: its plan's contract, and the downloads that have not come yet."""

    contract: Contract
    missing: set[str]


@dataclass
class DeviceSession:
    """State of a session; `receive` turns the server's messages into events.

    Attributes:
        contracts: the tensors that may be sent, by plan.
        server: the server's address, for error messages.
    """

    contracts: tuple[Contract, ...]
    server: str
    _opened: bool = False
    _frames: dict[int, _ClientFrame] = field(default_factory=dict)
    _last_frame: int = 0
    _received: int = 0

    def hello(self) -> bytes:
        """The first message."""
        hello = pb.Hello(protocol=wire.PROTOCOL, bundle=self.contracts[0].digest)
        return wire.message(hello=hello)

    def open_frame(self, plan: int = 0) -> int:
        """Number of a new frame, which follows one of the plans."""
        self._last_frame += 1
        contract = self.contracts[plan]
        self._frames[self._last_frame] = _ClientFrame(contract, set(contract.downloads))
        return self._last_frame

    def begin(self, frame: int, plan: int, defaults: Iterable[str]) -> bytes:
        """The message that begins a frame before its tensors.

        Needed if the plan has no uploads, and before `defaults`: optional inputs that the caller
        gave, whose tensors follow.
        """
        return wire.message(begin=pb.Begin(frame=frame, plan=plan, defaults=defaults))

    def cancel(self, frame: int) -> bytes | None:
        """The message that cancels a frame; None if the frame is over already."""
        if self._frames.pop(frame, None) is None:
            return None
        return wire.message(cancel=pb.Cancel(frame=frame))

    def ping(self, number: int, sent: int, data: bytes = b"") -> bytes:
        """A message that the server answers at once, with the same data.

        `sent`: number of messages sent so far, including this one.
        """
        return wire.message(ping=pb.Ping(number=number, data=data, sent=sent))

    def receive(self, data: bytes) -> Event | None:
        """The event of a message from the server; None if it is about a frame that is over.

        Raises:
            ProtocolError: the server violates the protocol, or a message was lost.
        """
        self._received += 1
        message, payload = wire.parse(data)
        body = message.WhichOneof("body")
        if body == "failure":
            return self._failed(message.failure)
        if body == "welcome":
            welcome = message.welcome
            if self._opened or welcome.protocol != wire.PROTOCOL or not welcome.max_frames:
                raise ProtocolError(
                    f"server {self.server} speaks protocol {welcome.protocol}, this device speaks"
                    f" {wire.PROTOCOL}: install the same version of onnx-offload on both"
                )
            self._opened = True
            return SessionOpened(welcome.max_frames, welcome.max_message_bytes)
        if not self._opened:
            raise ProtocolError(f"server {self.server} answered before it accepted the session")
        if body == "tensor":
            return self._downloaded(message.tensor, payload)
        if body == "pong":
            wire.check_none_lost(message.pong.sent, self._received)
            return PongReceived(message.pong.number, message.pong.server_s)
        if body == "goodbye":
            return ServerLeaving()
        raise ProtocolError(f"server {self.server} sent a {body}, which only a device may")

    def _downloaded(self, tensor: pb.Tensor, payload: memoryview) -> DownloadReceived | None:
        if tensor.frame not in self._frames:
            if 0 < tensor.frame <= self._last_frame:
                return None  # the frame was cancelled while this was on its way
            raise ProtocolError(f"server {self.server} sent a frame that was never requested")
        frame = self._frames[tensor.frame]
        header, value = wire.decode_tensor(tensor, payload, frame.contract.downloads)
        if header.name not in frame.missing:
            raise ProtocolError(f"server {self.server} sent {header.name!r} twice")
        frame.missing.remove(header.name)
        if not frame.missing:
            del self._frames[tensor.frame]
        spans = tuple(
            ServerSpan(span.name, span.start_s, span.end_s, span.kind == pb.Span.ARRIVAL)
            for span in tensor.spans
        )
        return DownloadReceived(
            tensor.frame, header.name, value, header.size_bytes, tensor.sent_s, spans
        )

    def _failed(self, failure: pb.Failure) -> FailureReceived | None:
        error = wire.decode_failure(failure, self.server)
        if failure.frame == 0:
            return FailureReceived(None, error)
        if self._frames.pop(failure.frame, None) is None:
            return None
        return FailureReceived(failure.frame, error)
