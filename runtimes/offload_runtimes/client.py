"""The device's side: run a bundle as if it were one onnxruntime session."""

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from pathlib import Path
from typing import Self

from offload.bundle.bundle import Bundle, Value, open_bundle
from offload.cost.link import Link
from offload.errors import InputError, OffloadError, ServerError
from offload.plan.plan import Plan, Side
from offload.plan.switching import Switching
from offload.schedule.timeline import Timeline

from offload_runtimes.device.closing import close_at_exit
from offload_runtimes.device.emulate import LinkCost, Pacer
from offload_runtimes.device.engines import Device
from offload_runtimes.device.execution import Execution, OnServerLoss, Running
from offload_runtimes.device.keeper import Keeper
from offload_runtimes.device.pilot import Pilot, Switch
from offload_runtimes.device.remote import Remote
from offload_runtimes.device.stream import Latest, answers, answers_async
from offload_runtimes.device.tally import Counts, Tally
from offload_runtimes.engine import Array, EngineOptions, check_feed
from offload_runtimes.grpc.channel import GrpcConnector
from offload_runtimes.security.credentials import ClientSecurity
from offload_runtimes.wire.contract import Contract, contracts, message_limit_bytes
from offload_runtimes.wire.transport import Connector


class OffloadSession:
    """Runs one bundle: its device part here, its server part on a server.

    Shaped like `onnxruntime.InferenceSession`:

        with OffloadSession("model.bundle", "192.0.2.7:50051") as session:
            (y,) = session.run(None, {"x": x})

    While the device computes a segment, tensors made before it are on their way to the server.
    When the server is lost, at any instant, and the bundle's server part is on the device too,
    the inference is finished here from the tensors at hand. `run` may be called from several
    threads.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        server: str | Connector | None = None,
        *,
        providers: tuple[str, ...] = (),
        threads: int | None = None,
        optimize: bool = True,
        allow_cpu: bool = False,
        link: LinkCost | None = None,
        slowdown: float | Pacer = 1.0,
        on_server_loss: OnServerLoss | str = OnServerLoss.RESUME,
        deadline_s: float | None = None,
        eager: bool | None = None,
        require_server: bool = True,
        heartbeat_s: float = 0.25,
        patience_s: float = 1.0,
        connect_timeout_s: float = 5.0,
        security: ClientSecurity | None = None,
        plan: int | None = None,
        switching: Switching = Switching(),  # noqa: B008  frozen
    ) -> None:
        """Load the device's segments, warm them, connect.

        Args:
            bundle: a bundle or its directory; the device's files suffice.
            server: `HOST:PORT` of a server that serves this bundle, or a connector to it; None
                for a bundle whose plan stays on the device.
            providers: onnxruntime's execution providers in order of preference (also `cuda`,
                `tensorrt`, `openvino`); one that is missing is an error.
            threads: threads of one kernel; None: one per physical core.
            optimize: let onnxruntime fuse and fold; without it, results are bit-equal to the
                whole model's.
            allow_cpu: run on the CPU, with a warning, where a provider is missing.
            link: emulate a link of this cost, each way.
            slowdown: emulate a device so many times slower; sessions that share a Pacer share
                what it has learnt.
            on_server_loss: `resume`, `local` or `raise`, see OnServerLoss.
            deadline_s: seconds from `run` to the answer; the device begins on the server's part
                itself when the answer would come too late.
            eager: load the server's part here at once, not when first needed; None: when there
                is a deadline.
            require_server: raise ServerError when the server isn't there at the start; else
                begin locally and use the server once it answers.
            heartbeat_s: seconds between signs of life asked of the server.
            patience_s: silence after which the server counts as lost (time that tensors need on
                the link is allowed on top).
            connect_timeout_s: seconds to reach the server.
            security: certificates and token; None: plaintext.
            plan: which of the bundle's plans to follow; None: the best for the link as it is
                measured while the session lasts.
            switching: how sure to be before another plan is followed.

        Raises:
            BundleError: the bundle is missing or damaged, or the server does not hold it.
            InputError: an option cannot be used, or the plan needs a server and none is given.
            ServerError: the server cannot be reached.
        """
        if not isinstance(bundle, Bundle):
            bundle = open_bundle(bundle, (Side.DEVICE,))
        self.bundle = bundle
        self._inputs = {value.name: value for value in bundle.inputs}
        self._outputs = tuple(value.name for value in bundle.outputs)
        self._deadline_s = deadline_s
        tally = self._tally = Tally()
        policy = _policy(on_server_loss)
        pacer = slowdown if isinstance(slowdown, Pacer) else Pacer(slowdown)
        options = EngineOptions(providers, threads, optimize, allow_cpu=allow_cpu)
        device = self._device = Device(bundle, options, pacer)
        resumes = policy is not OnServerLoss.RAISE and bundle.holds(Side.SERVER)
        eagerly = resumes and (deadline_s is not None if eager is None else eager)

        def load(followed: Plan) -> None:
            device.load(followed.segments if eagerly else followed.on(Side.DEVICE))

        # Nothing below refers to this session itself: its models go with its last user, without
        # the garbage collector, which does not know how large they are.
        pilot = Pilot(bundle, load, plan, switching, partial(tally.add, "switches"))
        for followed in pilot.loaded_first:
            load(followed)
        keeper: Keeper | None = None
        if not all(followed.is_local for followed in pilot.open_plans):
            agreed = contracts(bundle, _values(bundle, device))
            connector = _connector(server, agreed, security)

            def connect(timeout_s: float) -> Remote:
                pilot.gauge.forget()
                return Remote(
                    connector,
                    agreed,
                    link=link,
                    slowdown=pacer.slowdown,
                    timeout_s=timeout_s,
                    patience_s=patience_s,
                    passed=pilot.gauge.passed,
                )

            keeper = Keeper(
                connect,
                _first(connect, connect_timeout_s, require_server),
                heartbeat_s=heartbeat_s,
                timeout_s=connect_timeout_s,
                reconnect=policy is not OnServerLoss.LOCAL,
                tally=tally,
            )
        self._pilot, self._keeper = pilot, keeper
        self._execution = Execution(bundle, device, policy, keeper, tally, pilot.take)
        close_at_exit(self)
        self._remote = partial(_alive, keeper)
        try:
            pilot.settle(self._remote())
        except OffloadError:
            self.close()
            raise
        pilot.watch(self._remote, heartbeat_s)

    @property
    def is_split(self) -> bool:
        """Whether the next inference will use the server."""
        stays = self.bundle.plans[self.plan].is_local
        return not stays and self._remote() is not None

    @property
    def plan(self) -> int:
        """Which of the bundle's plans the next inference follows."""
        return self._pilot.plan

    @property
    def link(self) -> Link | None:
        """The link as measured while choosing among plans; None when it was not."""
        return self._pilot.link

    @property
    def switches(self) -> tuple[Switch, ...]:
        """The last changes of plan, oldest first; `counts.switches` says how many there were."""
        return self._pilot.switches

    @property
    def counts(self) -> Counts:
        """What the session has done so far."""
        return self._tally.counts

    def predicted(self) -> Timeline:
        """What the plan that is followed now should take, on the link as measured if it was."""
        followed = self.bundle.plans[self.plan]
        if self.link is None or followed.forecast is None:
            return followed.timeline
        return followed.forecast.timeline(self.link)

    def get_inputs(self) -> list[Value]:
        """What `run` needs: name, type and shape of each input."""
        return list(self.bundle.inputs)

    def get_outputs(self) -> list[Value]:
        """What `run` gives: name, type and shape of each output."""
        return list(self.bundle.outputs)

    def rehearse(self, input_feed: Mapping[str, Array]) -> float:
        """Run the device's part alone on an array for each input, so that its pace is known.

        Gives the seconds it took this machine.
        """
        return self._device.rehearse(self.bundle.plans[self.plan].on(Side.DEVICE), input_feed)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        deadline_s: float | None = None,
    ) -> list[Array]:
        """Compute outputs (None: all) from an array for each input.

        Args:
            output_names: outputs wanted, in that order.
            input_feed: an array for every input.
            deadline_s: seconds allowed; None: the session's.

        Raises:
            InputError: a name, dtype or shape is wrong.
            ServerError: the server is lost and the device may not or cannot go on alone.
            DeadlineError: the time is over.
        """
        return self.begin(output_names, input_feed, deadline_s).finish()

    def run_timed(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        deadline_s: float | None = None,
    ) -> tuple[list[Array], Timeline]:
        """As `run`, and the measured timeline: who did what from when to when."""
        running = self.begin(output_names, input_feed, deadline_s)
        return running.finish(), running.timeline

    def begin(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        deadline_s: float | None = None,
    ) -> Running:
        """Do the device's part and return; `Running.finish` waits for the answer.

        The arrays given must not change until then. Raises as `run`.
        """
        names = self._checked(output_names, input_feed)
        allowed_s = self._deadline_s if deadline_s is None else deadline_s
        return self._execution.begin(input_feed, names, allowed_s)

    def stream(
        self,
        frames: Iterable[Mapping[str, Array]],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
        latest: bool = False,
    ) -> Iterator[list[Array]]:
        """Run many frames with device, link and server busy at once; answers in order.

        Args:
            frames: an array for every input, per frame; read on another thread. Arrays must not
                be written to before their answer has come.
            output_names: outputs wanted; None: all.
            window: frames under way or waiting to be taken; a slow caller holds up the source.
            latest: for live cameras: read the source at its own pace and drop frames that are
                stale by the time the device is free (counted in `counts.dropped`).

        Raises:
            OffloadError: as `run`, in the turn of the frame that failed.
        """

        def begin(feeds: Mapping[str, Array]) -> Running:
            return self.begin(output_names, feeds)

        return answers(begin, self._paced(frames, latest), _window(window))

    def astream(
        self,
        frames: Iterable[Mapping[str, Array]] | AsyncIterable[Mapping[str, Array]],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
        latest: bool = False,
    ) -> AsyncIterator[list[Array]]:
        """As `stream`, for `async for`; frames may come from an asynchronous iterator too."""

        def begin(feeds: Mapping[str, Array]) -> Running:
            return self.begin(output_names, feeds)

        def wrap(source: Iterable[Mapping[str, Array]]) -> Iterable[Mapping[str, Array]]:
            return self._paced(source, latest)

        return answers_async(begin, frames, _window(window), wrap)

    def close(self) -> None:
        """End the session with the server; may be called twice."""
        self._pilot.close()
        if self._keeper:
            self._keeper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _paced(
        self, frames: Iterable[Mapping[str, Array]], latest: bool
    ) -> Iterable[Mapping[str, Array]]:
        return Latest(frames, lambda: self._tally.add("dropped")) if latest else frames

    def _checked(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Array]
    ) -> tuple[str, ...]:
        """The outputs wanted; InputError unless inputs and outputs are the model's."""
        where = self.bundle.path.name
        for name in feeds:
            if name not in self._inputs:
                raise InputError(f"{where} has no input {name!r}: it takes {list(self._inputs)}")
        for name, value in self._inputs.items():
            if name not in feeds:
                raise InputError(
                    f"{where}: input {name!r} is missing: give all of {list(self._inputs)}"
                )
            check_feed(where, value, feeds[name])
        for name in output_names or ():
            if name not in self._outputs:
                raise InputError(f"{where} has no output {name!r}: it gives {list(self._outputs)}")
        return self._outputs if output_names is None else tuple(output_names)


def _alive(keeper: Keeper | None) -> Remote | None:
    """The session with the server while it is alive."""
    return keeper.remote if keeper else None


def _window(frames: int) -> int:
    if frames < 1:
        raise InputError(f"window must be at least 1 frame, not {frames}")
    return frames


def _policy(text: str) -> OnServerLoss:
    try:
        return OnServerLoss(text)
    except ValueError:
        raise InputError(f"on_server_loss is resume, local or raise, not {text!r}") from None


def _values(bundle: Bundle, device: Device) -> dict[str, Value]:
    """Type and shape of every tensor this side knows."""
    ends = {value.name: value for value in (*bundle.inputs, *bundle.outputs)}
    return {**ends, **device.values()}


def _first(connect: Callable[[float], Remote], timeout_s: float, required: bool) -> Remote | None:
    try:
        return connect(timeout_s)
    except ServerError:
        if required:
            raise
        return None


def _connector(
    server: str | Connector | None, agreed: Sequence[Contract], security: ClientSecurity | None
) -> Connector:
    if server is None:
        raise InputError(
            "this bundle's plan needs a server: give its HOST:PORT, or use"
            " offload_runtimes.local.open_session, which starts one within this process"
        )
    if isinstance(server, str):
        return GrpcConnector(server, message_limit_bytes(agreed), security)
    return server
