"""Protocol state of a session on the device, without I/O: messages in, events out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from offload.errors import OffloadError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.messages import ProtocolError
from offload_runtimes.protocol.tensor_specs import Contract


@dataclass(frozen=True, slots=True)
class DownloadReceived:
    """A tensor of a frame came; the server queued it at `sent_s` of its clock.

    Attributes:
        frame: the frame's number.
        name: the tensor.
        value: an array, a list or a dict.
        size_bytes: its size when decoded.
        sent_s: when the server queued it.
        spans: what the server did for the frame since the last tensor.
        is_last: whether the frame is complete.
    """

    frame: int
    name: str
    value: Any
    size_bytes: int
    sent_s: float
    spans: Sequence[pb.Span]
    is_last: bool


@dataclass(frozen=True, slots=True)
class FrameFailed:
    """The server cannot compute a frame."""

    frame: int
    error: OffloadError


Event: TypeAlias = pb.Welcome | pb.Pong | pb.Goodbye | DownloadReceived | FrameFailed


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
            OffloadError: the server ended the session, with its reason.
        """
        self._received += 1
        message, payload = wire.parse(data)
        body = message.WhichOneof("body")
        if body == "failure":
            failure = message.failure
            error = wire.decode_failure(failure, self.server)
            if failure.frame == 0:
                raise error
            is_open = self._frames.pop(failure.frame, None) is not None
            return FrameFailed(failure.frame, error) if is_open else None
        if body == "welcome":
            welcome = message.welcome
            if self._opened or welcome.protocol != wire.PROTOCOL or not welcome.max_frames:
                raise ProtocolError(
                    f"server {self.server} speaks protocol {welcome.protocol}, this device speaks"
                    f" {wire.PROTOCOL}: install the same version of onnx-offload on both"
                )
            self._opened = True
            return welcome
        if not self._opened:
            raise ProtocolError(f"server {self.server} answered before it accepted the session")
        if body == "tensor":
            return self._downloaded(message.tensor, payload)
        if body == "pong":
            wire.check_none_lost(message.pong.sent, self._received)
            return message.pong
        if body == "goodbye":
            return message.goodbye
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
        return DownloadReceived(
            tensor.frame,
            header.name,
            value,
            header.size_bytes,
            tensor.sent_s,
            tensor.spans,
            is_last=not frame.missing,
        )
