"""The device's connection to a server: send tensors, receive answers, ping, read its clock."""

import os
import threading
import time
from collections.abc import Callable, Sequence

from offload.errors import DeadlineError, OffloadError, ServerError
from offload.scheduling.timeline import Lane
from offload.units import format_bytes, format_s

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.device.link_monitor import LinkMonitor, ServerClock
from offload_runtimes.device.segment_executor import FrameTensors
from offload_runtimes.device.speed_monitor import SpeedMonitor
from offload_runtimes.protocol.client_state import DeviceSession, DownloadReceived, FrameFailed
from offload_runtimes.protocol.messages import PackedTensor, tensor_message
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES, Contract
from offload_runtimes.transport.connection import Connector, Stream
from offload_runtimes.transport.outbox import Outbox

_PINGS = 5
_HEADER_BYTES = 1024  # of a message with a tensor, without the tensor and its name
_CLOSE_S = 5.0


class ServerConnection:
    """One session with a server; the transport's threads deliver what comes from it.

    Attributes:
        clock: the server's clock.
        error: why the session is over; None while it lasts.
        leaving: whether the server takes no more frames.
        on_loss: called once the session is over, and when the server takes no more frames.
    """

    def __init__(
        self,
        connector: Connector,
        contracts: tuple[Contract, ...],
        monitor: LinkMonitor,
        speeds: SpeedMonitor,
        patience_s: float = 1.0,
    ) -> None:
        """Nothing is connected before `open`; `monitor` is reset for this connection."""
        monitor.reset()
        self._connector = connector
        self._session = DeviceSession(contracts, connector.address)
        self._monitor = monitor
        self._speeds = speeds
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._begun: set[FrameTensors] = set()  # of which nothing was sent yet
        self._frames: dict[int, FrameTensors] = {}
        self._free_s = {Lane.UPLINK: 0.0, Lane.DOWNLINK: 0.0}
        self._pings: dict[int, tuple[float, int]] = {}  # when sent, bytes of a probe
        self._last_ping = 0
        self._outbox = Outbox()
        self._opened = threading.Event()
        self._ponged = threading.Semaphore(0)
        self.clock = ServerClock()
        self.error: OffloadError | None = None
        self.leaving = False
        self.on_loss: Callable[[], None] = lambda: None
        self._free_frames = 0  # frames that may still begin
        self._max_message_bytes = MESSAGE_LIMIT_BYTES
        self._freed = threading.Condition(self._lock)
        self._stream: Stream | None = None

    @property
    def server(self) -> str:
        """The server's address."""
        return self._session.server

    def open(self, timeout_s: float) -> None:
        """Connect, say hello and read the server's clock.

        `close` on another thread ends the attempt.

        Raises:
            ServerError: the server cannot be reached, is full, or does not answer in time.
            BundleError: the server does not hold the bundle.
            InputError: the certificates cannot be read any more.
        """
        self._outbox.put(self._session.hello)
        try:
            stream = self._connector.connect(self._outbox, timeout_s)
            stream.deliver(self)
            with self._lock:
                self._stream = stream
                is_closed = self.error is not None
            if is_closed:
                stream.close()
            silent = ServerError(
                f"server {self._session.server} did not answer within {format_s(timeout_s)}: check"
                " the address, and that the server is running and not overloaded"
            )
            if not self._opened.wait(timeout_s):
                raise silent
            for _ in range(_PINGS):
                if self.error is not None:
                    raise self.error
                self.ping()
                if not self._ponged.acquire(timeout=timeout_s):
                    raise silent
            if self.error is not None:
                raise self.error
        except OffloadError:
            self.close()
            raise

    def begin(self, frame: FrameTensors, until_s: float | None = None) -> None:
        """Begin a frame; waits while the server takes no more frames at once.

        The frame gets its number with its first message: the server refuses a frame that is
        numbered lower than one before it, and several threads may begin frames.

        Raises:
            DeadlineError: the time is over.
            OffloadError: the session has ended, with the reason.
        """
        with self._lock:
            while not self._free_frames and self.error is None:
                left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
                if left_s == 0.0:
                    raise DeadlineError("other inferences took all the time allowed: allow more")
                self._freed.wait(left_s)
            if self.error is not None:
                raise self.error
            self._free_frames -= 1
            self._begun.add(frame)

    def _number(self, frame: FrameTensors) -> int:
        """The frame's number, a new one for its first message; 0 if the frame has ended."""
        with self._lock:
            if frame in self._begun:
                self._begun.remove(frame)
                frame.number = self._session.open_frame(frame.plan)
                self._frames[frame.number] = frame
            return frame.number if frame.number in self._frames else 0

    def announce(self, frame: FrameTensors, defaults: Sequence[str]) -> None:
        """Queue the message that begins a frame before its tensors; see `DeviceSession.begin`."""

        def message() -> bytes | None:
            number = self._number(frame)
            return self._session.begin(number, frame.plan, defaults) if number else None

        self._outbox.put(message)

    def send(self, frame: FrameTensors, name: str, packed: PackedTensor) -> None:
        """Queue a tensor for sending and return at once.

        Raises:
            ServerError: the tensor is longer than the server takes in one message.
        """
        limit_bytes = self._max_message_bytes - len(name.encode()) - _HEADER_BYTES
        if packed.data.nbytes > limit_bytes:
            error = ServerError(
                f"tensor {name!r} takes {format_bytes(packed.data.nbytes)}, server"
                f" {self._session.server} takes {format_bytes(limit_bytes)} at once: start it with"
                " a larger --max-memory, or send smaller inputs"
            )
            error.retry = False
            raise error

        def message() -> bytes | None:
            number = self._number(frame)
            if not number:
                return None
            data = tensor_message(number, name, packed, time.monotonic(), plan=frame.plan)
            with self._lock:
                frame.uploads[name] = time.monotonic(), len(data)
            self._monitor.sent(len(data))
            return data

        self._outbox.put(message, packed.data.nbytes)

    def end(self, frame: FrameTensors) -> None:
        """Forget a frame and cancel it on the server if it is unfinished there.

        May be called twice.
        """
        with self._lock:
            number, frame.number = frame.number, 0
            if frame in self._begun:
                self._begun.remove(frame)
                self._free_frames += 1
                self._freed.notify()
            self._free(number)
            cancel = self._session.cancel(number)
        if cancel is not None:
            self._outbox.put(lambda: cancel)

    def _free(self, number: int) -> None:
        """Let another frame begin in place of this one, if it is still under way."""
        if self._frames.pop(number, None) is not None:
            self._free_frames += 1
            self._freed.notify()

    def ping(self, data: bytes = b"") -> None:
        """Ask the server to answer at once, with the same data."""
        with self._lock:
            self._last_ping = number = self._last_ping + 1

        def message() -> bytes:
            # The ping carries the number of messages sent, so that the server notices a lost one.
            ping = self._session.ping(number, self._outbox.count + 1, data)
            size_bytes = len(ping) if data else 0
            now_s = time.monotonic()
            with self._lock:
                self._pings[number] = now_s, size_bytes
            self._monitor.sent(size_bytes)
            self._monitor.pinged(number, now_s)
            return ping

        self._outbox.put(message, len(data))

    def probe(self, size_bytes: int) -> None:
        """Have the server send some bytes back, to measure the link.

        Does nothing while a frame uploads at least as many bytes: that upload measures the link,
        and would delay the probe.
        """
        with self._lock:
            frames = self._frames.values()
            under_way = [size for frame in frames for _, size in frame.uploads.values()]
        if sum(under_way) < size_bytes:
            self.ping(os.urandom(size_bytes))  # random bytes cannot be compressed on their way

    def beat(self) -> None:
        """Ping the server; end the session if it is silent for too long or leaving and idle."""
        with self._lock:
            contracts = self._session.contracts
            expected_bytes = sum(contracts[i.plan].answer_bytes for i in self._frames.values())
            is_idle = not self._frames and not self._begun
        if self._monitor.is_lost(time.monotonic(), expected_bytes, self._patience_s):
            self._lose(ServerError(f"server {self._session.server} gives no sign of life"))
        elif self.leaving and is_idle:
            self._lose(ServerError(f"server {self._session.server} is shutting down"))
        else:
            self.ping()

    def close(self) -> None:
        """End the session and wait for its threads; frames that still wait fail."""
        self._lose(ServerError("the session was closed"))
        if self._stream is not None:
            self._stream.wait(_CLOSE_S)
            self._outbox.wait(_CLOSE_S)

    def received(self, message: bytes) -> None:
        """Handle a message from the server."""
        if not message:
            # No server sends one. gRPC gives it, rarely, before the error of a stream that a
            # balancer ends with a status of HTTP.
            return
        try:
            self._monitor.heard(time.monotonic())
            with self._lock:
                event = self._session.receive(message)
            match event:
                case pb.Welcome():
                    with self._lock:
                        self._free_frames = event.max_frames
                        self._max_message_bytes = event.max_message_bytes
                        self._freed.notify_all()
                    self._opened.set()
                case DownloadReceived():
                    self._downloaded(event, len(message))
                case FrameFailed():
                    with self._lock:
                        frame = self._frames.get(event.frame)
                        self._free(event.frame)
                    if frame:
                        frame.fail(event.error)
                case pb.Pong():
                    self._speeds.waited(event.wait_s)
                    self._answered(event.number, event.server_s, len(message))
                case pb.Goodbye():
                    # The next connection may begin before this one is over.
                    self._monitor = self._monitor.copy()
                    self.leaving = True
                    self.on_loss()
        except OffloadError as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001  else the thread would end unnoticed
            server = self._session.server
            self._lose(ServerError(f"an answer of server {server} cannot be read ({error!r})"))

    def ended(self, error: OffloadError | None) -> None:
        """The stream has ended."""
        server = self._session.server
        self._lose(error or ServerError(f"server {server} ended the session: is it shutting down?"))

    def _answered(self, number: int, server_s: float, size_bytes: int) -> None:
        """An empty pong shows the server's clock, one with data the cost of its bytes."""
        self._monitor.ponged(number)
        with self._lock:
            sent_s, probe_bytes = self._pings.pop(number, (0.0, None))
        if probe_bytes is None:
            return
        now_s = time.monotonic()
        if not probe_bytes:
            self.clock.learn(sent_s, server_s, now_s)
            self._ponged.release()
            return
        arrived_s = self.clock.here_s(server_s)
        up_s = arrived_s - self._start_s(Lane.UPLINK, sent_s, arrived_s)
        self._monitor.passed(Lane.UPLINK, probe_bytes, up_s)
        down_s = now_s - self._start_s(Lane.DOWNLINK, arrived_s, now_s)
        self._monitor.passed(Lane.DOWNLINK, size_bytes, down_s)

    def _downloaded(self, event: DownloadReceived, size_bytes: int) -> None:
        """Add a tensor to its frame, and learn from the timings that came with it.

        The tensor is added first. The estimates of the link and of the server's speed are updated
        while the waiting thread wakes.
        """
        now_s = time.monotonic()
        with self._lock:
            frame = self._frames.get(event.frame)
        if frame is None:
            return
        passed: list[tuple[Lane, int, float]] = []  # uploads: lane, bytes and seconds
        for span in event.spans:
            end_s = self.clock.here_s(span.end_s)
            if span.kind == pb.Span.ARRIVAL:
                sent_s, upload_bytes = frame.uploads.get(span.name, (now_s, 0))
                start_s = self._start_s(Lane.UPLINK, sent_s, end_s)
                frame.record(Lane.UPLINK, span.name, start_s, end_s)
                passed.append((Lane.UPLINK, upload_bytes, end_s - start_s))
            else:
                start_s = self.clock.here_s(span.start_s)
                frame.record(Lane.SERVER, span.name, start_s, end_s)
        start_s = self._start_s(Lane.DOWNLINK, self.clock.here_s(event.sent_s), now_s)
        frame.record(Lane.DOWNLINK, event.name, start_s, now_s)
        frame.put({event.name: event.value})
        for lane, upload_bytes, seconds in passed:
            self._monitor.tensor_passed(lane, upload_bytes, seconds)
            self._monitor.passed(lane, upload_bytes, seconds)
        self._monitor.tensor_passed(Lane.DOWNLINK, event.size_bytes, now_s - start_s)
        self._monitor.passed(Lane.DOWNLINK, size_bytes, now_s - start_s)
        if not frame.rows:  # else it takes a part of the predicted time
            self._speeds.served(frame.plan, event.spans, now_s)
        if event.is_last:
            # The server is done with it; the caller may take the answer much later.
            with self._lock:
                self._free(event.frame)

    def _start_s(self, lane: Lane, ready_s: float, end_s: float) -> float:
        """When a message began to pass: a link carries one message at a time, so once it was free.

        Called once for each message, in the order of their ends.
        """
        start_s = min(max(ready_s, self._free_s[lane]), end_s)
        self._free_s[lane] = end_s
        return start_s

    def _lose(self, error: OffloadError) -> None:
        """End the session; everyone who waits gets the error."""
        with self._lock:
            is_first = self.error is None
            self.error = self.error or error.with_traceback(None)
            waiting = [*self._frames.values(), *self._begun]
            self._frames.clear()
            self._begun.clear()
            self._freed.notify_all()
            stream = self._stream
        self._opened.set()
        self._ponged.release()
        self._outbox.close()
        if stream is not None:
            stream.close()
        for frame in waiting:
            frame.fail(self.error)
        if is_first:
            self.on_loss()
