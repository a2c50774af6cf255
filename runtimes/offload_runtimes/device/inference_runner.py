"""Run inferences by their plan: with the server, or on the device alone if the server is lost."""

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy as shallow_copy
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle
from offload.costs.encodings import RAW
from offload.errors import DeadlineError, InputError, OffloadError
from offload.planning.plan import Action, Plan, Segment, Send, Side
from offload.scheduling.timeline import Lane, Timeline
from offload.units import format_s

from offload_runtimes.device.connection import DeviceConnection
from offload_runtimes.device.counters import Counters, Outcome
from offload_runtimes.device.frame_sharing import ComputeOrder
from offload_runtimes.device.reconnect import ReconnectLoop
from offload_runtimes.device.segment_executor import FrameTensors, SegmentExecutor
from offload_runtimes.device.speed_monitor import SpeedMonitor
from offload_runtimes.engine import Array
from offload_runtimes.protocol.messages import pack

# How long before a deadline the device starts the missing segments: 1.5 times their usual time,
# plus 5 % of the time allowed, or 10 ms if that is longer.
_SAFETY_FACTOR = 1.5
_SAFETY_SHARE = 0.05
_SAFETY_S = 0.01


def missing_segments(
    plan: Plan, is_here: Callable[[str], bool], outputs: Iterable[str]
) -> tuple[Segment, ...]:
    """The fewest segments, of either side, that compute outputs from the available tensors.

    Args:
        plan: the plan.
        is_here: whether a tensor is available.
        outputs: names of tensors.

    Returns:
        Segments in an order in which they can run; O(segments + tensors).
    """
    producers = {name: segment for segment in plan.segments for name in segment.outputs}
    order: dict[str, Segment] = {}

    def visit(name: str) -> None:
        segment = producers.get(name)
        if segment is None or segment.id in order or is_here(name):
            return
        for tensor in segment.inputs:
            visit(tensor)
        order[segment.id] = segment

    for name in outputs:
        visit(name)
    return tuple(order.values())


@dataclass(frozen=True, slots=True)
class FramePlan:
    """The plan that one inference follows.

    Attributes:
        plan: its index.
        mark: a text for the timeline; empty: none.
        is_shared: whether several plans share the frames of the stream: the device computes one
            of them at a time.
        rows: of a micro-batch; 0: it is not one.
    """

    plan: int
    mark: str = ""
    is_shared: bool = False
    rows: int = 0


class InferenceRunner:
    """Runs inferences of one bundle on one device, with a server if there is one."""

    def __init__(
        self,
        bundle: Bundle,
        executor: SegmentExecutor,
        reconnect: ReconnectLoop | None,
        counters: Counters,
        speeds: SpeedMonitor,
        *,
        can_finish_here: bool,
    ) -> None:
        """Prepare the plans' steps.

        Args:
            bundle: the bundle.
            executor: runs its segments.
            reconnect: has the connection to the server; None if no plan needs a server.
            counters: where inferences are counted.
            speeds: learns how long segments take.
            can_finish_here: whether the device may and can compute the server's segments.
        """
        self._plans = bundle.plans
        self._steps: list[list[Segment | Send]] = []
        self._defaults: list[tuple[str, ...]] = []  # those that the server's segments use
        for plan in bundle.plans:
            uploads = {send.wire: send for send in plan.uploads}
            self._steps.append(
                [
                    plan.segment(step.target) if step.action is Action.RUN else uploads[step.target]
                    for step in plan.steps
                ]
            )
            names = (name for s in plan.on(Side.SERVER) for name in bundle.defaults_of(s.part))
            self._defaults.append(tuple(dict.fromkeys(names)))
        self._executor = executor
        self._reconnect = reconnect
        self._counters = counters
        self._speeds = speeds
        self._can_finish_here = can_finish_here
        self._server = ""  # address of the server of the last frame that used one
        self._order = ComputeOrder()
        self._under_way: weakref.WeakSet[PendingInference] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = ""

    def prepare(
        self,
        feeds: Mapping[str, Array],
        names: Sequence[str],
        allowed_s: float | None,
        choice: FramePlan,
        *,
        copy: bool,
    ) -> "PendingInference":
        """An inference whose time begins now; nothing is computed yet.

        Args:
            feeds: an array for every input.
            names: the outputs to compute.
            allowed_s: seconds for the answer; None: any time.
            choice: the plan to follow.
            copy: copy the inputs if some are needed after `PendingInference.start` has returned,
                or if it is called on another thread, so that the caller may write to them.

        Raises:
            InputError: the session was closed.
        """
        plan = self._plans[choice.plan]
        if copy and (choice.is_shared or not plan.is_local):
            feeds = {name: deepcopy(array) for name, array in feeds.items()}
        frame = FrameTensors(feeds, choice.plan, choice.rows)
        if choice.mark:
            frame.record(Lane.DEVICE, choice.mark, frame.started_s, frame.started_s)
        inference = PendingInference(self, plan, frame, tuple(names), allowed_s)
        if choice.is_shared:
            inference.place = self._order.new_place(uses_link=not plan.is_local)
        with self._lock:
            if self._closed:
                raise InputError(self._closed)
            self._under_way.add(inference)
        return inference

    def start(self, inference: "PendingInference") -> None:
        """Do the device's part of the plan; uploads may still be under way when this returns.

        Raises:
            InputError: this input cannot be computed, or the inference was cancelled.
        """
        frame = inference.frame
        reconnect = None if inference.plan.is_local else self._reconnect
        try:
            connection = self._connection_for(inference) if reconnect else None
        except DeadlineError as error:
            inference.lose_server(error)
            return
        if reconnect and connection is None:
            inference.error, inference.outcome = reconnect.why, Outcome.LOCAL
            if self._can_finish_here:
                for why in reconnect.take_warnings():
                    warnings.warn(
                        f"going on without the server: {why}", RuntimeWarning, stacklevel=2
                    )
            return
        try:
            self._run_steps(inference, connection)
            if frame.cancelled:
                raise InputError(frame.cancelled)
        except OffloadError as error:
            if frame.cancelled:
                inference.end()
                raise InputError(frame.cancelled) from None
            if isinstance(error, InputError):
                inference.end()
                raise
            inference.lose_server(error)

    def _connection_for(self, inference: "PendingInference") -> DeviceConnection | None:
        """The connection to the server; waits for the next server if the device needs one.

        Raises:
            DeadlineError: no server was found in time.
        """
        assert self._reconnect is not None
        if self._can_finish_here:
            return self._reconnect.connection
        frame = inference.frame
        return self._reconnect.wait(inference.until_s, lambda: bool(frame.cancelled))

    def _run_steps(
        self, inference: "PendingInference", connection: DeviceConnection | None
    ) -> None:
        frame, number = inference.frame, inference.frame.plan
        computing = partial(self._order.computing, inference.place)
        if connection:
            self._begin(inference, connection)
        for step in self._steps[number]:
            if isinstance(step, Segment):
                if frame.has(step.outputs):  # computed before the server was lost
                    continue
                if not frame.has(step.inputs):
                    frame.take(step.inputs, self._server_until_s(inference))
                with computing():
                    took_s = self._executor.run(step, frame, inference.until_s)
                if not frame.rows:  # else it takes a part of the predicted time
                    self._speeds.computed(number, step.id, took_s)
            elif connection:
                with computing() if step.is_encoded else nullcontext():
                    packed = self._executor.pack(step, frame)
                connection.send(frame, step.wire, packed)

    def _begin(self, inference: "PendingInference", connection: DeviceConnection) -> None:
        """Begin a frame on the server; the timeline shows it if this is another server."""
        frame = inference.frame
        connection.begin(frame, self._server_until_s(inference))
        inference.connection = connection
        if connection.server != self._server:
            if self._server:
                now_s = time.monotonic()
                frame.record(Lane.DEVICE, f"server {connection.server}", now_s, now_s)
            self._server = connection.server
        defaults = [name for name in self._defaults[frame.plan] if frame.is_here(name)]
        if defaults or not inference.plan.uploads:
            connection.announce(frame, defaults)
        for name, value in frame.take(defaults).items():
            connection.send(frame, name, pack(value, RAW.codec))

    def finish(self, inference: "PendingInference") -> dict[str, Array]:
        """Wait for the outputs; compute them here if they will not come, or not in time.

        If the device cannot compute them, the frame is sent to the next server, if there is one.

        Raises:
            ServerError: the server is lost and the device may not or cannot finish alone.
            DeadlineError: the time is over.
            InputError: this input cannot be computed, or the inference was cancelled.
        """
        frame, names = inference.frame, inference.names
        try:
            self._await_server(inference)
            while self._may_repeat(inference):
                inference.begin_again()
                self.start(inference)
                self._await_server(inference)
            if inference.error is not None:
                if not self._can_finish_here:
                    # A copy: the loop keeps its error, which must not refer to our frames.
                    raise shallow_copy(inference.error)
                self._finish_here(inference)
            outputs = frame.take(names, inference.until_s)
        except OffloadError as error:
            if frame.cancelled:
                raise InputError(frame.cancelled) from None
            until_s = inference.until_s
            is_overdue = until_s is not None and time.monotonic() >= until_s
            if isinstance(error, DeadlineError) and is_overdue:
                raise DeadlineError(
                    f"no answer within the {format_s(inference.allowed_s or 0)} allowed: allow"
                    " more time"
                ) from error
            raise
        connection = inference.connection if inference.outcome is Outcome.SPLIT else None
        server = connection.server if connection else None
        self._counters.answered(inference.outcome, frame.plan, server)
        return outputs

    def _await_server(self, inference: "PendingInference") -> None:
        """Wait for the outputs, or until the device must compute them itself."""
        if inference.error is None:
            try:
                inference.frame.take(inference.names, self._server_until_s(inference))
            except InputError:
                raise
            except OffloadError as error:
                inference.lose_server(error)

    def _may_repeat(self, inference: "PendingInference") -> bool:
        """Whether to send a frame to the next server: this one is lost or leaving.

        Each server gets the frame once: it may be what made the server fail.
        """
        connection, error = inference.connection, inference.error
        if error is None or connection is None or self._reconnect is None:
            return False
        if self._can_finish_here or not error.retry or isinstance(error, DeadlineError):
            return False
        is_over = connection.error is not None or connection.leaving
        return is_over and inference.repeats < self._reconnect.alternatives

    @property
    def waiting(self) -> list[int]:
        """By plan, the inferences under way whose outputs are not computed yet."""
        with self._lock:
            under_way = list(self._under_way)
        counts = [0] * len(self._plans)
        for inference in under_way:
            if not inference.frame.cancelled and not inference.frame.has(inference.names):
                counts[inference.frame.plan] += 1
        return counts

    def close(self, why: str, timeout_s: float) -> None:
        """Cancel all inferences, refuse new ones, and wait until nothing is computed any more."""
        with self._lock:
            self._closed = self._closed or why
            under_way = list(self._under_way)
        for inference in under_way:
            inference.cancel(why)
        self._executor.wait_idle(timeout_s)

    def _finish_here(self, inference: "PendingInference") -> None:
        """Compute what is missing; stop as soon as a late answer of the server is complete."""
        frame, names, until_s = inference.frame, inference.names, inference.until_s
        segments = missing_segments(inference.plan, frame.is_here, names)
        if until_s is None:
            self._executor.load(segments)
        elif loading := self._executor.load_in_background(segments):
            loading.add_done_callback(lambda _: frame.wake())
            frame.wait_for(lambda: loading.done() or frame.has(names), until_s)
            if loading.done():
                loading.result()
        for segment in segments:
            if frame.has(names):
                return
            try:
                with self._order.computing(inference.place):
                    self._executor.run(segment, frame, until_s, unless=names)
            except DeadlineError:
                if not frame.has(names):
                    raise

    def _server_until_s(self, inference: "PendingInference") -> float | None:
        """Until when to wait for the server, so that the device alone still meets the deadline."""
        until_s, frame = inference.until_s, inference.frame
        if until_s is None or not self._can_finish_here:
            return until_s
        usual_s = self.usual_s(inference)
        if usual_s is None:  # not measured yet: assume half of the remaining time
            now_s = time.monotonic()
            return now_s + (until_s - now_s) / 2
        spare_s = max(_SAFETY_S, _SAFETY_SHARE * (until_s - frame.started_s))
        return until_s - _SAFETY_FACTOR * (usual_s + inference.reserved_s) - spare_s

    def usual_s(self, inference: "PendingInference") -> float | None:
        """Usual seconds to compute here what is missing; None if they were not measured yet."""
        frame = inference.frame
        segments = missing_segments(inference.plan, frame.is_here, inference.names)
        return self._executor.estimate_s(segments, frame.rows)


class PendingInference:
    """One inference; `finish` returns its outputs.

    Attributes:
        plan: the plan that it follows from start to end.
        frame: its tensors.
        names: the outputs to compute.
        allowed_s: seconds from its start to the answer; None: any time.
        until_s: its deadline, by `time.monotonic`; None: none.
        connection: the session that computes the server's part.
        error: why the server's part will not come, or not in time.
        outcome: how it was computed, as far as is known.
        place: its place in the order of the frames that share the device; None: it does not wait.
        repeats: how often it was sent to another server.
        reserved_s: seconds before the deadline that the device may need for the other
            micro-batches of the same batch.
        session: kept alive until the inference is over.
    """

    def __init__(
        self,
        runner: InferenceRunner,
        plan: Plan,
        frame: FrameTensors,
        names: tuple[str, ...],
        allowed_s: float | None,
    ) -> None:
        self._runner = runner
        self.plan = plan
        self.frame = frame
        self.names = names
        self.allowed_s = allowed_s
        self.until_s = None if allowed_s is None else frame.started_s + allowed_s
        self.connection: DeviceConnection | None = None
        self.error: OffloadError | None = None
        self.outcome = Outcome.SPLIT
        self.repeats = 0
        self.place: tuple[bool, int] | None = None
        self.reserved_s = 0.0
        self.session: object = None

    def start(self) -> None:
        """Do the device's part; errors as `run`."""
        self._runner.start(self)

    def finish(self) -> list[Any]:
        """Wait for the outputs, in the order requested; errors as `run`."""
        try:
            outputs = self._runner.finish(self)
        finally:
            self.end()
        return [_writable(outputs[name]) for name in self.names]

    @property
    def usual_s(self) -> float | None:
        """Usual seconds to compute here what is missing; None if they were not measured yet."""
        return self._runner.usual_s(self)

    @property
    def timeline(self) -> Timeline:
        """What was measured so far: what each side did, and when."""
        return self.frame.timeline()

    def lose_server(self, error: OffloadError) -> None:
        """Stop waiting for the server because of an error; warn if it will not pass by itself."""
        if not error.retry:
            warnings.warn(f"going on without the server: {error}", RuntimeWarning, stacklevel=2)
        self.error = error
        hedged = isinstance(error, DeadlineError)
        self.outcome = Outcome.HEDGED if hedged else Outcome.RESUMED

    def begin_again(self) -> None:
        """Forget the server that was lost; `start` then continues with the next one."""
        self.end()
        self.frame.forget_failure()
        self.connection = self.error = None
        self.outcome = Outcome.SPLIT
        self.repeats += 1

    def cancel(self, why: str) -> None:
        """Stop it, here and on the server; `start` and `finish` then raise InputError."""
        self.frame.cancel(why)
        self.end()

    def end(self) -> None:
        """Let the server forget it."""
        if self.connection:
            self.connection.end(self.frame)


def _writable(value: Any) -> Any:
    """A value that the caller may write to: an array from the server is a view of its message."""
    if isinstance(value, list):
        return [_writable(element) for element in value]
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        return value.copy()
    return value
