"""The bundle that a session runs, replaced when the server holds another one only.

A deployed device has a link `ROOT/current` to the release in use. When the server does not hold
the bundle that the link led to when the session began, and the link leads to another one by now,
the session changes to that one between two frames.
"""

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from offload.bundle.bundle import MANIFEST, Bundle, ModelValue, open_bundle
from offload.errors import BundleError, OffloadError, ServerError
from offload.planning.plan import Plan, Side
from offload.planning.plan_set import SwitchPolicy

from offload_runtimes.device.counters import Counters
from offload_runtimes.device.inference_runner import InferenceRunner, OnServerLoss
from offload_runtimes.device.plan_selector import LOG, PlanSelector
from offload_runtimes.device.reconnect import ReconnectLoop
from offload_runtimes.device.segment_executor import SegmentExecutor
from offload_runtimes.device.server_connection import ServerConnection
from offload_runtimes.emulate import LinkCost, Pacer
from offload_runtimes.engine import EngineOptions
from offload_runtimes.protocol.tensor_specs import contracts
from offload_runtimes.transport.connection import Connector

_AGAIN_S = 5.0  # between attempts to open a directory that holds no whole bundle
_CLOSE_S = 5.0  # for what is computed when the session is closed


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs its bundle, whichever it is; as the arguments of OffloadSession.

    Attributes:
        connect: makes the connector to the server; raises InputError where none was named.
        eager: load the server's part at once where the device may finish without the server.
    """

    engine: EngineOptions
    pacer: Pacer
    policy: OnServerLoss
    connect: Callable[[], Connector]
    link: LinkCost | None
    eager: bool
    require_server: bool
    heartbeat_s: float
    patience_s: float
    connect_timeout_s: float
    plan: int | None
    switching: SwitchPolicy


class OpenedBundle:
    """A bundle that is ready to run: its segments, its plans, its connection to the server.

    Nothing below refers to the session: its models go with its last user, without the garbage
    collector, which does not know how large they are.

    Attributes:
        bundle: the bundle.
        device: its segments.
        pilot: which of its plans the next inference follows.
        keeper: its connection; None when no plan needs a server, and before `start`.
        execution: runs inferences; there is none before `start`.
    """

    execution: InferenceRunner

    def __init__(self, bundle: Bundle, options: SessionOptions, tally: Counters) -> None:
        """Load what must be loaded before connecting.

        Raises:
            InputError: a segment or an option cannot be used, or a server is needed and none named.
        """
        self.bundle = bundle
        self._options = options
        self._tally = tally
        device = self.device = SegmentExecutor(bundle, options.engine, options.pacer)
        resumes = options.policy is not OnServerLoss.RAISE and bundle.holds(Side.SERVER)
        eagerly = resumes and options.eager

        def load(followed: Plan) -> None:
            device.load(followed.segments if eagerly else followed.on(Side.DEVICE))

        switched = partial(tally.add, "switches")
        pilot = self.pilot = PlanSelector(bundle, load, options.plan, options.switching, switched)
        for followed in pilot.loaded_first:
            load(followed)
        self.keeper: ReconnectLoop | None = None
        self._make: Callable[[], ServerConnection] | None = None
        if not all(followed.is_local for followed in pilot.open_plans):
            agreed, connector = contracts(bundle, _values(bundle, device)), options.connect()

            def make() -> ServerConnection:
                pilot.gauge.forget()
                return ServerConnection(
                    connector,
                    agreed,
                    link=options.link,
                    slowdown=options.pacer.slowdown,
                    patience_s=options.patience_s,
                    passed=pilot.gauge.passed,
                )

            self._make = make

    @property
    def remote(self) -> ServerConnection | None:
        """The session with the server while it is alive."""
        return _alive(self.keeper)

    def connection(self) -> ServerConnection | None:
        """A connection that is not open yet; None when no plan needs a server."""
        return None if self._make is None else self._make()

    def connect(self) -> tuple[ServerConnection | None, OffloadError | None]:
        """Connect for the first time; without `require_server`, why that failed.

        Raises:
            BundleError: the server does not hold the bundle.
            ServerError: the server cannot be reached.
        """
        remote = self.connection()
        if remote is None:
            return None, None
        try:
            remote.open(self._options.connect_timeout_s)
        except (ServerError, BundleError) as error:
            if self._options.require_server:
                raise
            return None, error if isinstance(error, BundleError) else None
        return remote, None

    def start(
        self,
        first: ServerConnection | None,
        why: OffloadError | None,
        find_successor: Callable[[], "NewerBundle | None"],
    ) -> None:
        """Be ready for inferences, over a connection that is open if there is one.

        Args:
            first: the connection.
            why: what was wrong with the server where there is none.
            find_successor: as of Keeper.

        Raises:
            OffloadError: the first plan cannot be loaded; `close` it then.
        """
        options = self._options
        if self._make is not None:
            self.keeper = ReconnectLoop(
                self._make,
                first,
                heartbeat_s=options.heartbeat_s,
                timeout_s=options.connect_timeout_s,
                reconnect=options.policy is not OnServerLoss.LOCAL,
                tally=self._tally,
                why=why,
                find_successor=find_successor,
            )
        self.execution = InferenceRunner(
            self.bundle, self.device, options.policy, self.keeper, self._tally, self.pilot.take
        )
        self.pilot.settle(self.remote)
        self.pilot.watch(partial(_alive, self.keeper), options.heartbeat_s)

    def close(self) -> None:
        """End its threads and its connection; inferences under way go on without."""
        self.pilot.close()
        if self.keeper:
            self.keeper.close()


class NewerBundle:
    """A bundle of the session's directory that may take the place of the one that runs."""

    def __init__(self, active: "ActiveBundle", opened: OpenedBundle) -> None:
        self._active = active
        self._opened = opened

    def connection(self) -> ServerConnection | None:
        """A connection for it that is not open yet; None: it needs no server."""
        return self._opened.connection()

    def take_over(self, remote: ServerConnection | None) -> None:
        """Become the session's bundle; errors as OpenedBundle.start."""
        self._active.change(self._opened, remote)


class ActiveBundle:
    """The bundle that a session runs, and the search for one that the server holds.

    Attributes:
        opened: the bundle that the next inference runs.
    """

    def __init__(
        self, bundle: Bundle, path: Path | None, options: SessionOptions, tally: Counters
    ) -> None:
        """Load the bundle and connect.

        Args:
            bundle: the bundle.
            path: the directory that it was opened from, opened again when the server does not
                hold the bundle; None: the bundle is never replaced.
            options: how to run it.
            tally: where things are counted.

        Raises:
            OffloadError: as OffloadSession.
        """
        self._path = path
        self._options = options
        self._tally = tally
        self._mark: object = None
        self._again_s = 0.0
        self._found: NewerBundle | None = None
        self._unusable: OffloadError | None = None
        self._lock = threading.Lock()
        self._closed = ""
        self._executions: weakref.WeakSet[InferenceRunner] = weakref.WeakSet()
        self.opened = OpenedBundle(bundle, options, tally)
        first, why = self.opened.connect()
        try:
            self.opened.start(first, why, self._find_successor)
        except OffloadError:
            self.opened.close()
            raise
        self._executions.add(self.opened.execution)

    def close(self, why: str) -> None:
        """Stop what is under way, then the threads and the connection; may be called twice."""
        with self._lock:
            self._closed = why
            opened = self.opened
        for execution in list(self._executions):
            execution.close(why, _CLOSE_S)
        opened.close()
        self._found = None

    def change(self, successor: OpenedBundle, remote: ServerConnection | None) -> None:
        """Let the next inference run another bundle, over a connection that is open.

        Called on the thread of the keeper of the bundle before. Inferences under way end with
        their own bundle.

        Raises:
            OffloadError: it cannot be run.
        """
        try:
            successor.start(remote, None, self._find_successor)
        except OffloadError as error:
            self._found, self._unusable = None, error
            successor.close()
            raise
        with self._lock:
            before = self.opened
            is_closed = bool(self._closed)
            if not is_closed:
                self._executions.add(successor.execution)
                self.opened = successor
        self._found = None
        if is_closed:
            successor.close()
            return
        fields = {"before": before.bundle.digest, "after": successor.bundle.digest}
        LOG.warning("bundle changed", extra={"fields": fields})
        before.close()

    def _find_successor(self) -> NewerBundle | None:
        """The bundle that the directory holds by now; None: the same, or none.

        Raises:
            OffloadError: there is one, but this session cannot change to it.
        """
        if self._path is None:
            return None
        mark = _mark(self._path)
        if mark != self._mark or time.monotonic() >= self._again_s:
            self._mark, self._again_s = mark, float("inf")
            self._found = self._unusable = None
            try:
                self._found = self._prepared(self._path)
            except OffloadError as error:
                self._unusable = error
        if self._unusable is not None:
            raise self._unusable
        return self._found

    def _prepared(self, path: Path) -> NewerBundle | None:
        """Open the directory again and load what it holds."""
        try:
            bundle = open_bundle(path, (Side.DEVICE,))
        except (BundleError, OSError) as error:  # it may be arriving
            self._again_s = time.monotonic() + _AGAIN_S
            LOG.warning("bundle not reopened", extra={"fields": {"error": str(error)}})
            return None
        running = self.opened.bundle
        if bundle.digest == running.digest:
            return None
        if _signature(bundle) != _signature(running):
            raise BundleError(
                f"{path} holds another bundle by now ({bundle.digest[:12]}), whose inputs or"
                f" outputs differ from those of {running.digest[:12]}, which runs: restart the"
                " application"
            )
        return NewerBundle(self, OpenedBundle(bundle, self._options, self._tally))


def _signature(bundle: Bundle) -> tuple[tuple[ModelValue, ...], ...]:
    """What a caller of `run` relies on."""
    return bundle.inputs, bundle.outputs, tuple(default.value for default in bundle.defaults)


def _mark(path: Path) -> object:
    """What changes when a directory holds another bundle, or a link leads to another one."""
    try:
        found = (path / MANIFEST).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _values(bundle: Bundle, device: SegmentExecutor) -> dict[str, ModelValue]:
    """Type and shape of every tensor this side knows."""
    ends = {value.name: value for value in (*bundle.inputs, *bundle.outputs)}
    return {**ends, **device.values()}


def _alive(keeper: ReconnectLoop | None) -> ServerConnection | None:
    return keeper.remote if keeper else None
