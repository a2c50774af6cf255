"""The device's connection to a server: tensors out, answers in, a shared clock."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from offload.costs.encodings import RAW
from offload.errors import DeadlineError, OffloadError, ServerError
from offload.scheduling.timeline import Lane
from offload.units import format_bytes, format_s

from offload_runtimes.device.inference import FrameTensors
from offload_runtimes.device.link_monitor import Liveness, ServerClock
from offload_runtimes.emulate import LinkCost, OwnThread, Pacer, Pipe
from offload_runtimes.protocol.client_state import (
    DeviceSession,
    DownloadReceived,
    Event,
    FailureReceived,
    PongReceived,
    ServerLeaving,
    SessionOpened,
)
from offload_runtimes.protocol.messages import PackedTensor
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES, Contract
from offload_runtimes.transport.connection import Connector, Stream

_PINGS = 5
_HEAD_BYTES = 1024  # of a message with a tensor, but for the tensor and its name
_CLOSE_S = 5.0


class ServerConnection:
    """One session with a server; what comes from it is taken in on the transport's threads."""

    def __init__(
        self,
        connector: Connector,
        contracts: tuple[Contract, ...],
        *,
        link: LinkCost | None = None,
        slowdown: float = 1.0,
        patience_s: float = 1.0,
        passed: Callable[[Lane, int, float], None] = lambda *_: None,
    ) -> None:
        """Nothing is connected before `open`.

        `slowdown` makes decoding take so much longer; `passed` is told of every passage: which
        way, how many bytes, in how many seconds.
        """
        self._connector = connector
        self._machine = DeviceSession(contracts, connector.address)
        self._up = Pipe(link.upload_s) if link else None
        self._down = Pipe(link.download_s) if link else None
        self._pacer = Pacer(slowdown)
        self._lock = threading.Lock()
        self._frames: dict[int, FrameTensors] = {}
        self._begun: dict[int, dict[str, tuple[float, int]]] = {}  # when, and how many bytes
        self._pulse = Liveness(patience_s)
        self._free_s = {Lane.UPLINK: 0.0, Lane.DOWNLINK: 0.0}
        self._pings: dict[int, tuple[float, int]] = {}
        self._passed = passed
        self._last_ping = 0
        self._sent = 0  # messages; told with each ping, so that none is lost unnoticed
        self._outbox: queue.SimpleQueue[Callable[[], bytes | None] | None] = queue.SimpleQueue()
        self._opened = threading.Event()
        self._ponged = threading.Semaphore(0)
        self.clock = ServerClock()
        self.error: OffloadError | None = None
        self.leaving = False
        self._free = 0  # frames that may still be begun
        self._max_message_bytes = MESSAGE_LIMIT_BYTES
        self._freed = threading.Condition(self._lock)
        self._stream: Stream | None = None
        self._is_emulated = link is not None or slowdown > 1

    def open(self, timeout_s: float) -> None:
        """Connect, say hello and set the clocks; `close` on another thread ends the attempt.

        Raises:
            ServerError: the server cannot be reached, is full, or does not answer in time.
            BundleError: the server does not hold the bundle.
            InputError: the certificates cannot be read any more.
        """
        self._outbox.put(self._machine.hello)
        try:
            stream = self._connector.connect(self._outgoing(), timeout_s)
            stream.deliver(OwnThread(self) if self._is_emulated else self)
            with self._lock:
                self._stream = stream
                is_closed = self.error is not None
            if is_closed:
                stream.close()
            self._greet(timeout_s)
        except OffloadError:
            self.close()
            raise

    def begin(self, inference: FrameTensors, until_s: float | None = None) -> None:
        """Give an inference a frame number; waits while the server's allowance is used up.

        Raises:
            DeadlineError: the time is over.
            OffloadError: what ended the session, if it has ended.
        """
        with self._lock:
            while not self._free and self.error is None:
                left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
                if left_s == 0.0:
                    raise DeadlineError("other inferences took all the time allowed: allow more")
                self._freed.wait(left_s)
            if self.error is not None:
                raise self.error
            self._free -= 1
            inference.number = number = self._machine.open_frame(inference.plan)
            self._frames[number] = inference
            self._begun[number] = {}

    def announce(self, inference: FrameTensors, defaults: Sequence[str]) -> None:
        """Queue the message that begins a frame before its tensors; see `DeviceSession.begin`."""
        number, plan = inference.number, inference.plan
        self._outbox.put(
            lambda: self._machine.begin(number, plan, defaults) if number in self._frames else None
        )

    def send(self, inference: FrameTensors, name: str, packed: PackedTensor) -> None:
        """Queue a tensor for sending and return at once.

        Raises:
            ServerError: the server does not take messages as long as this.
        """
        taken_bytes = self._max_message_bytes - len(name.encode()) - _HEAD_BYTES
        if packed.data.nbytes > taken_bytes:
            error = ServerError(
                f"tensor {name!r} takes {format_bytes(packed.data.nbytes)}, server"
                f" {self._machine.server} takes {format_bytes(taken_bytes)} at once: start it with"
                " a larger --max-memory, or send smaller inputs"
            )
            error.retry = False
            raise error

        def message() -> bytes | None:
            number = inference.number
            if number not in self._frames:
                return None
            data = self._machine.upload(number, name, packed, time.monotonic(), inference.plan)
            with self._lock:
                if number in self._begun:
                    self._begun[number][name] = time.monotonic(), len(data)
                self._pulse.sent(len(data))
            if self._up:
                self._up.transit(len(data))
            return data

        self._outbox.put(message)

    def end(self, inference: FrameTensors) -> None:
        """Forget an inference; the server is told if it is still at it. May be called twice."""
        with self._lock:
            number, inference.number = inference.number, 0
            if not number:
                return
            self._frames.pop(number, None)
            self._begun.pop(number, None)
            self._free += 1
            self._freed.notify()
            cancel = self._machine.cancel(number)
        if cancel is not None:
            self._outbox.put(lambda: cancel)

    def ping(self) -> None:
        """Ask the server for a sign of life."""
        self._ask(b"")

    def probe(self, size_bytes: int) -> None:
        """Ask the server to send some bytes back: how long they take tells what the link costs.

        Not while as much is under way for a frame: that will tell, and would be waited for.
        """
        with self._lock:
            begun = [size for sends in self._begun.values() for _, size in sends.values()]
            is_free = sum(begun) < size_bytes
        if is_free:
            self._ask(os.urandom(size_bytes))  # what repeats might be compressed on its way

    def waiting(self, now_s: float) -> tuple[int, float]:
        """What has been on its way for long: so many bytes at most, so many seconds at least."""
        with self._lock:
            return self._pulse.waiting(now_s)

    def _ask(self, data: bytes) -> None:
        with self._lock:
            self._last_ping = number = self._last_ping + 1

        def message() -> bytes:
            made = self._machine.ping(number, self._sent + 1, data)
            size_bytes = len(made) if data else 0
            with self._lock:
                now_s = time.monotonic()
                self._pings[number] = now_s, size_bytes
                self._pulse.sent(size_bytes)
                self._pulse.asked(number, now_s)
            if self._up and data:
                self._up.transit(size_bytes)
            return made

        self._outbox.put(message)

    def beat(self) -> None:
        """Ping, or, when the last pings were never answered, count the server as lost."""
        with self._lock:
            agreed = self._machine.contracts
            coming_bytes = sum(agreed[i.plan].answer_bytes for i in self._frames.values())
            gone = self._pulse.is_gone(time.monotonic(), coming_bytes)
            idle = not self._frames
        if gone:
            self._lose(ServerError(f"server {self._machine.server} gives no sign of life"))
        elif self.leaving and idle:
            self._lose(ServerError(f"server {self._machine.server} is shutting down"))
        else:
            self.ping()

    def close(self) -> None:
        """End the session and wait for its threads; inferences still waiting fail."""
        self._lose(ServerError("the session was closed"))
        if self._stream is not None:
            self._stream.wait(_CLOSE_S)

    def received(self, message: bytes) -> None:
        """A message came from the server."""
        try:
            own_s = time.thread_time() if self._pacer.slowdown > 1 else 0.0
            with self._lock:
                self._pulse.heard(time.monotonic())
                event = self._machine.receive(message)
            if self._pacer.slowdown > 1 and isinstance(event, DownloadReceived):
                self._pacer.learn(event.name, time.thread_time() - own_s)
            if event is not None:
                self._handle(event, len(message))
        except OffloadError as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001  else the thread would end and nobody know
            server = self._machine.server
            self._lose(ServerError(f"an answer of server {server} cannot be read ({error!r})"))

    def ended(self, error: OffloadError | None) -> None:
        """No more will come."""
        self._lose(error or ServerError("the server ended the session: is it shutting down?"))

    def _greet(self, timeout_s: float) -> None:
        """Wait for the server's consent, then for its clock."""
        silent = ServerError(
            f"server {self._machine.server} did not answer within {format_s(timeout_s)}: check the"
            " address, and that the server is running and not overloaded"
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

    def _outgoing(self) -> Iterator[bytes]:
        """Messages made when their turn on the link has come; the transport pulls them."""
        while (make := self._outbox.get()) is not None:
            data = make()
            if data is not None:
                self._sent += 1
                yield data
            del make, data  # two copies of a tensor: the next may be long in coming

    def _handle(self, event: Event, size_bytes: int) -> None:
        match event:
            case SessionOpened(max_frames, max_message_bytes):
                with self._lock:
                    self._free = max_frames
                    self._max_message_bytes = max_message_bytes
                    self._freed.notify_all()
                self._opened.set()
            case DownloadReceived():
                self._emulate(event, size_bytes)
                self._arrived(event, size_bytes)
            case FailureReceived(None, error):
                self._lose(error)
            case ServerLeaving():
                self.leaving = True
            case FailureReceived(frame, error):
                with self._lock:
                    inference = self._frames.get(frame or 0)
                if inference:
                    inference.fail(error)
            case PongReceived(number, server_s):
                with self._lock:
                    asked = self._pings.pop(number, None)
                    self._pulse.answered(number)
                if asked is not None:
                    self._answered(*asked, server_s, size_bytes)

    def _answered(self, sent_s: float, up_bytes: int, server_s: float, down_bytes: int) -> None:
        """A ping came back: with nothing in it, it tells the time; else what bytes cost."""
        if not up_bytes:
            self.clock.learn(sent_s, server_s, time.monotonic())
            self._ponged.release()
            return
        if self._down:
            self._down.transit(down_bytes)
        there_s = self.clock.here_s(server_s)
        up_s = self._occupied(Lane.UPLINK, sent_s, there_s)
        self._passed(Lane.UPLINK, up_bytes, there_s - up_s)
        now_s = time.monotonic()
        self._passed(
            Lane.DOWNLINK, down_bytes, now_s - self._occupied(Lane.DOWNLINK, there_s, now_s)
        )

    def _emulate(self, event: DownloadReceived, size_bytes: int) -> None:
        """Take the time of the emulated link, and of a slower device's decoding."""
        if self._down:
            self._down.transit(size_bytes)
        if event.codec != RAW.codec:  # decoded already, at this machine's pace
            self._pacer.pace(event.name)

    def _arrived(self, event: DownloadReceived, arrived_bytes: int) -> None:
        now_s = time.monotonic()
        with self._lock:
            inference, begun = self._frames.get(event.frame), self._begun.get(event.frame, {})
        if inference is None:
            return
        for span in event.spans:
            if span.is_arrival:
                begun_s, size_bytes = begun.get(span.name, (now_s, 0))
                arrived_s = self.clock.here_s(span.end_s)
                took_s = self._transit(inference, Lane.UPLINK, span.name, begun_s, arrived_s)
                self._pulse.passed(Lane.UPLINK, size_bytes, took_s)
                self._passed(Lane.UPLINK, size_bytes, took_s)
            else:
                start_s, end_s = self.clock.here_s(span.start_s), self.clock.here_s(span.end_s)
                inference.note(Lane.SERVER, span.name, start_s, end_s)
        sent_s = self.clock.here_s(event.sent_s)
        took_s = self._transit(inference, Lane.DOWNLINK, event.name, sent_s, now_s)
        self._pulse.passed(Lane.DOWNLINK, event.size_bytes, took_s)
        self._passed(Lane.DOWNLINK, arrived_bytes, took_s)
        inference.put({event.name: event.value})

    def _transit(
        self, inference: FrameTensors, lane: Lane, name: str, ready_s: float, end_s: float
    ) -> float:
        """Note a tensor's passage; the seconds it took."""
        start_s = self._occupied(lane, ready_s, end_s)
        inference.note(lane, name, start_s, end_s)
        return end_s - start_s

    def _occupied(self, lane: Lane, ready_s: float, end_s: float) -> float:
        """When a passage began: the link carries one message at a time, so once it was free."""
        start_s = min(max(ready_s, self._free_s[lane]), end_s)
        self._free_s[lane] = end_s
        return start_s

    def _lose(self, error: OffloadError) -> None:
        """The session is over: everyone who waits learns why."""
        with self._lock:
            self.error = self.error or error
            waiting = list(self._frames.values())
            self._frames.clear()
            self._freed.notify_all()
            stream = self._stream
        self._opened.set()
        self._ponged.release()
        self._outbox.put(None)
        if stream is not None:
            stream.close()
        for inference in waiting:
            inference.fail(self.error)
