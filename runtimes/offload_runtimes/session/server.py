"""The server's end of a session: which segments can run, what goes back, what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import offload
from offload.errors import BundleError, InputError, OffloadError, ServerError
from offload.plan.plan import Segment
from offload.units import format_bytes

import offload_runtimes.wire.offload_pb2 as pb
from offload_runtimes.engine import Array
from offload_runtimes.session.memory import Account, Memory
from offload_runtimes.wire import messages as wire
from offload_runtimes.wire.contract import Contract
from offload_runtimes.wire.messages import ProtocolError

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
class Limits:
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
class Run:
    """Run a segment, then call `finished` or `failed`."""

    frame: int
    segment: Segment
    feeds: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Over:
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
class Switched:
    """The device's frames follow another plan from now on."""

    before: int
    after: int


Event: TypeAlias = Reply | Run | Over | Close | Switched


@dataclass
class _Frame:
    """One inference in flight: its plan, the tensors at hand, segments that haven't started."""

    plan: int
    contract: Contract
    waiting: list[Segment]
    tensors: dict[str, Array] = field(default_factory=dict)
    spans: list[wire.Happening] = field(default_factory=list)
    running: int = 0
    uploaded_bytes: int = 0  # of the tensors at hand, those that came from the device

    @property
    def held_bytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())

    def startable(self) -> list[Segment]:
        """Segments whose inputs are all here, taken off the waiting list."""
        is_here = self.tensors.__contains__
        ready = [segment for segment in self.waiting if all(map(is_here, segment.inputs))]
        if ready:
            self.waiting = [segment for segment in self.waiting if segment not in ready]
            self.running += len(ready)
        return ready


class ServerSession:
    """State of one session; events tell the shell around it what to do.

    Not safe for several threads at once: the shell holds a lock around each call.
    """

    def __init__(
        self,
        contracts: Mapping[str, Sequence[Contract]],
        limits: Limits,
        account: Account | None = None,
    ) -> None:
        """`contracts` holds those of each bundle by its digest, in the order of its plans.

        What was uploaded is held on `account`; what segments made is the engines' to count.
        """
        self._contracts = contracts
        self._limits = limits
        self._account = account or Memory().account(lambda: None)
        self._agreed: Sequence[Contract] = ()
        self._frames: dict[int, _Frame] = {}
        self._ending: dict[int, _Frame] = {}  # over, but something of theirs still runs
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
        self, run: Run, outputs: Mapping[str, Array], start_s: float, end_s: float
    ) -> list[Event]:
        """A segment made its outputs: send the downloads, run what they allow."""
        frame = self._reported(run)
        if frame is None:
            return []
        refused = _too_large(outputs, frame.contract)
        if refused:
            return self._fail(run.frame, refused)
        frame.tensors.update(outputs)
        frame.spans.append((pb.Span.COMPUTE, run.segment.id, start_s, end_s))
        events = self._started(run.frame, frame)
        for name, array in outputs.items():
            if name in frame.contract.downloads:
                events.append(self._download(run.frame, frame, name, array, end_s))
        return [*events, *self._forget_if_done(run.frame, frame)]

    def failed(self, run: Run, error: OffloadError) -> list[Event]:
        """A segment could not be run: that frame fails, the session goes on."""
        return [] if self._reported(run) is None else self._fail(run.frame, error)

    def close(self, error: OffloadError | None = None) -> list[Event]:
        """End the session and free what it held."""
        if self.closed:
            return []
        self.closed = True
        events: list[Event] = [Over(frame, "dropped") for frame in self._frames]
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
        if body == "cancel":
            number = message.cancel.frame
            return [] if self._end(number) is None else [Over(number, "cancelled")]
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
                f"bundle {hello.bundle[:12]} is not served here: start the server with it"
            )
        welcome = pb.Welcome(protocol=wire.PROTOCOL, max_frames=self._limits.max_frames)
        return wire.message(welcome=welcome)

    def _upload(self, tensor: pb.Tensor, payload: memoryview, now_s: float) -> list[Event]:
        if self._draining and tensor.frame > self._last_frame:
            self._failed.add(tensor.frame)
            self._last_frame = tensor.frame
            error = ServerError("the server is shutting down: try again")
            return [self._reply(wire.encode_failure(error, tensor.frame))]
        if tensor.frame in self._failed:
            return []
        frame = self._frame(tensor.frame, tensor.plan)
        layout, array = wire.decode_tensor(tensor, payload, frame.contract.uploads)
        if layout.name in frame.tensors:
            raise ProtocolError(f"tensor {layout.name!r} came twice for one frame")
        frame.tensors[layout.name] = array
        frame.uploaded_bytes += array.nbytes
        if sum(held.held_bytes for held in self._held()) > self._limits.max_bytes:
            raise ProtocolError("too many bytes in flight: wait for answers before sending more")
        if not self._hold():
            needed_bytes = frame.uploaded_bytes
            frame.uploaded_bytes -= frame.tensors.pop(layout.name).nbytes
            return self._fail(tensor.frame, _full(needed_bytes, self._account.limit_bytes))
        frame.spans.append((pb.Span.ARRIVAL, layout.name, 0.0, now_s))
        return [*self._switched(tensor.frame, frame.plan), *self._started(tensor.frame, frame)]

    def _switched(self, number: int, plan: int) -> list[Event]:
        """What the newest frame tells: older ones may still be under way by another plan."""
        if number < self._last_frame or plan == self._plan:
            return []
        before, self._plan = self._plan, plan
        return [] if before is None else [Switched(before, plan)]

    def _frame(self, number: int, plan: int) -> _Frame:
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
        self._frames[number] = frame = _Frame(plan, agreed, list(agreed.segments))
        return frame

    def _started(self, number: int, frame: _Frame) -> list[Event]:
        started = frame.startable()
        if started:
            self._hold()
        return [
            Run(number, segment, {name: frame.tensors[name] for name in segment.inputs})
            for segment in started
        ]

    def _download(self, number: int, frame: _Frame, name: str, array: Array, now_s: float) -> Reply:
        encoding = frame.contract.downloads[name].encoding
        spans, frame.spans = frame.spans, []
        return self._reply(wire.encode_tensor(number, name, array, encoding, now_s, spans))

    def _forget_if_done(self, number: int, frame: _Frame) -> list[Event]:
        if not frame.waiting and not frame.running and self._end(number) is not None:
            return [Over(number, "answered")]
        self._hold()
        return []

    def _reported(self, run: Run) -> _Frame | None:
        """Note that a run is over; its frame, None when that is over, too."""
        frame, ending = self._frames.get(run.frame), self._ending.get(run.frame)
        if frame is not None:
            frame.running -= 1
        elif ending is not None:
            ending.running -= 1
            if not ending.running:
                del self._ending[run.frame]
                self._hold()
        return frame

    def _fail(self, number: int, error: OffloadError) -> list[Event]:
        if self._end(number) is None:
            return []
        self._failed.add(number)  # the rest of its tensors may still be on their way
        return [Over(number, "failed"), self._reply(wire.encode_failure(error, number))]

    def _end(self, number: int) -> _Frame | None:
        """Take a frame out of flight; what runs for it holds its tensors until it is over."""
        frame = self._frames.pop(number, None)
        if frame is not None and frame.running:
            self._ending[number] = frame
        self._hold()
        return frame

    def _held(self) -> list[_Frame]:
        return [*self._frames.values(), *self._ending.values()]

    def _hold(self) -> bool:
        """Tell the account what this session holds; whether that is allowed."""
        size_bytes = running = 0
        for frame in self._held():
            size_bytes += frame.uploaded_bytes
            running += frame.running
        return self._account.hold(size_bytes, still=not running)


def _too_large(outputs: Mapping[str, Array], contract: Contract) -> InputError | None:
    """What is wrong with outputs to be sent: a message that is too long breaks its stream."""
    for name, array in outputs.items():
        port = contract.downloads.get(name)
        if port is not None and array.nbytes > port.limit_bytes:
            return InputError(
                f"the answer {name!r} takes {format_bytes(array.nbytes)}, this bundle allows"
                f" {format_bytes(port.limit_bytes)}: give it smaller inputs"
            )
    return None
