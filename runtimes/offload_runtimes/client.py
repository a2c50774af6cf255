"""The device's side: run a bundle as if it were one onnxruntime session."""

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
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np
from offload.bundle.bundle import Bundle, ModelValue, open_bundle
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload.planning.plan_set import SwitchPolicy
from offload.scheduling.timeline import Timeline

from offload_runtimes.address import parse_address
from offload_runtimes.closing import close_at_exit
from offload_runtimes.device.active_bundle import ActiveBundle, SessionOptions
from offload_runtimes.device.counters import Counters, Counts
from offload_runtimes.device.inference_runner import OnServerLoss, PendingInference
from offload_runtimes.device.plan_selector import PlanSwitch
from offload_runtimes.device.stream import Frame, Latest, answers, answers_async, finish_async
from offload_runtimes.emulate import LinkCost, Pacer
from offload_runtimes.engine import Array, EngineOptions, as_feed
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES
from offload_runtimes.security.credentials import ClientSecurity
from offload_runtimes.transport.connection import Connector
from offload_runtimes.transport.grpc_client import GrpcConnector

Tag = TypeVar("Tag")
_CLOSED = "the session is closed: open a new one"


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
        switching: SwitchPolicy = SwitchPolicy(),  # noqa: B008  frozen
    ) -> None:
        """Load the device's segments, warm them, connect.

        Args:
            bundle: a bundle or its directory; the device's files suffice. A directory is opened
                again when the server does not hold the bundle any more: where it, or the link
                that it is, holds another one of the same inputs and outputs by then, the session
                changes to that one between two frames.
            server: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH` of a server that serves this bundle,
                or a connector to it; None for a bundle whose plan stays on the device.
            providers: onnxruntime's execution providers in order of preference (also `cuda`,
                `tensorrt`, `openvino`); one that is missing is an error.
            threads: threads of one kernel; None: one per physical core that the process may use.
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
            require_server: raise an error when the server isn't there at the start, or does not
                hold the bundle; else begin locally and use the server once it answers.
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
        if isinstance(providers, str):
            raise InputError(f"providers are a tuple of names, like ({providers!r},)")
        if isinstance(link, str):
            raise InputError(f"link {link!r} is a string: give parse_link({link!r})")
        path = None if isinstance(bundle, Bundle) else Path(bundle)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, (Side.DEVICE,))
        self._name = (path or opened.path).name
        self._inputs = {value.name: value for value in opened.inputs}
        self._defaults = {default.value.name: default.value for default in opened.defaults}
        self._outputs = tuple(value.name for value in opened.outputs)
        self._deadline_s = None if deadline_s is None else checked_s("deadline_s", deadline_s)
        tally = self._tally = Counters()
        options = SessionOptions(
            engine=EngineOptions(providers, threads, optimize, allow_cpu=allow_cpu),
            pacer=slowdown if isinstance(slowdown, Pacer) else Pacer(slowdown),
            policy=_policy(on_server_loss),
            connect=partial(_connector, server, security),
            link=link,
            eager=deadline_s is not None if eager is None else eager,
            require_server=require_server,
            heartbeat_s=heartbeat_s,
            patience_s=patience_s,
            connect_timeout_s=connect_timeout_s,
            plan=plan,
            switching=switching,
        )
        self._process = os.getpid()
        self._is_closed = False
        active = self._active = ActiveBundle(opened, path, options, tally)
        self._closers: list[Callable[[], None]] = [partial(active.close, _CLOSED)]
        self._forget = close_at_exit(partial(_call_all, self._closers), self)

    @property
    def bundle(self) -> Bundle:
        """The bundle that the next inference runs."""
        return self._active.opened.bundle

    @property
    def is_split(self) -> bool:
        """Whether the next inference will use the server."""
        opened = self._active.opened
        stays = opened.bundle.plans[opened.pilot.plan].is_local
        return not stays and opened.remote is not None

    @property
    def plan(self) -> int:
        """Which of the bundle's plans the next inference follows."""
        return self._active.opened.pilot.plan

    @property
    def link(self) -> Link | None:
        """The link as measured while choosing among plans; None when it was not."""
        return self._active.opened.pilot.link

    @property
    def switches(self) -> tuple[PlanSwitch, ...]:
        """The last changes of plan, oldest first; `counts.switches` says how many there were."""
        return self._active.opened.pilot.switches

    @property
    def counts(self) -> Counts:
        """What the session has done so far."""
        return self._tally.counts

    def predicted(self) -> Timeline:
        """What the plan that is followed now should take, on the link as measured if it was."""
        opened = self._active.opened
        followed = opened.bundle.plans[opened.pilot.plan]
        return followed.predicted(opened.pilot.link) or followed.timeline

    def get_inputs(self) -> list[ModelValue]:
        """What `run` needs: name, type and shape of each input."""
        return list(self._inputs.values())

    def get_overridable_initializers(self) -> list[ModelValue]:
        """What `run` may be given besides: the inputs that have a default in the model."""
        return list(self._defaults.values())

    def get_outputs(self) -> list[ModelValue]:
        """What `run` gives: name, type and shape of each output."""
        return list(self._active.opened.bundle.outputs)

    def rehearse(self, input_feed: Mapping[str, Any]) -> float:
        """Run the device's part alone on an array for each input, so that its pace is known.

        Gives the seconds it took this machine.
        """
        self._check_usable()
        feeds = self._checked_feeds(input_feed)
        opened = self._active.opened
        followed = opened.bundle.plans[opened.pilot.plan]
        return opened.device.rehearse(followed.on(Side.DEVICE), feeds)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        deadline_s: float | None = None,
    ) -> list[Any]:
        """Compute outputs (None: all) from a value for each input.

        Values are what onnxruntime takes and gives: arrays, lists for sequences, dicts for maps.
        Text may also come as numpy's `<U` arrays, a scalar as a number, and bfloat16, float8 and
        int4 as arrays of ml_dtypes or of their bits.

        Args:
            output_names: outputs wanted, in that order.
            input_feed: a value for every input; those with a default may be left out.
            deadline_s: seconds allowed; None: the session's.

        Raises:
            InputError: a name, dtype or shape is wrong, or the session was closed.
            ServerError: the server is lost and the device may not or cannot go on alone.
            BundleError: the same, for the server does not hold the bundle any more.
            DeadlineError: the time is over.
        """
        running = self._prepared(output_names, input_feed, deadline_s, copy=False)
        running.start()
        return running.finish()

    def run_timed(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        deadline_s: float | None = None,
    ) -> tuple[list[Any], Timeline]:
        """As `run`, and the measured timeline: who did what from when to when."""
        running = self._prepared(output_names, input_feed, deadline_s, copy=False)
        running.start()
        return running.finish(), running.timeline

    async def arun(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        deadline_s: float | None = None,
    ) -> list[Array]:
        """As `run`, for `await`; it computes and waits on another thread, not the event loop's.

        When its task is cancelled, the work is stopped, here and on the server, before the
        cancellation comes through.
        """
        running = self._prepared(output_names, input_feed, deadline_s, copy=False)
        return await finish_async(running)

    def begin(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        deadline_s: float | None = None,
        *,
        copy: bool = True,
    ) -> PendingInference:
        """Do the device's part and return; `PendingInference.finish` waits for the answer.

        Args:
            output_names: outputs wanted, in that order; None: all.
            input_feed: an array for every input.
            deadline_s: seconds allowed; None: the session's.
            copy: copy inputs that are still needed when this returns; without it, the arrays must
                not be written to before `finish` has returned.

        Raises:
            OffloadError: as `run`.
        """
        running = self._prepared(output_names, input_feed, deadline_s, copy=copy)
        running.start()
        return running

    @overload
    def stream(
        self,
        frames: Iterable[Mapping[str, Array]],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
        latest: bool = False,
        copy: bool = True,
    ) -> Iterator[list[Array]]: ...

    @overload
    def stream(
        self,
        frames: Iterable[tuple[Tag, Mapping[str, Array]]],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
        latest: bool = False,
        copy: bool = True,
    ) -> Iterator[tuple[Tag, list[Array]]]: ...

    def stream(
        self,
        frames: Iterable[Frame],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
        latest: bool = False,
        copy: bool = True,
    ) -> Iterator[Any]:
        """Run many frames with device, link and server busy at once; answers in order.

        Args:
            frames: an array for every input, per frame; read on another thread. A frame may also
                be `(tag, arrays)`: its answer is `(tag, outputs)` then.
            output_names: outputs wanted; None: all.
            window: frames under way or waiting to be taken; a slow caller holds up the source.
            latest: for live cameras: read the source at its own pace and drop frames that are
                stale by the time the device is free (counted in `counts.dropped`).
            copy: copy what waits in a queue, so that the source may reuse its arrays for the
                next frame; without it, arrays must not be written to before their answer has come.

        Raises:
            OffloadError: as `run`, in the turn of the frame that failed.
        """
        window, prepare = _window(window), self._frame_preparer(output_names, copy and not latest)
        return answers(prepare, self._paced(frames, latest, copy), window)

    @overload
    def astream(
        self,
        frames: Iterable[Mapping[str, Array]] | AsyncIterable[Mapping[str, Array]],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
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
        window: int = 4,
        latest: bool = False,
        copy: bool = True,
    ) -> AsyncIterator[tuple[Tag, list[Array]]]: ...

    def astream(
        self,
        frames: Iterable[Frame] | AsyncIterable[Frame],
        output_names: Sequence[str] | None = None,
        *,
        window: int = 4,
        latest: bool = False,
        copy: bool = True,
    ) -> AsyncIterator[Any]:
        """As `stream`, for `async for`; frames may come from an asynchronous iterator too.

        When the task is cancelled, what was begun is stopped and a generator of frames is closed
        before the cancellation comes through.
        """
        window, prepare = _window(window), self._frame_preparer(output_names, copy and not latest)

        def wrap(source: Iterable[Frame]) -> Iterable[Frame]:
            return self._paced(source, latest, copy)

        return answers_async(prepare, frames, window, wrap)

    def close(self) -> None:
        """End the session with the server; may be called twice.

        What is under way in other threads is stopped and raises InputError, as `run` does then.
        """
        if os.getpid() != self._process:
            return  # the session is the parent's, which goes on
        self._is_closed = True
        _call_all(self._closers)
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _paced(self, frames: Iterable[Frame], latest: bool, copy: bool) -> Iterable[Frame]:
        if not latest:
            return frames
        return Latest(frames, lambda: self._tally.add("dropped"), copy=copy)

    def _frame_preparer(
        self, output_names: Sequence[str] | None, copy: bool
    ) -> Callable[[Mapping[str, Any]], PendingInference]:
        self._check_usable()
        self._checked_names(output_names)
        return lambda feeds: self._prepared(output_names, feeds, None, copy=copy)

    def _prepared(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        deadline_s: float | None,
        *,
        copy: bool,
    ) -> PendingInference:
        """An inference that has not begun yet, its arguments checked."""
        self._check_usable()
        names, checked = self._checked_names(output_names), self._checked_feeds(feeds)
        allowed_s = self._deadline_s if deadline_s is None else checked_s("deadline_s", deadline_s)
        running = self._active.opened.execution.prepare(checked, names, allowed_s, copy=copy)
        running.session = self  # it must not be closed while an inference is under way
        return running

    def _check_usable(self) -> None:
        if os.getpid() != self._process:
            raise InputError(
                "the session was opened before this process was forked, and works in its parent"
                " only: open a new one here"
            )
        if self._is_closed:
            raise InputError(_CLOSED)

    def _checked_feeds(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The values to compute from; InputError unless they are the model's inputs."""
        where = self._name
        if not isinstance(feeds, Mapping):
            raise InputError(
                f"{where}: inputs are a dict from names to arrays, not a {type(feeds).__name__}:"
                f" give all of {list(self._inputs)}"
            )
        checked: dict[str, Any] = {}
        for name, given in feeds.items():
            value = self._inputs.get(name) or self._defaults.get(name)
            if value is None:
                known = [*self._inputs, *self._defaults]
                raise InputError(f"{where} has no input {name!r}: it takes {known}")
            checked[name] = as_feed(where, value, given)
        for name in self._inputs:
            if name not in feeds:
                raise InputError(
                    f"{where}: input {name!r} is missing: give all of {list(self._inputs)}"
                )
        return checked

    def _checked_names(self, output_names: Sequence[str] | None) -> tuple[str, ...]:
        """The outputs wanted; InputError unless they are the model's."""
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


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _window(frames: int) -> int:
    if not isinstance(frames, int) or frames < 1:
        raise InputError(f"window must be at least 1 frame, not {frames!r}")
    return frames


def checked_s(name: str, seconds: float) -> float:
    """A number of seconds that a caller gave; InputError unless it is finite and above 0."""
    if not isinstance(seconds, int | float | np.number) or not 0 < seconds < float("inf"):
        raise InputError(f"{name} must be a number of seconds above 0, not {seconds!r}")
    return float(seconds)


def _policy(text: str) -> OnServerLoss:
    try:
        return OnServerLoss(text)
    except ValueError:
        raise InputError(f"on_server_loss is resume, local or raise, not {text!r}") from None


def _connector(server: str | Connector | None, security: ClientSecurity | None) -> Connector:
    if server is None:
        raise InputError(
            "this bundle's plan needs a server: give its HOST:PORT, or use"
            " offload_runtimes.open_session, which starts one within this process"
        )
    if not isinstance(server, str) and hasattr(server, "connect"):
        return server
    return GrpcConnector(parse_address(server), MESSAGE_LIMIT_BYTES, security)
