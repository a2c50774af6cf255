"""The device's connection to a server of KServe v2: one request for each frame.

The server may be Triton, KServe, MLServer or another `offload serve`. It runs the server's part of
a bundle as one of its models. The protocol sends all inputs of a model at once, so a frame's
request is sent when its last upload is ready.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from google.protobuf.message import DecodeError
from offload.bundle.bundle import Bundle, ModelValue
from offload.costs.encodings import RAW, encoding
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError
from offload.planning.plan import Action, Plan
from offload.scheduling.timeline import Lane
from offload.units import format_s

import offload_runtimes.protocol.kserve_pb2 as kserve
from offload_runtimes.device.link_monitor import LinkMonitor
from offload_runtimes.device.segment_executor import FrameTensors
from offload_runtimes.engine import TEXT, show_shape
from offload_runtimes.protocol import kserve_messages as messages
from offload_runtimes.protocol.kserve_messages import DATATYPES, SERVER_PART
from offload_runtimes.protocol.messages import PackedTensor
from offload_runtimes.protocol.tensor_specs import Contract
from offload_runtimes.transport.kserve_client import (
    KServeChannel,
    KServeConnector,
    LostServerError,
)

_MAX_FRAMES = 8  # under way at once


@dataclass
class _Request:
    """A frame's request while its inputs are collected, and when it is under way."""

    frame: FrameTensors
    missing: set[str]
    inputs: dict[str, PackedTensor] = field(default_factory=dict)
    cancel: Callable[[], object] = lambda: None


def check_bundle(bundle: Bundle, plans: Sequence[Plan]) -> None:
    """Check that a server of KServe v2 can run the server's part of the plans in use.

    Raises:
        InputError: it cannot, with what to do.
    """
    if any(plan is not bundle.plan and not plan.is_local for plan in plans):
        raise InputError(
            "a KServe server runs the first plan of a bundle only: open the session with plan=0, or"
            " split for one link"
        )
    plan = bundle.plan
    advice = "split the model with `--backend kserve`"
    for send in plan.uploads:
        if encoding(send.encoding).codec != RAW.codec:
            raise InputError(
                f"the plan sends {send.tensor!r} as {send.encoding}, which a KServe server cannot"
                f" decode: {advice}"
            )
    downloads = {send.wire for send in plan.downloads}
    has_answer = False
    for step in plan.steps:
        if step.action is Action.RUN:
            has_answer |= not downloads.isdisjoint(plan.segment(step.target).inputs)
        elif has_answer:
            raise InputError(
                "the plan needs an answer of the server before its last upload, which KServe's one"
                f" request for each frame cannot give: {advice}"
            )


class KServeConnection:
    """A connection to a model of a KServe server, used as a session with our own server.

    Attributes:
        error: why it is over; None while it lasts.
        leaving: whether the server takes no more frames; it cannot say so.
        on_loss: called once it is over.
    """

    leaving = False

    def __init__(
        self,
        connector: KServeConnector,
        bundle: Bundle,
        contract: Contract,
        monitor: LinkMonitor,
        patience_s: float = 1.0,
    ) -> None:
        """Nothing is connected before `open`.

        Args:
            connector: opens channels to the server.
            bundle: the bundle.
            contract: the tensors of its first plan.
            monitor: detects a lost server; it is reset.
            patience_s: silence after which the server counts as lost.

        Raises:
            InputError: the protocol has no datatype for a tensor that is sent.
        """
        monitor.reset()
        self._connector = connector
        self._model = connector.model or f"{messages.model_name(bundle)}{SERVER_PART}"
        self._version = ""
        self._own_version = messages.version_of(bundle)
        self._contract = contract
        self._monitor = monitor
        self._patience_s = patience_s
        self._inputs = {send.wire: _value(send.wire, contract) for send in bundle.plan.uploads}
        self._defaults = {value.name: value for value in bundle.defaults}
        self._outputs = {send.wire: _value(send.wire, contract) for send in bundle.plan.downloads}
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._requests: dict[int, _Request] = {}
        self._last_frame = self._last_ping = 0
        self._channel: KServeChannel | None = None
        self.error: OffloadError | None = None
        self.on_loss: Callable[[], None] = lambda: None

    @property
    def server(self) -> str:
        """The server's address."""
        return self._connector.address

    def open(self, timeout_s: float) -> None:
        """Connect, and check that the server's model has the contract's inputs and outputs.

        Raises:
            ServerError: the server cannot be reached, or does not answer in time.
            BundleError: it has no such model, or one with other inputs or outputs.
        """
        channel = self._connector.open(timeout_s)
        try:
            with self._lock:
                if self.error is not None:
                    raise self.error
                self._channel = channel
            channel.ask("ServerLive", b"")
            self._check_model(channel)
        except DeadlineError as error:
            self.close()
            raise ServerError(
                f"server {self._connector.address} did not answer within {format_s(timeout_s)}:"
                " check the address, and that the server is running and not overloaded"
            ) from error
        except OffloadError:
            self.close()
            raise

    def _check_model(self, channel: KServeChannel) -> None:
        """Compare the model's metadata with the contract, and learn the version to request."""
        request = kserve.ModelMetadataRequest(name=self._model)
        try:
            answer = channel.ask("ModelMetadata", request.SerializeToString())
            metadata = kserve.ModelMetadataResponse.FromString(answer)
        except (BundleError, InputError) as error:
            raise BundleError(
                f"{error}; export the server's part with `offload export triton`, or give its name"
                f" there: {self._connector.address}/NAME"
            ) from error
        except DecodeError as error:
            raise ServerError(f"{self._connector.address} does not speak KServe v2") from error
        if self._own_version in metadata.versions:
            self._version = self._own_version
        inputs = [tensor for tensor in metadata.inputs if tensor.name not in self._defaults]
        self._compare("takes", inputs, self._inputs, exact=True)
        self._compare("gives", metadata.outputs, self._outputs, exact=False)

    def _compare(
        self,
        verb: str,
        theirs: Sequence[kserve.ModelMetadataResponse.TensorMetadata],
        ours: Mapping[str, ModelValue],
        *,
        exact: bool,
    ) -> None:
        """Raise BundleError unless the model's tensors are those of the bundle."""
        named = {tensor.name: tensor for tensor in theirs}
        if not ours.keys() <= named.keys() or (exact and named.keys() != ours.keys()):
            raise self._other_model(f"{verb} {sorted(named)}", f"{sorted(ours)}")
        for name, value in ours.items():
            tensor = named[name]
            sizes, own = tuple(tensor.shape), messages.sizes(value)
            fits = value.shape is None or (
                len(sizes) == len(own)
                and all(a == b or -1 in (a, b) for a, b in zip(sizes, own, strict=True))
            )
            if tensor.datatype != DATATYPES[value.type] or not fits:
                shape = show_shape(tuple(size if size >= 0 else None for size in sizes))
                raise self._other_model(
                    f"{verb} {name!r} as {tensor.datatype}{shape}",
                    f"{DATATYPES[value.type]}{show_shape(value.shape)}",
                )

    def _other_model(self, theirs: str, ours: str) -> BundleError:
        return BundleError(
            f"model {self._model!r} of server {self._connector.address} {theirs}, not {ours} as"
            " this bundle does: export the bundle again, or name another model"
        )

    def begin(self, frame: FrameTensors, until_s: float | None = None) -> None:
        """Give a frame its number; waits while many are under way.

        Raises:
            DeadlineError: the time is over.
            OffloadError: the connection is over, with the reason.
        """
        with self._lock:
            while len(self._requests) >= _MAX_FRAMES and self.error is None:
                left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
                if left_s == 0.0:
                    raise DeadlineError("other inferences took all the time allowed: allow more")
                self._freed.wait(left_s)
            if self.error is not None:
                raise self.error
            self._last_frame += 1
            frame.number = self._last_frame
            self._requests[frame.number] = _Request(frame, set(self._inputs))

    def announce(self, frame: FrameTensors, defaults: Sequence[str]) -> None:
        """Also wait for these optional inputs; send a frame without inputs at once."""
        with self._lock:
            request = self._requests.get(frame.number)
            if request is not None:
                request.missing.update(defaults)
        if request is not None and not request.missing:
            self._infer(request)

    def send(self, frame: FrameTensors, name: str, packed: PackedTensor) -> None:
        """Add a tensor to the frame's request, which is sent with its last one."""
        with self._lock:
            request = self._requests.get(frame.number)
            if request is None:
                return
            request.inputs[name] = packed
            request.missing.discard(name)
            is_complete = not request.missing
        if is_complete:
            self._infer(request)

    def end(self, frame: FrameTensors) -> None:
        """Forget a frame and cancel its request; may be called twice."""
        with self._lock:
            number, frame.number = frame.number, 0
            request = self._requests.pop(number, None)
            self._freed.notify()
        if request is not None:
            request.cancel()

    def probe(self, size_bytes: int) -> None:
        """Nothing: the protocol has no call that measures the link."""

    def beat(self) -> None:
        """Ask whether the server is alive; end the connection if it is silent for too long."""
        with self._lock:
            expected_bytes = len(self._requests) * self._contract.answer_bytes
            self._last_ping = number = self._last_ping + 1
        now_s = time.monotonic()
        if self._monitor.is_lost(now_s, expected_bytes, self._patience_s):
            self._lose(ServerError(f"server {self._connector.address} gives no sign of life"))
            return
        self._monitor.pinged(number, now_s)
        self._call("ServerLive", b"", partial(self._ponged, number))

    def close(self) -> None:
        """End the connection; frames that still wait fail."""
        self._lose(ServerError("the session was closed"))

    def _infer(self, request: _Request) -> None:
        """Send a frame's request."""
        known = {**self._defaults, **self._inputs}
        inputs = [(known[name], packed) for name, packed in request.inputs.items()]
        data = messages.write_request(self._model, self._version, inputs, self._outputs)
        request.inputs.clear()
        self._monitor.sent(len(data))
        sent_s = time.monotonic()
        request.cancel = self._call("ModelInfer", data, partial(self._inferred, request, sent_s))

    def _call(
        self, method: str, data: bytes, done: Callable[[bytes | OffloadError], None]
    ) -> Callable[[], object]:
        channel = self._channel
        try:
            if channel is not None and self.error is None:
                return channel.call(method, data, done)
        except ValueError:  # gRPC's, for a channel that was closed meanwhile
            pass
        return lambda: None

    def _inferred(self, request: _Request, sent_s: float, answer: bytes | OffloadError) -> None:
        """Put an answer's tensors into its frame."""
        now_s = time.monotonic()
        frame = request.frame
        with self._lock:
            is_wanted = self._requests.get(frame.number) is request
        if isinstance(answer, LostServerError | BundleError):
            self._lose(answer)
        elif not is_wanted:
            return
        elif isinstance(answer, OffloadError):
            frame.fail(answer)
        else:
            self._monitor.heard(now_s)
            frame.record(Lane.SERVER, self._model, sent_s, now_s)
            try:
                response = kserve.ModelInferResponse.FromString(answer)
                frame.put(messages.read_outputs(response, self._contract.downloads))
            except (DecodeError, InputError) as error:
                frame.fail(
                    ServerError(f"server {self._connector.address} gave a wrong answer: {error}")
                )

    def _ponged(self, number: int, answer: bytes | OffloadError) -> None:
        if isinstance(answer, OffloadError):
            self._lose(answer)
            return
        self._monitor.heard(time.monotonic())
        self._monitor.ponged(number)

    def _lose(self, error: OffloadError) -> None:
        """End the connection; everyone who waits gets the error."""
        with self._lock:
            is_first = self.error is None
            self.error = self.error or error.with_traceback(None)
            waiting = [request.frame for request in self._requests.values()]
            self._requests.clear()
            self._freed.notify_all()
            channel = self._channel
        for frame in waiting:
            frame.fail(self.error)
        if channel is not None:
            channel.close()
        if is_first:
            self.on_loss()


def _value(name: str, contract: Contract) -> ModelValue:
    """Type and shape of a tensor that is sent either way.

    Raises:
        InputError: KServe has no datatype for it, or none that is sent from here.
    """
    spec = contract.uploads.get(name) or contract.downloads[name]
    kind = spec.value.type if spec.value is not None else "value of unknown type"
    if spec.value is None or kind not in DATATYPES or kind == TEXT:
        raise InputError(f"tensor {name!r} is a {kind}, which cannot be sent to a KServe server")
    return spec.value
