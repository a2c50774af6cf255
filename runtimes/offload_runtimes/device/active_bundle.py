"""The bundle that a session runs, replaced if the server holds only another one.

A deployed device has a link `ROOT/current` to the release in use. If the server does not hold the
bundle that the link pointed to when the session began, and the link points to another bundle now,
the session changes to that bundle between two frames.
"""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from offload.bundle.bundle import MANIFEST, Bundle, ModelValue, open_bundle
from offload.errors import BundleError, OffloadError, ServerError
from offload.planning.batch import MicroBatch
from offload.planning.plan import Plan, Side
from offload.planning.shares import DEFAULT_WINDOW

from offload_runtimes.device.batch_sharing import BatchSharing
from offload_runtimes.device.connection import DeviceConnection
from offload_runtimes.device.counters import LOG, Counters
from offload_runtimes.device.inference_runner import FramePlan, InferenceRunner
from offload_runtimes.device.link_monitor import LinkMonitor
from offload_runtimes.device.plan_selector import PlanSelector, Probe
from offload_runtimes.device.reconnect import (
    ReconnectLoop,
    ServerRotation,
    Successor,
    connect_in_turn,
)
from offload_runtimes.device.segment_executor import SegmentExecutor
from offload_runtimes.device.session_options import OnServerLoss, SessionOptions
from offload_runtimes.device.speed_monitor import SpeedMonitor
from offload_runtimes.protocol.tensor_specs import Contract, contracts

_REOPEN_S = 5.0  # between attempts to open a directory that holds no complete bundle
# Returns a factory of connections, to the current server, for a bundle, the plans in use, the
# contracts of all plans and the monitors of link and speeds. Raises InputError if no server was
# given, or if the server cannot run the plans.
Connect: TypeAlias = Callable[
    [Bundle, tuple[Plan, ...], tuple[Contract, ...], LinkMonitor, SpeedMonitor],
    Callable[[], DeviceConnection],
]
_CLOSE_S = 5.0  # for what is computed when the session is closed


class OpenedBundle:
    """A bundle that is ready to run: its segments, its plans, its connection to the server.

    Nothing here refers to the session: the models are freed with their last user, without the
    garbage collector, which does not know how large they are.

    Attributes:
        bundle: the bundle.
        executor: runs its segments.
        selector: chooses the plan of the next inference.
        batches: shares the rows of a batch among the plans; None: one plan computes them.
        servers: the servers of the session.
        new_connection: makes a connection to the current server that is not open yet; None: no plan
            needs a server.
        runner: runs inferences; set by `start`.
    """

    runner: InferenceRunner

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        counters: Counters,
        make_executor: Callable[[Bundle], SegmentExecutor],
        servers: ServerRotation,
        connect: Connect,
    ) -> None:
        """Load what must be loaded before connecting.

        Args:
            bundle: the bundle.
            options: how to run it.
            counters: where events are counted.
            make_executor: makes what loads and runs its segments.
            servers: the servers of the session.
            connect: makes the maker of connections to the server, see `Connect`.

        Raises:
            InputError: a segment or an option cannot be used, or a server is needed and none was
                given.
        """
        if not options.share and options.plan is None:
            bundle = bundle.without_sharing()
        self.bundle = bundle
        is_batched = bundle.rows > 0 and options.plan is None
        self.batches = BatchSharing(bundle.plans, bundle.rows) if is_batched else None
        self._options = options
        self._counters = counters
        self.servers = servers
        executor = self.executor = make_executor(bundle)
        can_finish_here = self._can_finish_here = (
            options.on_server_loss != OnServerLoss.RAISE and bundle.holds(Side.SERVER)
        )
        eager = options.deadline_s is not None if options.eager is None else options.eager

        def load(plan: Plan) -> None:
            executor.load(plan.segments if eager and can_finish_here else plan.on(Side.DEVICE))

        self._load = load
        switched = partial(counters.add, "switches")
        selector = PlanSelector(bundle, load, options.plan, options.switching, switched)
        self.selector = selector
        for plan in selector.loaded_first:
            load(plan)
        self._reconnect: ReconnectLoop | None = None
        self.new_connection: Callable[[], DeviceConnection] | None = None
        if not all(plan.is_local for plan in selector.open_plans):
            ends = {value.name: value for value in (*bundle.inputs, *bundle.outputs)}
            agreed = contracts(bundle, {**ends, **executor.values()})
            self.new_connection = connect(
                bundle, selector.open_plans, agreed, selector.monitor, selector.speed_monitor
            )

    @property
    def connection(self) -> DeviceConnection | None:
        """The session with the server while it is alive."""
        return self._reconnect.connection if self._reconnect else None

    @property
    def window(self) -> int:
        """The frames that a stream should have under way at once.

        With a deadline few: the time that a frame waits for those before it counts.
        """
        sharing = self.selector.sharing if self._options.deadline_s is None else None
        return sharing.window if sharing else DEFAULT_WINDOW

    def choose(self, window: int | None) -> FramePlan:
        """The plan of the next inference.

        Args:
            window: the frames under way at once in its stream; None: it is a single inference.
        """
        sharing = self.selector.sharing
        if sharing and window is not None:
            has_server = self.connection is not None
            waiting = self.runner.waiting
            plan = sharing.take(window, waiting, has_server=has_server, now_s=time.monotonic())
            if plan is not None:
                return FramePlan(plan, f"plan {plan}", is_shared=True)
        return FramePlan(*self.selector.take())

    @property
    def spare_plan(self) -> int | None:
        """A local plan for frames that a lost server does not answer; None: there is none, or
        the loss is an error.
        """
        may_go_on = self._options.on_server_loss != OnServerLoss.RAISE
        local = (number for number, plan in enumerate(self.bundle.plans) if plan.is_local)
        return next(local, None) if may_go_on else None

    def share_rows(self, rows: int) -> tuple[MicroBatch, ...]:
        """The micro-batches that plans compute of a batch now; empty: one plan computes it."""
        if self.batches is None or self.connection is None:
            return ()
        return self.batches.micro_batches(rows, self.selector.link, self.selector.speeds)

    def start(
        self,
        first: DeviceConnection | None,
        refusals: Sequence[tuple[str, OffloadError]],
        find_successor: Callable[[], Successor | None],
    ) -> None:
        """Get ready for inferences, over an open connection if there is one.

        Args:
            first: the connection.
            refusals: the servers that could not be used, by address, and why; none if connected.
            find_successor: see ReconnectLoop.

        Raises:
            OffloadError: the first plan cannot be loaded; call `close` then.
        """
        if self.new_connection is not None:
            self._reconnect = ReconnectLoop(
                self.servers,
                self.new_connection,
                first,
                refusals,
                self._options,
                self._counters,
                find_successor,
            )
        self.runner = InferenceRunner(
            self.bundle,
            self.executor,
            self._reconnect,
            self._counters,
            self.selector.speed_monitor,
            can_finish_here=self._can_finish_here,
        )
        for plan in self.bundle.plans if self.selector.sharing or self.batches else ():
            self._load(plan)
        self.selector.settle(_probe_of(self._reconnect))
        self.selector.watch(
            partial(_probe_of, self._reconnect), self.executor.probe_s, self._options.heartbeat_s
        )

    def close(self) -> None:
        """End its threads and its connection; inferences under way continue without them."""
        self.selector.close()
        if self._reconnect:
            self._reconnect.close()


class ActiveBundle:
    """The bundle that a session runs, and the search for another one that the server holds.

    Attributes:
        opened: the bundle of the next inference.
    """

    def __init__(
        self,
        bundle: Bundle,
        path: Path | None,
        load: Callable[[Bundle], OpenedBundle],
        options: SessionOptions,
    ) -> None:
        """Load the bundle and connect.

        Args:
            bundle: the bundle.
            path: directory of the bundle, opened again if the server does not hold the bundle;
                None: the bundle is never replaced.
            load: loads a bundle.
            options: how to connect.

        Raises:
            OffloadError: see OffloadSession.
        """
        self._path = path
        self._load = load
        self._checked_mark: object = None
        self._check_again_s = 0.0
        self._successor: Successor | None = None
        self._unusable: OffloadError | None = None
        self._lock = threading.Lock()
        self._closed = ""
        self._runners: weakref.WeakSet[InferenceRunner] = weakref.WeakSet()
        self.opened = load(bundle)
        connection = None
        refusals: list[tuple[str, OffloadError]] = []

        def open_it(connection: DeviceConnection) -> None:
            try:
                connection.open(options.connect_timeout_s)
            except BundleError as error:
                refusals.append((connection.server, error.with_traceback(None)))
                raise
            refusals.clear()

        if self.opened.new_connection is not None:
            try:
                connection = connect_in_turn(
                    self.opened.servers, self.opened.new_connection, open_it
                )
            except (ServerError, BundleError):
                if options.require_server:
                    raise
        try:
            self.opened.start(connection, refusals, self._find_successor)
        except OffloadError:
            self.opened.close()
            raise
        self._runners.add(self.opened.runner)

    def close(self, why: str) -> None:
        """Stop all inferences, then the threads and the connection; may be called twice."""
        with self._lock:
            self._closed = why
            opened = self.opened
        for runner in list(self._runners):
            runner.close(why, _CLOSE_S)
        opened.close()
        self._successor = None

    def _change(self, successor: OpenedBundle, connection: DeviceConnection | None) -> None:
        """Run another bundle from the next inference on, over an open connection.

        Called on the reconnect thread of the running bundle. Inferences under way end with their
        own bundle.

        Raises:
            OffloadError: the bundle cannot run.
        """
        try:
            successor.start(connection, (), self._find_successor)
        except OffloadError as error:
            self._successor, self._unusable = None, error
            successor.close()
            raise
        with self._lock:
            before = self.opened
            is_closed = bool(self._closed)
            if not is_closed:
                self._runners.add(successor.runner)
                self.opened = successor
        self._successor = None
        if is_closed:
            successor.close()
            return
        fields = {"before": before.bundle.digest, "after": successor.bundle.digest}
        LOG.warning("bundle changed", extra={"fields": fields})
        before.close()

    def _find_successor(self) -> Successor | None:
        """The bundle that the directory holds now; None: the same one, or none.

        Raises:
            OffloadError: this session cannot change to that bundle.
        """
        if self._path is None:
            return None
        mark = _mark(self._path)
        if mark != self._checked_mark or time.monotonic() >= self._check_again_s:
            self._checked_mark, self._check_again_s = mark, float("inf")
            self._successor = self._unusable = None
            try:
                self._successor = self._reopen(self._path)
            except OffloadError as error:
                self._unusable = error
        if self._unusable is not None:
            raise self._unusable
        return self._successor

    def _reopen(self, path: Path) -> Successor | None:
        """Open the directory again and load its bundle."""
        try:
            bundle = open_bundle(path, (Side.DEVICE,))
        except (BundleError, OSError) as error:  # the new bundle may still be arriving
            self._check_again_s = time.monotonic() + _REOPEN_S
            LOG.warning("bundle not reopened", extra={"fields": {"error": str(error)}})
            return None
        running = self.opened.bundle
        if bundle.digest == running.digest:
            return None
        if _signature(bundle) != _signature(running):
            raise BundleError(
                f"{path} now holds another bundle ({bundle.digest[:12]}) with other inputs or"
                f" outputs than the running one ({running.digest[:12]}): restart the application"
            )
        opened = self._load(bundle)
        return Successor(opened.new_connection, partial(self._change, opened))


def _signature(bundle: Bundle) -> tuple[tuple[ModelValue, ...], ...]:
    """The inputs and outputs that a caller of `run` relies on."""
    return bundle.inputs, bundle.outputs, bundle.defaults


def _mark(path: Path) -> object:
    """A value that changes when the directory, or the link, holds another bundle."""
    try:
        manifest = (path / MANIFEST).stat()
    except OSError:
        return None
    return manifest.st_dev, manifest.st_ino, manifest.st_mtime_ns


def _probe_of(reconnect: ReconnectLoop | None) -> Probe | None:
    connection = reconnect.connection if reconnect else None
    return connection.probe if connection else None
