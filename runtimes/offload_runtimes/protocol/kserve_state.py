"""Requests of KServe v2 on the server, without I/O.

`answer_at_once` computes an answer on the caller's thread. `InferenceRequest` is the state of a
request that the workers run: a session of one frame, which gives the dispatcher the same events as
a session of our own protocol, and shares batches with such sessions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any

from offload.errors import InputError, OffloadError, ServerError
from offload.planning.plan import Segment
from offload.units import format_bytes

from offload_runtimes.protocol.kserve_messages import ModelSignature, write_stream_error
from offload_runtimes.protocol.kserve_requests import ReceivedRequest, RequestHeader
from offload_runtimes.protocol.memory_budget import Reservation
from offload_runtimes.protocol.server_state import (
    Event,
    FrameOver,
    Reply,
    RunSegment,
    ServerFrame,
    inputs_of,
)
from offload_runtimes.protocol.tensor_specs import Contract

_FRAME = 1


@dataclass(frozen=True)
class ServedModel:
    """A model that requests may run: segments of a bundle.

    Attributes:
        signature: its name, inputs and outputs.
        contract: the segments that compute it, and the sizes of its inputs.
        is_whole: whether the device's parts are among them.
    """

    signature: ModelSignature
    contract: Contract
    is_whole: bool = False

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The bundle's parts that compute it."""
        return tuple(segment.part for segment in self.contract.segments)

    @cached_property
    def in_order(self) -> tuple[Segment, ...]:
        """Its segments in topological order."""
        made_by = {name: each for each in self.contract.segments for name in each.outputs}
        needs = {
            segment: [made_by[name] for name in segment.inputs if name in made_by]
            for segment in self.contract.segments
        }
        return tuple(TopologicalSorter(needs).static_order())


class InferenceRequest:
    """State of one request; its methods return events for the caller to carry out.

    Not thread-safe: the caller holds a lock around each call.

    Attributes:
        model: what it runs.
        closed: it was answered, failed, or is not needed any more.
        error: why it failed.
        queue_s: seconds in which none of its segments ran.
        compute_s: seconds that its segments ran.
    """

    def __init__(
        self,
        model: ServedModel,
        reservation: Reservation,
        *,
        in_stream: bool,
    ) -> None:
        """A request that begins with `begin`.

        Args:
            model: what it runs.
            reservation: holds the bytes of its inputs.
            in_stream: it came in a stream, where errors are answers, too.
        """
        self.model = model
        self._id = ""
        self._header: RequestHeader | None = None
        self._reservation = reservation
        self._in_stream = in_stream
        self._frame = ServerFrame(0, model.contract, list(model.contract.segments))
        self._began_s = 0.0
        self.closed = False
        self.error: OffloadError | None = None
        self.queue_s = self.compute_s = 0.0

    @property
    def bundle(self) -> str | None:
        """Digest of the bundle that it runs."""
        return self.model.contract.digest

    @property
    def frames_in_flight(self) -> int:
        """1 until it is over."""
        return int(not self.closed)

    def begin(self, request: ReceivedRequest, now_s: float) -> list[Event]:
        """Check the request, and run the first segments."""
        self._began_s = now_s
        self._id = request.id
        try:
            _hold_inputs(self._reservation, request.memory_bytes)
            self._header = request.checked(self.model.signature)
            self._frame.tensors = self._header.read(request)
        except OffloadError as error:
            return self._fail(error)
        return self._started()

    def finished(
        self, run: RunSegment, outputs: Mapping[str, Any], start_s: float, end_s: float
    ) -> list[Event]:
        """A segment has finished: run those that can start now, or answer."""
        self._frame.running.discard(run.segment.id)
        if self.closed:
            return []
        self.compute_s += end_s - start_s
        self._frame.tensors.update(outputs)
        if events := self._started():
            return events
        if self._frame.waiting or self._frame.running:
            return []
        self.queue_s = max(0.0, end_s - self._began_s - self.compute_s)
        assert self._header is not None  # a segment has run
        values = [self._frame.tensors[value.name] for value in self._header.outputs]
        try:
            answer = self._header.write_answer(self._id, values, in_stream=self._in_stream)
        except InputError as error:
            return self._fail(error)
        return self._over("answered", answer)

    def failed(self, run: RunSegment, error: OffloadError) -> list[Event]:
        """A segment could not run."""
        self._frame.running.discard(run.segment.id)
        return [] if self.closed else self._fail(error)

    def close(self, error: OffloadError | None = None) -> list[Event]:
        """The client has gone, or the server ends the request with an error."""
        if self.closed:
            return []
        return self._over("dropped", b"") if error is None else self._fail(error)

    def drain(self) -> list[Event]:
        """Nothing changes: the request is still answered."""
        return []

    def _started(self) -> list[Event]:
        return [
            RunSegment(_FRAME, segment, self._frame.feeds(segment))
            for segment in self._frame.startable()
        ]

    def _fail(self, error: OffloadError) -> list[Event]:
        self.error = error
        answer = b""
        if self._in_stream:
            answer = write_stream_error(self._id, str(error))
        return self._over("failed", answer)

    def _over(self, outcome: str, answer: bytes) -> list[Event]:
        self.closed = True
        self._frame.tensors.clear()
        self._reservation.hold(0)
        return [FrameOver(_FRAME, outcome), Reply(answer)]


def answer_at_once(
    request: ReceivedRequest,
    model: ServedModel,
    reservation: Reservation,
    run: Callable[[Segment, dict[str, Any]], Sequence[Any]],
    *,
    in_stream: bool,
) -> bytes:
    """Compute the answer to a request, one segment after the other.

    Args:
        request: the request.
        model: what it runs.
        reservation: holds the bytes of its inputs meanwhile.
        run: runs a segment on its inputs and returns its outputs.
        in_stream: it came in a stream.

    Raises:
        OffloadError: it cannot be answered.
    """
    try:
        _hold_inputs(reservation, request.memory_bytes)
        header, request_id = request.checked(model.signature), request.id
        tensors = header.read(request)
        del request  # only its inputs stay in memory
        for segment in model.in_order:
            outputs = run(segment, inputs_of(segment, model.contract, tensors))
            tensors.update(zip(segment.outputs, outputs, strict=True))
        values = [tensors[value.name] for value in header.outputs]
        return header.write_answer(request_id, values, in_stream=in_stream)
    finally:
        reservation.hold(0)


def _hold_inputs(reservation: Reservation, size_bytes: int) -> None:
    """Hold the bytes of a request's inputs.

    Raises:
        InputError: they are more than the server allows for all clients.
        ServerError: they do not fit beside those of other clients now.
    """
    limit_bytes = reservation.limit_bytes
    if size_bytes > limit_bytes:
        raise InputError(
            f"this request takes {format_bytes(size_bytes)}, the server allows"
            f" {format_bytes(int(limit_bytes))} for the tensors of all clients (--max-memory):"
            " use a smaller batch, or allow more"
        )
    if not reservation.hold(size_bytes, idle=False):
        raise ServerError(
            "the memory for clients' tensors is in use on the server (--max-memory): try again,"
            " or allow more"
        )
