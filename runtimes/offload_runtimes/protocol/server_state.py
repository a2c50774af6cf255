"""Protocol state of a session on the server, without I/O: messages in, events out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import offload
from offload.errors import BundleError, InputError, OffloadError, ServerError
from offload.planning.plan import Segment
from offload.units import format_bytes

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.engine import size_bytes
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.memory_budget import MemoryBudget, Reservation
from offload_runtimes.protocol.messages import ProtocolError
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES, Contract

_NAMED_BUNDLES = 8


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Limits of one session.

    Attributes:
        max_frames: frames in flight.
        max_bytes: bytes of tensors in flight.
    """

    max_frames: int = 8
    max_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Reply:
    """Event: send a message to the device."""

    data: bytes


@dataclass(frozen=True, slots=True)
class RunSegment:
    """Event: run a segment, then call `finished` or `failed`.

    `feeds` are arrays, lists (sequences) and dicts (maps).
    """

    frame: int
    segment: Segment
    feeds: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FrameOver:
    """Event: a frame is over; stop segments that still run for it.

    `outcome` is `answered`, `failed`, `cancelled` (by the device) or `dropped` (with the session);
    `plan` is the index of the plan that it followed.
    """

    frame: int
    outcome: str
    plan: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """Event: send a last message and end the session."""

    data: bytes
    error: OffloadError


@dataclass(frozen=True, slots=True)
class PlanSwitched:
    """Event: the device's frames follow another plan from now on."""

    before: int
    after: int


Event: TypeAlias = Reply | RunSegment | FrameOver | Close | PlanSwitched


@dataclass
class ServerFrame:
    """One inference in flight: its plan, its tensors so far, segments that have not started.

    Attributes:
        plan: index of the plan.
        contract: the plan's segments and tensors.
        waiting: segments that have not started.
        tensors: what came and was computed so far.
        spans: what happened since the last answer.
        awaited: inputs with a default that the device announced and that have not come yet.
        running: ids of the segments that run.
        uploaded_bytes: memory of the tensors that came from the device.
        computed_bytes: memory of the tensors that segments computed.
    """

    plan: int
    contract: Contract
    waiting: list[Segment]
    awaited: set[str] = field(default_factory=set)
    tensors: dict[str, Any] = field(default_factory=dict)
    spans: list[pb.Span] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    uploaded_bytes: int = 0
    computed_bytes: int = 0

    def startable(self) -> list[Segment]:
        """Segments whose inputs have all come; they are taken off the waiting list."""
        ready = [
            segment
            for segment in self.waiting
            if all(map(self.tensors.__contains__, segment.inputs))
            and (
                not self.awaited
                or self.awaited.isdisjoint(self.contract.defaults.get(segment.part, ()))
            )
        ]
        if ready:
            self.waiting = [segment for segment in self.waiting if segment not in ready]
            self.running.update(segment.id for segment in ready)
        return ready

    def feeds(self, segment: Segment) -> dict[str, Any]:
        """Inputs of a segment, see `inputs_of`."""
        return inputs_of(segment, self.contract, self.tensors)


def inputs_of(segment: Segment, contract: Contract, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a segment among the tensors, including the inputs with a default that came."""
    inputs = {name: tensors[name] for name in segment.inputs}
    for name in contract.defaults.get(segment.part, ()):
        if name in tensors:
            inputs[name] = tensors[name]
    return inputs


class ServerSession:
    """State of a session; its methods return events for the caller to carry out.

    Not thread-safe: the caller holds a lock around each call.

    Attributes:
        closed: whether the session is over.
        wait_s: returns how long a segment would wait now for the work of other sessions.
    """

    def __init__(
        self,
        contracts: Mapping[str, Sequence[Contract]],
        limits: SessionLimits,
        reservation: Reservation | None = None,
        max_message_bytes: int = MESSAGE_LIMIT_BYTES,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """A session that waits for the hello.

        Args:
            contracts: for each bundle, by its digest, one contract for each plan.
            limits: what the session may hold.
            reservation: holds the uploaded bytes; the engines count what segments compute.
            max_message_bytes: largest message that the device may send.
            names: names of the bundles, for a device that requests another one.
        """
        self._max_message_bytes = max_message_bytes
        self._contracts = contracts
        self._names = names
        self._limits = limits
        self._reservation = reservation or MemoryBudget().reserve(lambda: None)
        self._agreed: Sequence[Contract] = ()  # of the session's bundle
        self._frames: dict[int, ServerFrame] = {}
        self._ending: dict[int, ServerFrame] = {}  # over, but segments still run
        self._last_frame = 0
        self._failed: set[int] = set()
        self._draining = False
        self._plan: int | None = None
        self._received = 0
        self._sent = 0
        self.closed = False
        self.wait_s: Callable[[], float] = lambda: 0.0

    @property
    def frames(self) -> int:
        """Number of frames begun so far."""
        return self._last_frame

    @property
    def bundle(self) -> str | None:
        """Digest of the bundle of this session; None before the hello."""
        return self._agreed[0].digest if self._agreed else None

    @property
    def frames_in_flight(self) -> int:
        """Number of frames that are not answered yet."""
        return len(self._frames)

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Handle a message from the device; a wrong one closes the session."""
        if self.closed:
            return []
        self._received += 1
        try:
            return self._receive(*wire.parse(data), now_s)
        except OffloadError as error:
            return self.close(error)

    def finished(
        self, run: RunSegment, outputs: Mapping[str, Any], start_s: float, end_s: float
    ) -> list[Event]:
        """A segment has finished: send its downloads, run the segments that can start now."""
        frame = self._run_over(run)
        if frame is None:
            return []
        frame.spans.append(
            pb.Span(kind=pb.Span.COMPUTE, name=run.segment.id, start_s=start_s, end_s=end_s)
        )
        try:
            downloads = _downloads(run.frame, frame, outputs, end_s)
        except InputError as error:
            return self._fail(run.frame, error)
        frame.tensors.update(outputs)
        frame.computed_bytes += sum(map(size_bytes, outputs.values()))
        events: list[Event] = self._started(run.frame, frame)
        events.extend(map(self._reply, downloads))
        return [*events, *self._forget_if_done(run.frame, frame)]

    def failed(self, run: RunSegment, error: OffloadError) -> list[Event]:
        """A segment could not run, or its outputs not be sent: only its frame fails."""
        self._run_over(run)
        return self._fail(run.frame, error)

    def close(self, error: OffloadError | None = None) -> list[Event]:
        """End the session and free its memory."""
        if self.closed:
            return []
        self.closed = True
        events: list[Event] = [
            FrameOver(number, "dropped", frame.plan) for number, frame in self._frames.items()
        ]
        self._frames.clear()
        self._ending.clear()  # their other segments will not start
        self._hold()
        return events if error is None else [*events, Close(wire.encode_failure(error), error)]

    def drain(self) -> list[Event]:
        """Accept no more frames and tell the device; frames in flight are still answered."""
        if self.closed or self._draining:
            return []
        self._draining = True
        return [self._reply(wire.message(goodbye=pb.Goodbye()))]

    def _receive(self, message: pb.Message, payload: memoryview, now_s: float) -> list[Event]:
        body = message.WhichOneof("body")
        if body == "ping":
            if len(message.ping.data) > wire.MAX_PING_BYTES:
                raise ProtocolError(f"a ping may carry {wire.MAX_PING_BYTES} bytes, no more")
            wire.check_none_lost(message.ping.sent, self._received)
            number, data = message.ping.number, message.ping.data
            pong = pb.Pong(
                number=number,
                server_s=now_s,
                data=data,
                sent=self._sent + 1,
                wait_s=self.wait_s(),
            )
            return [self._reply(wire.message(pong=pong))]
        if body == "hello":
            return [self._reply(self._hello(message.hello))]
        if not self._agreed:
            raise ProtocolError("a session must begin with a hello")
        if body == "tensor":
            return self._upload(message.tensor, payload, now_s)
        if body == "begin":
            return self._begin(message.begin)
        if body == "cancel":
            number = message.cancel.frame
            ended = self._end(number)
            return [] if ended is None else [FrameOver(number, "cancelled", ended.plan)]
        raise ProtocolError(f"a device must not send a {body}")

    def _reply(self, data: bytes) -> Reply:
        """Count a reply; replies are sent in the order of these calls."""
        self._sent += 1
        return Reply(data)

    def _hello(self, hello: pb.Hello) -> bytes:
        if self._agreed:
            raise ProtocolError("a second hello came: open a new session for another bundle")
        if hello.protocol != wire.PROTOCOL:
            raise ProtocolError(
                f"protocol {hello.protocol} is not spoken here, only {wire.PROTOCOL} (the server is"
                f" onnx-offload {offload.__version__}): install the same version on both sides"
            )
        self._agreed = self._contracts.get(hello.bundle, ())
        if not self._agreed:
            bundles = [
                f"{digest[:12]} ({name})" if (name := self._names.get(digest)) else digest[:12]
                for digest in list(self._contracts)
            ]
            if (more := len(bundles) - _NAMED_BUNDLES) > 0:
                bundles[_NAMED_BUNDLES:] = [f"{more} more"]
            raise BundleError(
                f"bundle {hello.bundle[:12]} is not served here, the server holds"
                f" {', '.join(bundles) or 'none'}: deploy one bundle to the device and the server"
            )
        welcome = pb.Welcome(
            protocol=wire.PROTOCOL,
            max_frames=self._limits.max_frames,
            max_message_bytes=self._max_message_bytes,
        )
        return wire.message(welcome=welcome)

    def _begin(self, begin: pb.Begin) -> list[Event]:
        """Begin a frame without uploads, or one whose inputs with a default come first."""
        if refused := self._refused(begin.frame):
            return refused
        if begin.frame in self._frames:
            raise ProtocolError(f"frame {begin.frame} has begun already")
        frame = self._frame(begin.frame, begin.plan)
        defaults = {name for names in frame.contract.defaults.values() for name in names}
        frame.awaited = set(begin.defaults)
        if not defaults.issuperset(frame.awaited):
            raise ProtocolError("an input with a default was announced that the bundle lacks")
        return [
            *self._switched(begin.frame, frame.plan),
            *self._started(begin.frame, frame),
            *self._forget_if_done(begin.frame, frame),
        ]

    def _upload(self, tensor: pb.Tensor, payload: memoryview, now_s: float) -> list[Event]:
        if refused := self._refused(tensor.frame):
            return refused
        if tensor.frame in self._failed:
            return []
        frame = self._frame(tensor.frame, tensor.plan)
        specs = frame.contract.uploads
        header = wire.read_header(tensor, payload, specs)
        if header.name in frame.tensors:
            raise ProtocolError(f"tensor {header.name!r} came twice for one frame")
        # Memory is reserved before anything is decoded: a few bytes may decode to many.
        frame.uploaded_bytes += header.memory_bytes
        held_bytes = sum(f.uploaded_bytes + f.computed_bytes for f in self._all_frames())
        if held_bytes > self._limits.max_bytes:
            raise ProtocolError("too many bytes in flight: wait for answers before sending more")
        if not self._hold():
            frame_bytes, limit_bytes = frame.uploaded_bytes, self._reservation.limit_bytes
            frame.uploaded_bytes -= header.memory_bytes
            error: OffloadError = ServerError(
                "the memory for devices' tensors is in use on the server (--max-memory): try again,"
                " or allow more"
            )
            if frame_bytes > limit_bytes:
                error = InputError(
                    f"this inference sends {format_bytes(frame_bytes)} to the server, which allows"
                    f" {format_bytes(int(limit_bytes))} for the tensors of all devices"
                    " (--max-memory): use a smaller batch, or allow more"
                )
            return self._fail(tensor.frame, error)
        frame.tensors[header.name] = wire.decode(header, payload, specs)
        frame.awaited.discard(header.name)
        frame.spans.append(pb.Span(kind=pb.Span.ARRIVAL, name=header.name, end_s=now_s))
        return [*self._switched(tensor.frame, frame.plan), *self._started(tensor.frame, frame)]

    def _refused(self, number: int) -> list[Event]:
        """Reject a new frame while the server shuts down; empty: the frame may begin."""
        if not self._draining or number <= self._last_frame:
            return []
        self._failed.add(number)
        self._last_frame = number
        error = ServerError("the server is shutting down: try again")
        return [self._reply(wire.encode_failure(error, number))]

    def _switched(self, number: int, plan: int) -> list[Event]:
        """Whether the newest frame changes the plan; older frames may still follow another one."""
        if number < self._last_frame or plan == self._plan:
            return []
        before, self._plan = self._plan, plan
        return [] if before is None else [PlanSwitched(before, plan)]

    def _frame(self, number: int, plan: int) -> ServerFrame:
        frame = self._frames.get(number)
        if frame is not None:
            if plan != frame.plan:
                raise ProtocolError(f"frame {number} follows plan {frame.plan}, not {plan}")
            return frame
        if plan >= len(self._agreed):
            raise ProtocolError(f"this bundle has no plan {plan}: it has {len(self._agreed)}")
        if number <= self._last_frame:
            raise ProtocolError(f"frame {number} is over: frames must be numbered upwards")
        if len(self._frames) >= self._limits.max_frames:
            raise ProtocolError(f"more than {self._limits.max_frames} frames are in flight")
        self._last_frame = number
        if self._failed:
            oldest = number - 2 * self._limits.max_frames
            self._failed = {old for old in self._failed if old > oldest}
        contract = self._agreed[plan]
        self._frames[number] = frame = ServerFrame(plan, contract, list(contract.segments))
        return frame

    def _started(self, number: int, frame: ServerFrame) -> list[Event]:
        started = frame.startable()
        if started:
            self._reservation.use()
        return [RunSegment(number, segment, frame.feeds(segment)) for segment in started]

    def _forget_if_done(self, number: int, frame: ServerFrame) -> list[Event]:
        if not frame.waiting and not frame.running and self._end(number) is not None:
            return [FrameOver(number, "answered", frame.plan)]
        self._hold()
        return []

    def _run_over(self, run: RunSegment) -> ServerFrame | None:
        """Record that a run is over; its frame, None if the frame is over or this is known."""
        frame = self._frames.get(run.frame)
        if frame is not None:
            if run.segment.id not in frame.running:
                return None
            frame.running.remove(run.segment.id)
            return frame
        ending = self._ending.get(run.frame)
        if ending is not None:
            ending.running.discard(run.segment.id)
            if not ending.running:
                del self._ending[run.frame]
                self._hold()
        return None

    def _fail(self, number: int, error: OffloadError) -> list[Event]:
        frame = self._end(number)
        if frame is None:
            return []
        self._failed.add(number)  # its other tensors may still be on their way
        over = FrameOver(number, "failed", frame.plan)
        return [over, self._reply(wire.encode_failure(error, number))]

    def _end(self, number: int) -> ServerFrame | None:
        """Remove a frame; its tensors stay reserved until the segments that run for it are over."""
        frame = self._frames.pop(number, None)
        if frame is not None and frame.running:
            self._ending[number] = frame
        self._hold()
        return frame

    def _all_frames(self) -> list[ServerFrame]:
        return [*self._frames.values(), *self._ending.values()]

    def _hold(self) -> bool:
        """Reserve the uploaded bytes of all frames; whether they fit the server's limit."""
        frames = self._all_frames()
        uploaded_bytes = sum([frame.uploaded_bytes for frame in frames])
        is_idle = not any(frame.running for frame in frames)
        return self._reservation.hold(uploaded_bytes, idle=is_idle)


def _downloads(
    number: int, frame: ServerFrame, outputs: Mapping[str, Any], now_s: float
) -> list[bytes]:
    """Encode the downloads among a segment's outputs.

    Raises:
        InputError: a value cannot be sent, or is too long: the message would break the stream.
    """
    messages = []
    for name, value in outputs.items():
        spec = frame.contract.downloads.get(name)
        if spec is None:
            continue
        try:
            packed = wire.pack(value, spec.codec)
        except ValueError as error:
            raise InputError(f"the answer {name!r} cannot be sent: {error}") from error
        if packed.data.nbytes > spec.limit_bytes:
            raise InputError(
                f"the answer {name!r} takes {format_bytes(packed.data.nbytes)}, the server sends"
                f" {format_bytes(spec.limit_bytes)} at most: use smaller inputs"
            )
        spans, frame.spans = frame.spans, []
        messages.append(wire.tensor_message(number, name, packed, now_s, spans))
    return messages
