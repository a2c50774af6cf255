"""The server's end of a session: which segments can run, what goes back, what is refused."""

from collections.abc import Mapping, Sequence
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
_FULL = (
    "the server holds as much for its devices as it may (--max-memory): try again, or allow more"
)


def _full(needed_bytes: int, limit_bytes: float) -> OffloadError:
    """Why a frame is refused that needs so much: it never fits, or others hold too much now."""
    if needed_bytes <= limit_bytes:
        return ServerError(_FULL)
    return InputError(
        f"this inference sends {format_bytes(needed_bytes)} to the server, which allows"
        f" {format_bytes(int(limit_bytes))} for what all devices send (--max-memory): give it a"
        " smaller batch, or allow more"
    )


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one session may hold.

    Attributes:
        max_frames: frames in flight.
        max_bytes: bytes of tensors in flight.
    """

    max_frames: int = 8
    max_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Reply:
    """Send a message to the device."""

    data: bytes


@dataclass(frozen=True, slots=True)
class RunSegment:
    """Run a segment, then call `finished` or `failed`.

    `feeds` are arrays, lists (sequences) and dicts (maps).
    """

    frame: int
    segment: Segment
    feeds: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FrameOver:
    """A frame is over: stop what still runs for it.

    `outcome` is `answered`, `failed`, `cancelled` (by the device) or `dropped` (with the session).
    """

    frame: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Close:
    """Send a last message and end the session."""

    data: bytes
    error: OffloadError


@dataclass(frozen=True, slots=True)
class PlanSwitched:
    """The device's frames follow another plan from now on."""

    before: int
    after: int


Event: TypeAlias = Reply | RunSegment | FrameOver | Close | PlanSwitched


@dataclass
class _ServerFrame:
    """One inference in flight: its plan, the tensors at hand, segments that haven't started.

    Attributes:
        awaited: inputs with a default that the device announced and that have not come.
        running: ids of the segments that have started and are not over.
        uploaded_bytes: memory of the tensors at hand that came from the device.
        made_bytes: memory of those that segments made.
    """

    plan: int
    contract: Contract
    waiting: list[Segment]
    awaited: set[str] = field(default_factory=set)
    tensors: dict[str, Any] = field(default_factory=dict)
    spans: list[wire.Happening] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    uploaded_bytes: int = 0
    made_bytes: int = 0

    def startable(self) -> list[Segment]:
        """Segments whose inputs are all here, taken off the waiting list."""
        ready = [segment for segment in self.waiting if self._can_start(segment)]
        if ready:
            self.waiting = [segment for segment in self.waiting if segment not in ready]
            self.running.update(segment.id for segment in ready)
        return ready

    def _can_start(self, segment: Segment) -> bool:
        is_here = self.tensors.__contains__
        return all(map(is_here, segment.inputs)) and (
            not self.awaited
            or self.awaited.isdisjoint(self.contract.defaults.get(segment.part, ()))
        )

    def feeds(self, segment: Segment) -> dict[str, Any]:
        """What a segment is given: its inputs, and the inputs with a default that came."""
        given = self.contract.defaults.get(segment.part, ())
        names = (*segment.inputs, *(name for name in given if name in self.tensors))
        return {name: self.tensors[name] for name in names}


class ServerSession:
    """State of one session; events tell the shell around it what to do.

    Not safe for several threads at once: the shell holds a lock around each call.
    """

    def __init__(
        self,
        contracts: Mapping[str, Sequence[Contract]],
        limits: SessionLimits,
        account: Reservation | None = None,
        max_message_bytes: int = MESSAGE_LIMIT_BYTES,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`contracts` holds those of each bundle by its digest, in the order of its plans; `names`
        is what a device that asks for another bundle is told of them.

        What was uploaded is held on `account`; what segments made is the engines' to count. The
        device is told that messages may be as long as `max_message_bytes`.
        """
        self._max_message_bytes = max_message_bytes
        self._contracts = contracts
        self._names = names
        self._limits = limits
        self._account = account or MemoryBudget().account(lambda: None)
        self._agreed: Sequence[Contract] = ()
        self._frames: dict[int, _ServerFrame] = {}
        self._ending: dict[int, _ServerFrame] = {}  # over, but something of theirs still runs
        self._last_frame = 0
        self._failed: set[int] = set()
        self._draining = False
        self._plan: int | None = None
        self._received = 0
        self._sent = 0
        self.closed = False

    @property
    def frames(self) -> int:
        """Frames begun so far."""
        return self._last_frame

    @property
    def bundle(self) -> str | None:
        """Digest of the bundle of this session; None before the hello."""
        return self._agreed[0].digest if self._agreed else None

    @property
    def uploaded_bytes(self) -> int:
        """What it holds of what was uploaded, for frames in flight and for what still runs."""
        return sum([frame.uploaded_bytes for frame in self._held()])

    @property
    def frames_in_flight(self) -> int:
        """Frames that are not answered yet."""
        return len(self._frames)

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """What one message from the device asks for; a wrong one closes the session."""
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
        """A segment made its outputs: send the downloads, run what they allow."""
        frame = self._reported(run)
        if frame is None:
            return []
        frame.spans.append((pb.Span.COMPUTE, run.segment.id, start_s, end_s))
        try:
            downloads = _downloads(run.frame, frame, outputs, end_s)
        except InputError as error:
            return self._fail(run.frame, error)
        frame.tensors.update(outputs)
        frame.made_bytes += sum(map(size_bytes, outputs.values()))
        events: list[Event] = self._started(run.frame, frame)
        events.extend(map(self._reply, downloads))
        return [*events, *self._forget_if_done(run.frame, frame)]

    def failed(self, run: RunSegment, error: OffloadError) -> list[Event]:
        """A segment could not be run, or its outputs not be sent: that frame fails alone."""
        self._reported(run)
        return self._fail(run.frame, error)

    def close(self, error: OffloadError | None = None) -> list[Event]:
        """End the session and free what it held."""
        if self.closed:
            return []
        self.closed = True
        events: list[Event] = [FrameOver(frame, "dropped") for frame in self._frames]
        self._frames.clear()
        self._ending.clear()  # what hasn't begun of theirs never will
        self._hold()
        return events if error is None else [*events, Close(wire.encode_failure(error), error)]

    def drain(self) -> list[Event]:
        """Take no more frames and say so; those in flight are still answered."""
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
            return [self._pong(message.ping, now_s)]
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
            return [] if self._end(number) is None else [FrameOver(number, "cancelled")]
        raise ProtocolError(f"a device must not send a {body}")

    def _pong(self, ping: pb.Ping, now_s: float) -> Reply:
        sent = self._sent + 1
        pong = pb.Pong(number=ping.number, server_s=now_s, data=ping.data, sent=sent)
        return self._reply(wire.message(pong=pong))

    def _reply(self, data: bytes) -> Reply:
        """Replies are sent in the order in which they are made."""
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
            raise BundleError(
                f"bundle {hello.bundle[:12]} is not served here, {self._held_bundles()}: deploy one"
                " bundle to the device and the server"
            )
        welcome = pb.Welcome(
            protocol=wire.PROTOCOL,
            max_frames=self._limits.max_frames,
            max_message_bytes=self._max_message_bytes,
        )
        return wire.message(welcome=welcome)

    def _held_bundles(self) -> str:
        """The bundles that are served, as a part of a sentence."""
        found = [
            f"{digest[:12]} ({name})" if (name := self._names.get(digest)) else digest[:12]
            for digest in list(self._contracts)
        ]
        more = len(found) - _NAMED_BUNDLES
        names = ", ".join([*found[:_NAMED_BUNDLES], *([f"{more} more"] if more > 0 else [])])
        return f"the server holds {names}" if found else "the server holds none"

    def _begin(self, begin: pb.Begin) -> list[Event]:
        """A frame that has nothing to upload, or whose inputs with a default come first."""
        if refused := self._refused(begin.frame):
            return refused
        if begin.frame in self._frames:
            raise ProtocolError(f"frame {begin.frame} has begun already")
        frame = self._frame(begin.frame, begin.plan)
        known = {name for names in frame.contract.defaults.values() for name in names}
        frame.awaited = set(begin.defaults)
        if not known.issuperset(frame.awaited):
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
        ports = frame.contract.uploads
        layout = wire.read_header(tensor, payload, ports)
        if layout.name in frame.tensors:
            raise ProtocolError(f"tensor {layout.name!r} came twice for one frame")
        # Memory is taken before anything is decoded: a few bytes may stand for many.
        frame.uploaded_bytes += layout.memory_bytes
        held_bytes = sum(held.uploaded_bytes + held.made_bytes for held in self._held())
        if held_bytes > self._limits.max_bytes:
            raise ProtocolError("too many bytes in flight: wait for answers before sending more")
        if not self._hold():
            needed_bytes = frame.uploaded_bytes
            frame.uploaded_bytes -= layout.memory_bytes
            return self._fail(tensor.frame, _full(needed_bytes, self._account.limit_bytes))
        frame.tensors[layout.name] = wire.decode(layout, payload, ports)
        frame.awaited.discard(layout.name)
        frame.spans.append((pb.Span.ARRIVAL, layout.name, 0.0, now_s))
        return [*self._switched(tensor.frame, frame.plan), *self._started(tensor.frame, frame)]

    def _refused(self, number: int) -> list[Event]:
        """What a new frame is told while the server shuts down; nothing: it may begin."""
        if not self._draining or number <= self._last_frame:
            return []
        self._failed.add(number)
        self._last_frame = number
        error = ServerError("the server is shutting down: try again")
        return [self._reply(wire.encode_failure(error, number))]

    def _switched(self, number: int, plan: int) -> list[Event]:
        """What the newest frame tells: older ones may still be under way by another plan."""
        if number < self._last_frame or plan == self._plan:
            return []
        before, self._plan = self._plan, plan
        return [] if before is None else [PlanSwitched(before, plan)]

    def _frame(self, number: int, plan: int) -> _ServerFrame:
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
        agreed = self._agreed[plan]
        self._frames[number] = frame = _ServerFrame(plan, agreed, list(agreed.segments))
        return frame

    def _started(self, number: int, frame: _ServerFrame) -> list[Event]:
        started = frame.startable()
        if started:
            self._hold()
        return [RunSegment(number, segment, frame.feeds(segment)) for segment in started]

    def _forget_if_done(self, number: int, frame: _ServerFrame) -> list[Event]:
        if not frame.waiting and not frame.running and self._end(number) is not None:
            return [FrameOver(number, "answered")]
        self._hold()
        return []

    def _reported(self, run: RunSegment) -> _ServerFrame | None:
        """Note that a run is over; its frame, None when that is over, or was told before."""
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
        if self._end(number) is None:
            return []
        self._failed.add(number)  # the rest of its tensors may still be on their way
        return [FrameOver(number, "failed"), self._reply(wire.encode_failure(error, number))]

    def _end(self, number: int) -> _ServerFrame | None:
        """Take a frame out of flight; what runs for it holds its tensors until it is over."""
        frame = self._frames.pop(number, None)
        if frame is not None and frame.running:
            self._ending[number] = frame
        self._hold()
        return frame

    def _held(self) -> list[_ServerFrame]:
        return [*self._frames.values(), *self._ending.values()]

    def _hold(self) -> bool:
        """Tell the account what this session holds; whether that is allowed."""
        uploaded_bytes, runs = 0, False
        for frame in self._held():
            uploaded_bytes += frame.uploaded_bytes
            runs = runs or bool(frame.running)
        return self._account.hold(uploaded_bytes, still=not runs)


def _downloads(
    number: int, frame: _ServerFrame, outputs: Mapping[str, Any], now_s: float
) -> list[bytes]:
    """The messages that send back what a segment made, all of them or none.

    Raises:
        InputError: a value cannot be sent: a message that is too long breaks its stream.
    """
    messages = []
    for name, value in outputs.items():
        port = frame.contract.downloads.get(name)
        if port is None:
            continue
        try:
            packed = wire.pack(value, port.encoding)
        except ValueError as error:
            raise InputError(f"the answer {name!r} cannot be sent: {error}") from error
        if packed.data.nbytes > port.limit_bytes:
            raise InputError(
                f"the answer {name!r} takes {format_bytes(packed.data.nbytes)}, the server sends"
                f" {format_bytes(port.limit_bytes)} at most: give it smaller inputs"
            )
        spans, frame.spans = frame.spans, []
        messages.append(wire.tensor_message(number, name, packed, now_s, spans))
    return messages
