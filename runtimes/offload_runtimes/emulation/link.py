"""Emulate a link with given costs between a device and a server on one machine."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from google.protobuf.message import DecodeError
from offload.costs.encodings import RAW
from offload.errors import OffloadError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.device.segment_executor import WarmRunTimes
from offload_runtimes.device.session_options import LinkCost
from offload_runtimes.emulation.pacing import Pacer, as_pacer, sleep_until
from offload_runtimes.protocol.messages import ProtocolError, parse
from offload_runtimes.transport.connection import Connector, Receiver, Stream


class Pipe:
    """One direction of an emulated link: messages pass one after another, each at its cost.

    Only one thread may call it; the call returns when the message has passed.
    """

    def __init__(
        self,
        cost_s: Callable[[float], float],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cost_s = cost_s
        self._clock = clock
        self._sleep = sleep
        self._free_s = float("-inf")

    def transit(self, size_bytes: int) -> None:
        """Return when a message that is ready now has passed."""
        self._free_s = max(self._clock(), self._free_s) + self._cost_s(size_bytes)
        sleep_until(self._free_s, self._clock, self._sleep)


def emulate_link(
    connector: Connector, link: LinkCost | None, slowdown: float | WarmRunTimes = 1.0
) -> Connector:
    """Wrap a connector for a session's options `link` and `slowdown`, if they have any effect."""
    factor = as_pacer(slowdown).slowdown
    return connector if link is None and factor == 1 else EmulatedLink(connector, link, factor)


class EmulatedLink:
    """Wraps a connector: messages take as long as on a slower link, decoding as on a slower device.

    Args:
        connector: opens the real streams.
        link: costs of the emulated link; None: messages are not delayed.
        slowdown: decoding takes this many times as long.
        is_delayed: whether a message takes time on the link. By default only tensors and the
            bytes of probes do: all other messages of a session are small.
    """

    def __init__(
        self,
        connector: Connector,
        link: LinkCost | None,
        slowdown: float = 1.0,
        is_delayed: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._connector = connector
        self._link = link
        self._slowdown = slowdown
        self._is_delayed = is_delayed or _carries_bytes
        self.address = connector.address

    def connect(self, outgoing: Iterator[bytes], timeout_s: float) -> "EmulatedStream":
        """A new stream over the emulated link."""
        download = None
        if self._link is not None:
            outgoing = self._delayed(outgoing, Pipe(self._link.upload_s))
            download = Pipe(self._link.download_s)

        def delay(message: bytes) -> None:
            if download and self._is_delayed(message):
                download.transit(len(message))

        stream = self._connector.connect(outgoing, timeout_s)
        return EmulatedStream(stream, delay, Pacer(self._slowdown))

    def _delayed(self, outgoing: Iterator[bytes], pipe: Pipe) -> Iterator[bytes]:
        for message in outgoing:
            if self._is_delayed(message):
                pipe.transit(len(message))
            yield message
            del message  # the next may be long in coming


class EmulatedStream:
    """A stream whose messages are delayed, and delivered on a thread of its own.

    Args:
        stream: the real stream.
        delay: called with each message; returns when it has passed the link.
        decoding: how long tensors take to decode, and how many times slower that should be.
    """

    def __init__(self, stream: Stream, delay: Callable[[bytes], None], decoding: Pacer) -> None:
        self._stream = stream
        self._delay = delay
        self._decoding = decoding
        self._arrived: queue.SimpleQueue[bytes | OffloadError | None] = queue.SimpleQueue()

    def deliver(self, receiver: Receiver) -> None:
        """Start delivering what arrives, each message after its delay."""
        work = partial(self._deliver, receiver)
        threading.Thread(target=work, name="link", daemon=True).start()
        self._stream.deliver(self)

    def close(self) -> None:
        """End the stream."""
        self._stream.close()

    def wait(self, timeout_s: float) -> None:
        """After `close`: wait until the real stream has ended."""
        self._stream.wait(timeout_s)

    def received(self, message: bytes) -> None:
        """A message arrived from the real stream."""
        self._arrived.put(message)

    def ended(self, error: OffloadError | None) -> None:
        """The real stream ended."""
        self._arrived.put(error)

    def _deliver(self, receiver: Receiver) -> None:
        while isinstance(message := self._arrived.get(), bytes):
            self._delay(message)
            tensor = _encoded_tensor(message) if self._decoding.slowdown > 1 else ""
            if tensor:
                self._decoding.pace(tensor)
            thread_s = time.thread_time()
            receiver.received(message)
            if tensor:
                self._decoding.add(tensor, time.thread_time() - thread_s)
            del message
        receiver.ended(message)


def _carries_bytes(data: bytes) -> bool:
    """Whether a message of a session carries a tensor or the bytes of a probe."""
    try:
        message, _ = parse(data)
    except ProtocolError:
        return False
    return bool(message.HasField("tensor") or message.ping.data or message.pong.data)


def _encoded_tensor(data: bytes) -> str:
    """Name of the tensor in a message if it must be decoded; empty if not."""
    try:
        message, _ = parse(data)
        layout = pb.Layout.FromString(message.tensor.layout)
    except (ProtocolError, DecodeError):
        return ""
    return layout.name if layout.encoding != RAW.codec else ""
