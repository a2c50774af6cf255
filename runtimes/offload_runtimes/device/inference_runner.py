"""Follow a plan: with the server while it answers, from the tensors at hand when it does not."""

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy, deepcopy
from enum import StrEnum
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle
from offload.costs.encodings import RAW
from offload.errors import DeadlineError, InputError, OffloadError
from offload.planning.plan import Action, Plan, Segment, Side
from offload.scheduling.timeline import Lane, Timeline
from offload.units import format_s

from offload_runtimes.device.counters import Counters, Outcome
from offload_runtimes.device.inference import FrameTensors
from offload_runtimes.device.reconnect import ReconnectLoop
from offload_runtimes.device.segment_executor import SegmentExecutor, SendNames
from offload_runtimes.device.server_connection import ServerConnection
from offload_runtimes.engine import Array
from offload_runtimes.protocol.messages import pack


def rest(plan: Plan, is_here: Callable[[str], bool], wanted: Iterable[str]) -> tuple[Segment, ...]:
    """The fewest segments, of either side, that make the wanted tensors from those at hand.

    Args:
        plan: the plan.
        is_here: whether a tensor is at hand.
        wanted: names of tensors.

    Returns:
        Segments in an order in which they can run; O(segments + tensors).
    """
    makers = {name: segment for segment in plan.segments for name in segment.outputs}
    order: dict[str, Segment] = {}

    def need(name: str) -> None:
        segment = makers.get(name)
        if segment is None or segment.id in order or is_here(name):
            return
        for before in segment.inputs:
            need(before)
        order[segment.id] = segment

    for name in wanted:
        need(name)
    return tuple(order.values())


_MARGIN = 1.5  # how much longer than usual the rest may take here
_MARGIN_OF_DEADLINE = 0.05
_MARGIN_S = 0.01


class OnServerLoss(StrEnum):
    """What the device does when the server is dead, slow or unreachable.

    Attributes:
        RESUME: finish from the tensors at hand; use the server again once it answers.
        LOCAL: finish from the tensors at hand; stay local for the rest of the session.
        RAISE: raise ServerError.
    """

    RESUME = "resume"
    LOCAL = "local"
    RAISE = "raise"


class InferenceRunner:
    """Runs inferences of one bundle on one device, with a server if there is one."""

    def __init__(
        self,
        bundle: Bundle,
        device: SegmentExecutor,
        policy: OnServerLoss,
        keeper: ReconnectLoop | None,
        tally: Counters,
        choose: Callable[[], tuple[int, str]] = lambda: (0, ""),
    ) -> None:
        """`choose` says which of the bundle's plans an inference follows, and what changed."""
        self._choose = choose
        self._plans = bundle.plans
        self._local = [plan.is_local for plan in bundle.plans]
        self._steps = [_resolved(plan) for plan in bundle.plans]
        self._defaults = [_server_defaults(bundle, plan) for plan in bundle.plans]
        self._device = device
        self._keeper = keeper
        self._tally = tally
        self._can_finish_here = policy is not OnServerLoss.RAISE and bundle.holds(Side.SERVER)
        self._under_way: weakref.WeakSet[PendingInference] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = ""

    def prepare(
        self,
        feeds: Mapping[str, Array],
        names: Sequence[str],
        allowed_s: float | None,
        *,
        copy: bool,
    ) -> "PendingInference":
        """An inference whose time begins now; nothing is computed yet.

        Args:
            feeds: an array for every input.
            names: the outputs wanted.
            allowed_s: seconds for the answer; None: any time.
            copy: copy the inputs where some of the work waits in a queue, so that the caller may
                write to them once `PendingInference.start` has returned.

        Raises:
            InputError: the session was closed.
        """
        number, change = self._choose()
        if copy and not self._local[number]:
            feeds = {name: deepcopy(array) for name, array in feeds.items()}
        inference = FrameTensors(feeds, number)
        if change:
            inference.note(Lane.DEVICE, change, inference.started_s, inference.started_s)
        running = PendingInference(self, self._plans[number], inference, tuple(names), allowed_s)
        with self._lock:
            if self._closed:
                raise InputError(self._closed)
            self._under_way.add(running)
        return running

    def start(self, running: "PendingInference") -> None:
        """Do the device's part of the plan; what the server is to do is then under way.

        Raises:
            InputError: this input cannot be computed, or the inference was cancelled.
        """
        number = running.inference.plan
        keeper = None if self._local[number] else self._keeper
        remote = keeper.remote if keeper else None
        if keeper and remote is None:
            running.error, running.outcome = keeper.why, Outcome.LOCAL
            if self._can_finish_here:
                for why in keeper.take_warnings():
                    warnings.warn(
                        f"going on without the server: {why}", RuntimeWarning, stacklevel=2
                    )
            return
        try:
            self._start(running, remote)
            if running.inference.cancelled:
                raise InputError(running.inference.cancelled)
        except OffloadError as error:
            if running.inference.cancelled:
                running.end()
                raise InputError(running.inference.cancelled) from None
            if isinstance(error, InputError):
                running.end()
                raise
            running.lost(error)

    def finish(self, running: "PendingInference") -> dict[str, Array]:
        """Wait for outputs; compute them here when they will not come, or not in time.

        Raises:
            ServerError: the server is lost and the policy or the bundle forbids going on here.
            DeadlineError: the time is over.
            InputError: this input cannot be computed, or the inference was cancelled.
        """
        try:
            return self._finish(running)
        except OffloadError as error:
            if running.inference.cancelled:
                raise InputError(running.inference.cancelled) from None
            if isinstance(error, DeadlineError) and running.is_overdue:
                raise DeadlineError(
                    f"no answer within the {format_s(running.allowed_s or 0)} allowed: allow more"
                    " time"
                ) from error
            raise

    def close(self, why: str, timeout_s: float) -> None:
        """Cancel what is under way, refuse what comes, wait until nothing is computed any more."""
        with self._lock:
            self._closed = self._closed or why
            under_way = list(self._under_way)
        for running in under_way:
            running.cancel(why)
        self._device.wait_idle(timeout_s)

    def _finish(self, running: "PendingInference") -> dict[str, Array]:
        inference, names = running.inference, running.names
        if running.error is None:
            try:
                inference.take(names, self._patience(running))
            except InputError:
                raise
            except OffloadError as error:
                running.lost(error)
        if running.error is not None:
            if not self._can_finish_here:
                raise copy(running.error)  # the keeper's own must not refer to our frames
            self._finish_here(running)
        found = inference.take(names, running.until_s)
        self._tally.add(running.outcome)
        return found

    def _start(self, running: "PendingInference", remote: ServerConnection | None) -> None:
        inference = running.inference
        if remote:
            remote.begin(inference, self._patience(running))
            running.remote = remote
            self._announce(running, remote)
        for step in self._steps[inference.plan]:
            if isinstance(step, Segment):
                if not inference.has(step.inputs):
                    inference.take(step.inputs, self._patience(running))
                self._device.run(step, inference, running.until_s)
            elif remote:
                remote.send(inference, step.wire, self._device.pack(step, inference))

    def _announce(self, running: "PendingInference", remote: ServerConnection) -> None:
        """Tell the server of a frame what no upload of its plan would."""
        inference, number = running.inference, running.inference.plan
        given = [name for name in self._defaults[number] if inference.is_here(name)]
        if given or not running.plan.uploads:
            remote.announce(inference, given)
        for name, value in inference.take(given).items():
            remote.send(inference, name, pack(value, RAW.codec))

    def _finish_here(self, running: "PendingInference") -> None:
        """Compute what is missing; stops as soon as a late answer of the server is there."""
        inference, names = running.inference, running.names
        left = rest(running.plan, inference.is_here, names)
        self._load(running, left)
        for segment in left:
            if inference.has(names):
                return
            try:
                self._device.run(segment, inference, running.until_s, unless=names)
            except DeadlineError:
                if not inference.has(names):
                    raise

    def _load(self, running: "PendingInference", segments: Sequence[Segment]) -> None:
        """Load segments; in the background while there is a deadline, or the answer comes."""
        if running.until_s is None:
            self._device.load(segments)
            return
        loading = self._device.load_in_background(segments)
        if loading is None:
            return
        inference = running.inference
        loading.add_done_callback(lambda _: inference.wake())
        inference.wait_for(lambda: loading.done() or inference.has(running.names), running.until_s)
        if loading.done():
            loading.result()

    def _patience(self, running: "PendingInference") -> float | None:
        """Until when the server may be waited for, so that the device alone still makes it."""
        until_s = running.until_s
        if until_s is None or not self._can_finish_here:
            return until_s
        left = rest(running.plan, running.inference.is_here, running.names)
        needed_s = self._device.estimate_s(left)
        if needed_s is None:  # never run here: half of the time is anybody's guess
            now_s = time.monotonic()
            return now_s + (until_s - now_s) / 2
        allowed_s = until_s - running.inference.started_s
        spare_s = max(_MARGIN_S, _MARGIN_OF_DEADLINE * allowed_s)
        return until_s - _MARGIN * needed_s - spare_s


def _server_defaults(bundle: Bundle, plan: Plan) -> tuple[str, ...]:
    """The inputs with a default that the server's segments of a plan use."""
    names = (name for s in plan.on(Side.SERVER) for name in bundle.defaults_of(s.part))
    return tuple(dict.fromkeys(names))


def _resolved(plan: Plan) -> list[Segment | SendNames]:
    """The device's steps: segments to run and tensors to send."""
    sends = {send.wire: SendNames.of(send) for send in plan.uploads}
    return [
        plan.segment(step.target) if step.action is Action.RUN else sends[step.target]
        for step in plan.steps
    ]


class PendingInference:
    """One inference under way; `finish` gives its answer.

    Attributes:
        plan: the plan it follows from its beginning to its end.
        inference: its tensors.
        names: the outputs wanted.
        allowed_s: seconds from its beginning to the answer; None: any time.
        until_s: when its time is over, by `time.monotonic`; None: never.
        remote: the session that computes the server's part.
        error: why the server's part will not come, or not in time.
        outcome: how it was computed, so far as is known.
        session: who must not be closed as forgotten before it is over.
    """

    def __init__(
        self,
        execution: InferenceRunner,
        plan: Plan,
        inference: FrameTensors,
        names: tuple[str, ...],
        allowed_s: float | None,
    ) -> None:
        self._execution = execution
        self.plan = plan
        self.inference = inference
        self.names = names
        self.allowed_s = allowed_s
        self.until_s = None if allowed_s is None else inference.started_s + allowed_s
        self.remote: ServerConnection | None = None
        self.error: OffloadError | None = None
        self.outcome = Outcome.SPLIT
        self.session: object = None

    @property
    def is_overdue(self) -> bool:
        """Whether the time for the answer is over."""
        return self.until_s is not None and time.monotonic() >= self.until_s

    def start(self) -> None:
        """Do the device's part; errors as `run`."""
        self._execution.start(self)

    def finish(self) -> list[Any]:
        """The outputs wanted, in order; errors as `run`."""
        try:
            found = self._execution.finish(self)
        finally:
            self.end()
        return [_own(found[name]) for name in self.names]

    @property
    def timeline(self) -> Timeline:
        """What was measured so far: who did what from when to when."""
        return self.inference.timeline()

    def lost(self, error: OffloadError) -> None:
        """Note that the server can't be waited for, and why; what won't pass by itself is said."""
        if not error.retry:
            warnings.warn(f"going on without the server: {error}", RuntimeWarning, stacklevel=2)
        self.error = error
        hedged = isinstance(error, DeadlineError)
        self.outcome = Outcome.HEDGED if hedged else Outcome.RESUMED

    def cancel(self, why: str) -> None:
        """Stop it, here and on the server; `start` and `finish` raise InputError then."""
        self.inference.cancel(why)
        self.end()

    def end(self) -> None:
        """Let the server forget it."""
        if self.remote:
            self.remote.end(self.inference)


def _own(value: Any) -> Any:
    """A value the caller may write to: an array from the wire is a view of its message."""
    if isinstance(value, list):
        return [_own(element) for element in value]
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        return value.copy()
    return value
