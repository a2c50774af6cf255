"""The session of the device: run a bundle like an onnxruntime session."""

import os
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from offload.bundle.bundle import Bundle, ModelValue, open_bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.batch import MicroBatch
from offload.planning.plan import Plan, Side, Speeds
from offload.planning.shares import DEFAULT_WINDOW
from offload.scheduling.timeline import Timeline

from offload_runtimes.address import KSERVE_SCHEME, parse_address
from offload_runtimes.closing import close_at_exit
from offload_runtimes.device.active_bundle import ActiveBundle, OpenedBundle
from offload_runtimes.device.batch_sharing import MakeInference, SharedBatch
from offload_runtimes.device.connection import DeviceConnection
from offload_runtimes.device.counters import Counters, Counts
from offload_runtimes.device.inference_runner import FramePlan, PendingInference
from offload_runtimes.device.link_monitor import LinkMonitor
from offload_runtimes.device.plan_selector import PlanSwitch
from offload_runtimes.device.reconnect import ServerRotation
from offload_runtimes.device.segment_executor import SegmentExecutor
from offload_runtimes.device.server_connection import ServerConnection
from offload_runtimes.device.session_options import SessionOptions, checked_s
from offload_runtimes.device.speed_monitor import SpeedMonitor
from offload_runtimes.device.stream import (
    Frame,
    Latest,
    Window,
    finish_async,
    stream_answers,
    stream_answers_async,
)
from offload_runtimes.engine import Array, as_feeds, rows_of
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES, Contract
from offload_runtimes.transport.connection import Connector
from offload_runtimes.transport.grpc_client import GrpcConnector

Tag = TypeVar("Tag")
_CLOSED = "the session is closed: open a new one"


class OffloadSession:
    """Runs a bundle: the device's segments here, the server's segments on a server.

    Used like `onnxruntime.InferenceSession`:

        with OffloadSession("model.bundle", "192.0.2.7:50051") as session:
            (y,) = session.run(None, {"x": x})

    While the device computes a segment, earlier tensors are uploaded. If the server is lost, at
    any time, and the device has the server's files of the bundle, too, the device finishes the
    inference from the tensors that it has. Several threads may call `run`.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        server: str | Connector | Sequence[str | Connector] | None = None,
        options: SessionOptions | None = None,
        *,
        on_close: Callable[[], None] = lambda: None,
        **changes: Any,
    ) -> None:
        """Load the device's segments, warm them up and connect.

        Args:
            bundle: a bundle or its directory, or a link to it; the device's files suffice. If the
                server no longer holds the bundle, the directory is opened again. If it now holds
                another bundle with the same inputs and outputs, the session changes to that
                bundle between two frames.
            server: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH` of a server that serves this bundle,
                or a connector to it; `kserve://HOST:PORT` of a server of KServe v2, such as Triton,
                that serves the model `NAME.server`, or `kserve://HOST:PORT/MODEL`; None for a
                bundle whose plan stays on the device. A list of servers: the session uses the
                first one, and goes on to the next, round and round, when one is lost, is full,
                shuts down or refuses the session.
            options: how to run the bundle.
            on_close: called after the session was closed; may be called twice.
            **changes: fields of SessionOptions, as keywords: `deadline_s=0.1`, `threads=2`, ...

        Raises:
            BundleError: the bundle is missing or damaged, or the server does not hold it.
            InputError: an option cannot be used, the plan needs a server and none is given, or a
                list of servers is empty, names one twice or mixes kserve:// with other addresses.
            ServerError: the server, or each one of a list, cannot be reached.
        """
        servers = _as_list(server)
        options = replace(options or SessionOptions(), **changes)
        path = None if isinstance(bundle, Bundle) else Path(bundle)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, (Side.DEVICE,))
        self._name = (path or opened.path).name
        self._inputs = {value.name: value for value in opened.inputs}
        self._defaults = {value.name: value for value in opened.defaults}
        self._outputs = tuple(value.name for value in opened.outputs)
        deadline_s = options.deadline_s
        self._deadline_s = None if deadline_s is None else checked_s("deadline_s", deadline_s)
        self._counters = Counters()
        self._process = os.getpid()
        self._is_closed = False
        rotation = ServerRotation(max(1, len(servers)))
        load = partial(
            OpenedBundle,
            options=options,
            counters=self._counters,
            make_executor=_executor_factory(options),
            servers=rotation,
            connect=partial(_connections, servers, rotation, options),
        )
        self._active = ActiveBundle(opened, path, load, options)
        self._close = partial(_close, self._active, on_close)
        self._forget = close_at_exit(self._close, self)

    @property
    def bundle(self) -> Bundle:
        """The bundle that the next inference runs."""
        return self._active.opened.bundle

    @property
    def is_split(self) -> bool:
        """Whether the next inference will use the server."""
        opened = self._active.opened
        return not self._plan().is_local and opened.connection is not None

    @property
    def server(self) -> str | None:
        """Address of the server in use; None: there is none now, or no plan needs one."""
        connection = self._active.opened.connection
        return connection.server if connection else None

    @property
    def plan(self) -> int:
        """Index of the bundle's plan that the next inference follows."""
        return self._active.opened.selector.plan

    @property
    def link(self) -> Link | None:
        """The link as measured to choose among plans; None if it was not measured."""
        return self._active.opened.selector.link

    @property
    def speeds(self) -> Speeds:
        """How fast device and server are, compared with the plan; as planned if not measured."""
        return self._active.opened.selector.speeds

    @property
    def switches(self) -> tuple[PlanSwitch, ...]:
        """The last changes of plan, oldest first; `counts.switches` is the number of all."""
        return self._active.opened.selector.switches

    @property
    def counts(self) -> Counts:
        """Counts of inferences, losses of the server and changes of plan so far."""
        return self._counters.counts

    def predicted(self) -> Timeline:
        """Predicted timeline of the current plan, on the measured link if there is one."""
        plan = self._plan()
        return plan.predicted(self._active.opened.selector.link) or plan.timeline

    def _plan(self) -> Plan:
        opened = self._active.opened
        return opened.bundle.plans[opened.selector.plan]

    def micro_batches(self, rows: int) -> tuple[MicroBatch, ...]:
        """The micro-batches in which `run` would compute a batch now, in the order of its rows.

        Empty if one plan computes all rows: the model's rows are not independent, there is no
        server now, or sharing gains less than the prediction error.
        """
        return self._active.opened.share_rows(rows)

    def get_inputs(self) -> list[ModelValue]:
        """Name, type and shape of each input that `run` needs."""
        return list(self._inputs.values())

    def get_overridable_initializers(self) -> list[ModelValue]:
        """Name, type and shape of the optional inputs: those with a default in the model."""
        return list(self._defaults.values())

    def get_outputs(self) -> list[ModelValue]:
        """Name, type and shape of each output of `run`."""
        return list(self._active.opened.bundle.outputs)

    def rehearse(self, input_feed: Mapping[str, Any], *, is_micro_batch: bool = False) -> float:
        """Run the device's part alone, on an array for each input, to learn its run times.

        With `is_micro_batch`, the times of a micro-batch with these rows. Returns the seconds
        that it took this machine.
        """
        self._check_usable()
        feeds = as_feeds(self._name, self._inputs, self._defaults, input_feed)
        rows = (rows_of(feeds) or 0) if is_micro_batch else 0
        return self._active.opened.executor.rehearse(self._plan().on(Side.DEVICE), feeds, rows)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        deadline_s: float | None = None,
    ) -> list[Any]:
        """Compute outputs from a value for each input.

        Several plans share the rows of a batch where the model's rows are independent, the bundle
        was made for a batch, and that is certain to be faster (`micro_batches`).

        Values are of the same types as in onnxruntime: arrays, lists for sequences, dicts for
        maps. Text may also be a numpy `<U` array, a scalar a number, and bfloat16, float8 and int4
        arrays of ml_dtypes or of their bits.

        Args:
            output_names: outputs to compute, in this order; None: all.
            input_feed: a value for every input; those with a default may be left out.
            deadline_s: seconds allowed; None: the session's deadline.

        Raises:
            InputError: a name, dtype or shape is wrong, or the session was closed.
            ServerError: the server is lost and the device may not or cannot finish alone.
            BundleError: the same, because the server does not hold the bundle any more.
            DeadlineError: the time is over.
        """
        inference = self._prepare(output_names, input_feed, deadline_s)
        inference.start()
        return inference.finish()

    def run_timed(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        deadline_s: float | None = None,
    ) -> tuple[list[Any], Timeline]:
        """As `run`, and also return the measured timeline: what each side did, and when."""
        inference = self._prepare(output_names, input_feed, deadline_s)
        inference.start()
        return inference.finish(), inference.timeline

    async def arun(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        deadline_s: float | None = None,
    ) -> list[Array]:
        """The same as `run` for asyncio: another thread computes and waits.

        If its task is cancelled, the work is stopped, here and on the server, before
        CancelledError is raised.
        """
        inference = self._prepare(output_names, input_feed, deadline_s)
        return await finish_async(inference)

    def begin(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        deadline_s: float | None = None,
        *,
        copy: bool = True,
    ) -> PendingInference:
        """Do the device's part and return; `PendingInference.finish` waits for the answer.

        One plan computes all rows of a batch.

        Args:
            output_names: outputs to compute, in this order; None: all.
            input_feed: an array for every input.
            deadline_s: seconds allowed; None: the session's deadline.
            copy: copy inputs that are still needed when this returns; without it, do not write to
                the arrays before `finish` has returned.

        Raises:
            OffloadError: as `run`.
        """
        opened, feeds, make = self._checked(output_names, input_feed, deadline_s, copy=copy)
        inference = make(feeds, opened.choose(None))
        inference.start()
        return inference

    @overload
    def stream(
        self,
        frames: Iterable[Mapping[str, Array]],
        output_names: Sequence[str] | None = None,
        *,
        window: int | None = None,
        latest: bool = False,
        copy: bool = True,
    ) -> Iterator[list[Array]]: ...

    @overload
    def stream(
        self,
        frames: Iterable[tuple[Tag, Mapping[str, Array]]],
        output_names: Sequence[str] | None = None,
        *,
        window: int | None = None,
        latest: bool = False,
        copy: bool = True,
    ) -> Iterator[tuple[Tag, list[Array]]]: ...

    def stream(
        self,
        frames: Iterable[Frame],
        output_names: Sequence[str] | None = None,
        *,
        window: int | None = None,
        latest: bool = False,
        copy: bool = True,
    ) -> Iterator[Any]:
        """Run many frames, with device, link and server busy at once; answers come in order.

        Args:
            frames: for each frame, an array for every input; read on another thread. A frame may
                also be `(tag, arrays)`: its answer is then `(tag, outputs)`.
            output_names: outputs to compute; None: all.
            window: largest number of frames that are computed or wait to be taken; a slow caller
                holds up the source. None: 4, or, if several plans share the frames, as many as
                keep device, link and server busy (4 with `latest` or a deadline).
            latest: for live cameras: read the source at its own speed and drop frames that are
                outdated when the device becomes free (counted in `counts.dropped`).
            copy: copy arrays that wait in a queue, so that the source may reuse them for the next
                frame; without it, do not write to an array before its answer has come.

        Raises:
            OffloadError: as `run`, when the answer of the failed frame is due.
        """
        limit = self._window(window, latest)
        prepare = self._frame_preparer(output_names, limit, copy and not latest)
        return stream_answers(prepare, self._newest(frames, latest, copy), limit)

    @overload
    def astream(
        self,
        frames: Iterable[Mapping[str, Array]] | AsyncIterable[Mapping[str, Array]],
        output_names: Sequence[str] | None = None,
        *,
        window: int | None = None,
        latest: bool = False,
        copy: bool = True,
    ) -> AsyncIterator[list[Array]]: ...

    @overload
    def astream(
        self,
        frames: (
            Iterable[tuple[Tag, Mapping[str, Array]]]
            | AsyncIterable[tuple[Tag, Mapping[str, Array]]]
        ),
        output_names: Sequence[str] | None = None,
        *,
        window: int | None = None,
        latest: bool = False,
        copy: bool = True,
    ) -> AsyncIterator[tuple[Tag, list[Array]]]: ...

    def astream(
        self,
        frames: Iterable[Frame] | AsyncIterable[Frame],
        output_names: Sequence[str] | None = None,
        *,
        window: int | None = None,
        latest: bool = False,
        copy: bool = True,
    ) -> AsyncIterator[Any]:
        """As `stream`, for `async for`; frames may also come from an asynchronous iterator.

        If the task is cancelled, the frames under way are stopped and a generator of frames is
        closed before CancelledError is raised.
        """
        limit = self._window(window, latest)
        prepare = self._frame_preparer(output_names, limit, copy and not latest)
        wrap = partial(self._newest, latest=latest, copy=copy)
        return stream_answers_async(prepare, frames, limit, wrap)

    def close(self) -> None:
        """Close the session; may be called twice.

        Inferences in other threads are stopped and raise InputError, as every later call does.
        """
        if os.getpid() != self._process:
            return  # the session belongs to the parent process, which still uses it
        self._is_closed = True
        self._close()
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _newest(self, frames: Iterable[Frame], latest: bool, copy: bool) -> Iterable[Frame]:
        if not latest:
            return frames
        return Latest(frames, lambda: self._counters.add("dropped"), copy=copy)

    def _window(self, window: int | None, latest: bool) -> Window:
        """The frames of a stream under way at once; what keeps all busy changes with the speeds."""
        if window is None:
            return lambda: DEFAULT_WINDOW if latest else self._active.opened.window
        if not isinstance(window, int) or window < 1:
            raise InputError(f"window must be at least 1 frame, not {window!r}")
        return lambda: window

    def _frame_preparer(
        self, output_names: Sequence[str] | None, window: Window, copy: bool
    ) -> Callable[[Mapping[str, Any]], PendingInference]:
        self._check_usable()
        self._checked_names(output_names)

        def prepare(feeds: Mapping[str, Any]) -> PendingInference:
            opened, checked, make = self._checked(output_names, feeds, None, copy=copy)
            return make(checked, opened.choose(window()))

        return prepare

    def _prepare(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        deadline_s: float | None,
    ) -> PendingInference | SharedBatch:
        """Check the arguments and make an inference, in micro-batches if plans share its rows."""
        opened, checked, make = self._checked(output_names, feeds, deadline_s, copy=False)
        # An optional input has no rows that are proved to be independent.
        rows = rows_of(checked) if checked.keys() <= self._inputs.keys() else None
        micro_batches = opened.share_rows(rows) if rows else ()
        if not micro_batches:
            return make(checked, opened.choose(None))
        return SharedBatch(micro_batches, checked, make, opened.spare_plan)

    def _checked(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        deadline_s: float | None,
        *,
        copy: bool,
    ) -> tuple[OpenedBundle, dict[str, Any], MakeInference]:
        """Check the arguments: the bundle, the inputs, and what makes inferences of inputs."""
        self._check_usable()
        names = self._checked_names(output_names)
        checked = as_feeds(self._name, self._inputs, self._defaults, feeds)
        allowed_s = self._deadline_s if deadline_s is None else checked_s("deadline_s", deadline_s)
        opened = self._active.opened

        def make(feeds: Mapping[str, Any], choice: FramePlan) -> PendingInference:
            inference = opened.runner.prepare(feeds, names, allowed_s, choice, copy=copy)
            inference.session = self  # it must not be closed while an inference is under way
            return inference

        return opened, checked, make

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise InputError(
                "the session was opened before this process was forked and works only in the"
                " parent process: open a new one here"
            )
        if self._is_closed:
            raise InputError(_CLOSED)

    def _checked_names(self, output_names: Sequence[str] | None) -> tuple[str, ...]:
        """Check the requested outputs; InputError unless the model has them."""
        if output_names is None:
            return self._outputs
        where = self._name
        if isinstance(output_names, str) or not isinstance(output_names, Iterable):
            raise InputError(
                f"{where}: outputs are a list of names, not {output_names!r}: give some of"
                f" {list(self._outputs)}, or None for all"
            )
        names = tuple(output_names)
        if not names:
            raise InputError(
                f"{where}: the list of outputs is empty: give some of {list(self._outputs)}, or"
                " None for all"
            )
        for name in names:
            if name not in self._outputs:
                raise InputError(f"{where} has no output {name!r}: it gives {list(self._outputs)}")
        return names


def _close(active: ActiveBundle, on_close: Callable[[], None]) -> None:
    """Close a session that may have been garbage collected."""
    active.close(_CLOSED)
    on_close()


def _executor_factory(options: SessionOptions) -> Callable[[Bundle], SegmentExecutor]:
    if options.slowdown == 1:
        return partial(SegmentExecutor, options=options.engine)
    from offload_runtimes.emulation.pacing import PacedExecutor, as_pacer

    return partial(PacedExecutor, options=options.engine, pacer=as_pacer(options.slowdown))


def _as_list(
    server: str | Connector | Sequence[str | Connector] | None,
) -> tuple[str | Connector, ...]:
    """The servers of a session; InputError unless they are of one kind and all different."""
    if server is None:
        return ()
    if isinstance(server, str) or not isinstance(server, Iterable):
        return (server,)
    servers: tuple[str | Connector, ...] = tuple(server)
    if not servers:
        raise InputError("the list of servers is empty: give the HOST:PORT of at least one")
    kserve = [each for each in servers if _is_kserve(each)]
    others = [each for each in servers if not _is_kserve(each)]
    if kserve and others:
        raise InputError(
            f"{kserve[0]} and {others[0]} are servers of two kinds: list servers of KServe v2"
            " (kserve://) or of onnx-offload, not both"
        )
    seen: list[object] = []
    for each in servers:
        # An address with a scheme can be written in one way only.
        same = each if not isinstance(each, str) or _is_kserve(each) else parse_address(each)
        if same in seen:
            raise InputError(f"server {each} is listed twice: give each server once")
        seen.append(same)
    return servers


def _is_kserve(server: str | Connector) -> bool:
    return isinstance(server, str) and server.startswith(KSERVE_SCHEME)


def _connections(
    servers: Sequence[str | Connector],
    rotation: ServerRotation,
    options: SessionOptions,
    bundle: Bundle,
    plans: tuple[Plan, ...],
    contracts: tuple[Contract, ...],
    monitor: LinkMonitor,
    speeds: SpeedMonitor,
) -> Callable[[], DeviceConnection]:
    """A factory of connections of the kind that the servers' addresses name; see `Connect`."""
    if not servers:
        raise InputError(
            "this bundle's plan needs a server: give its HOST:PORT, or use"
            " offload_runtimes.open_session, which starts one within this process"
        )
    patience_s = options.patience_s
    if not _is_kserve(servers[0]):
        connectors = [_connector(server, options) for server in servers]
        return lambda: ServerConnection(
            connectors[rotation.current], contracts, monitor, speeds, patience_s
        )
    # Not imported for other servers: a device's memory and start-up time are short.
    from offload_runtimes.device.kserve_connection import KServeConnection, check_bundle
    from offload_runtimes.transport.kserve_client import kserve_connector

    if options.link is not None or options.slowdown != 1:
        raise InputError(
            "link and slowdown are emulated with our own server only: leave them out, or leave out"
            f" {KSERVE_SCHEME}"
        )
    check_bundle(bundle, plans)
    models = [kserve_connector(str(server), options.security) for server in servers]
    return lambda: KServeConnection(
        models[rotation.current], bundle, contracts[0], monitor, patience_s
    )


def _connector(server: str | Connector, options: SessionOptions) -> Connector:
    connector: Connector
    if not isinstance(server, str) and hasattr(server, "connect"):
        connector = server
    else:
        connector = GrpcConnector(parse_address(server), MESSAGE_LIMIT_BYTES, options.security)
    if options.link is None and options.slowdown == 1:
        return connector
    from offload_runtimes.emulation.link import emulate_link

    return emulate_link(connector, options.link, options.slowdown)
