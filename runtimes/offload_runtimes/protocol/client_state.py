"""The device's end of a session: what it may send, what it makes of what comes back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from offload.errors import OffloadError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.messages import PackedTensor, ProtocolError
from offload_runtimes.protocol.tensor_specs import Contract


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The server took the session.

    Attributes:
        max_frames: frames that may be in flight.
        max_message_bytes: the largest message that the server takes.
    """

    max_frames: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class ServerSpan:
    """What the server did for a frame, in seconds of its own clock.

    An arrival (`is_arrival`) has no start; else a segment ran.
    """

    name: str
    start_s: float
    end_s: float
    is_arrival: bool


@dataclass(frozen=True, slots=True)
class DownloadReceived:
    """A download of a frame came as `codec`; the server queued it at `sent_s` of its clock.

    `value` is an array, a list or a dict; its bytes were `size_bytes` long, decoded.
    """

    frame: int
    name: str
    value: Any
    size_bytes: int
    sent_s: float
    spans: tuple[ServerSpan, ...]
    codec: str


@dataclass(frozen=True, slots=True)
class FailureReceived:
    """One frame failed, or (frame None) the whole session."""

    frame: int | None
    error: OffloadError


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The server answered a ping when its clock showed `server_s`."""

    number: int
    server_s: float


@dataclass(frozen=True, slots=True)
class ServerLeaving:
    """The server takes no more frames."""


Event: TypeAlias = SessionOpened | DownloadReceived | FailureReceived | PongReceived | ServerLeaving


@dataclass(slots=True)
class _ClientFrame:
    """A frame in flight: its plan's contract, and the downloads that have not come."""

    contract: Contract
    missing: set[str]


@dataclass
class DeviceSession:
    """State of one session; `receive` turns the server's messages into events.

    Attributes:
        contracts: what may cross, by plan.
        server: the server's address, for messages.
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
        """Number a new frame, which will follow one of the plans."""
        self._last_frame += 1
        agreed = self.contracts[plan]
        self._frames[self._last_frame] = _ClientFrame(agreed, set(agreed.downloads))
        return self._last_frame

    def begin(self, frame: int, plan: int, defaults: Iterable[str]) -> bytes:
        """The message that begins a frame before its tensors.

        Needed where the plan has nothing to upload, and before `defaults`: the inputs with a
        default that the caller gave, whose tensors follow.
        """
        return wire.message(begin=pb.Begin(frame=frame, plan=plan, defaults=defaults))

    def upload(
        self, frame: int, name: str, packed: PackedTensor, now_s: float, plan: int = 0
    ) -> bytes:
        """The message that sends a tensor of a frame, which follows that plan."""
        return wire.tensor_message(frame, name, packed, now_s, plan=plan)

    def cancel(self, frame: int) -> bytes | None:
        """The message that gives a frame up; None when it is over already."""
        if self._frames.pop(frame, None) is None:
            return None
        return wire.message(cancel=pb.Cancel(frame=frame))

    def ping(self, number: int, sent: int, data: bytes = b"") -> bytes:
        """A message that the server answers at once, with the same data.

        `sent`: how many messages have been sent, this one included.
        """
        return wire.message(ping=pb.Ping(number=number, data=data, sent=sent))

    def receive(self, data: bytes) -> Event | None:
        """What one message from the server means; None: nothing any more.

        Raises:
            ProtocolError: the server does not keep to the protocol, or a message was lost.
        """
        self._received += 1
        message, payload = wire.parse(data)
        body = message.WhichOneof("body")
        if body == "failure":
            return self._failed(message.failure)
        if body == "welcome":
            return self._welcome(message.welcome)
        if not self._opened:
            raise ProtocolError(f"server {self.server} answered before it accepted the session")
        if body == "tensor":
            return self._tensor(message.tensor, payload)
        if body == "pong":
            wire.check_none_lost(message.pong.sent, self._received)
            return PongReceived(message.pong.number, message.pong.server_s)
        if body == "goodbye":
            return ServerLeaving()
        raise ProtocolError(f"server {self.server} sent a {body}, which only a device may")

    def _welcome(self, welcome: pb.Welcome) -> SessionOpened:
        if self._opened or welcome.protocol != wire.PROTOCOL or not welcome.max_frames:
            raise ProtocolError(
                f"server {self.server} speaks protocol {welcome.protocol}, this device speaks"
                f" {wire.PROTOCOL}: install the same version of onnx-offload on both"
            )
        self._opened = True
        return SessionOpened(welcome.max_frames, welcome.max_message_bytes)

    def _tensor(self, tensor: pb.Tensor, payload: memoryview) -> DownloadReceived | None:
        if tensor.frame not in self._frames:
            if 0 < tensor.frame <= self._last_frame:
                return None  # the frame was given up while this was on its way
            raise ProtocolError(f"server {self.server} sent a frame that was never asked for")
        frame = self._frames[tensor.frame]
        layout, value = wire.decode_tensor(tensor, payload, frame.contract.downloads)
        if layout.name not in frame.missing:
            raise ProtocolError(f"server {self.server} sent {layout.name!r} twice")
        frame.missing.remove(layout.name)
        if not frame.missing:
            del self._frames[tensor.frame]
        spans = _spans(tensor)
        size_bytes = layout.size_bytes
        return DownloadReceived(
            tensor.frame, layout.name, value, size_bytes, tensor.sent_s, spans, layout.codec
        )

    def _failed(self, failure: pb.Failure) -> FailureReceived | None:
        error = wire.decode_failure(failure, self.server)
        if failure.frame == 0:
            return FailureReceived(None, error)
        if self._frames.pop(failure.frame, None) is None:
            return None
        return FailureReceived(failure.frame, error)


def _spans(tensor: pb.Tensor) -> tuple[ServerSpan, ...]:
    return tuple(
        ServerSpan(span.name, span.start_s, span.end_s, span.kind == pb.Span.ARRIVAL)
        for span in tensor.spans
    )
