"""KServe v2 (Open Inference Protocol): bundles as models that any client of the protocol can run.

A bundle of the model NAME is served as `NAME.server`, the server's part of its first plan, and, if
the bundle holds both sides' files, as `NAME`, the whole model. Several bundles of one model are its
versions, called by the first digits of their digests as a decimal number; the first one is the
default.
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

import offload
from google.protobuf.message import DecodeError, Message
from offload.bundle.bundle import Bundle
from offload.errors import BundleError, InputError, OffloadError, ServerError
from offload.planning.plan import Segment, Side

import offload_runtimes.protocol.kserve_pb2 as kserve
from offload_runtimes.protocol.kserve_messages import (
    DATATYPES,
    PLATFORM,
    SERVER_PART,
    ModelSignature,
    model_config,
    model_name,
    sizes,
    version_of,
    write_stream_error,
)
from offload_runtimes.protocol.kserve_requests import (
    ReceivedRequest,
    RequestHeader,
    RequestParts,
    split_request,
)
from offload_runtimes.protocol.kserve_state import InferenceRequest, ServedModel, answer_at_once
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.tensor_specs import HEADER_BYTES, Contract, TensorSpecs, input_specs
from offload_runtimes.serving.bundles import LoadedBundle, ServedBundles
from offload_runtimes.serving.dispatch import Dispatcher, NotBriefError
from offload_runtimes.serving.metrics import Observer
from offload_runtimes.serving.sessions import OpenSessions, RunningRequest, SessionState
from offload_runtimes.transport.connection import EndingConnection

Request = TypeVar("Request", bound=Message)
Call: TypeAlias = Callable[[bytes], bytes]
_EXTENSIONS = ("model_configuration", "statistics")
_SHOWN = 80  # characters of a name that a client made up
_MOST_HEADERS = 256  # kept at the same time
_BRIEF_BYTES = 1 << 20  # longer requests take long to copy
_NS = 1_000_000_000


def models_of(loaded: LoadedBundle, limit_bytes: int) -> list[ServedModel]:
    """The models of a loaded bundle: the server's part, and the whole if all files are there."""
    bundle, plan = loaded.bundle, loaded.bundle.plan
    name, version = model_name(bundle), version_of(bundle)
    models = []
    if segments := plan.on(Side.SERVER):
        contract = loaded.contracts[0]
        engines = [loaded.engines[segment.part] for segment in segments]
        produced = {value.name: value for engine in engines for value in engine.outputs}
        known = {n: spec.value for n, spec in contract.uploads.items() if spec.value is not None}
        optional = tuple(dict.fromkeys(n for names in contract.defaults.values() for n in names))
        signature = ModelSignature(
            f"{name}{SERVER_PART}",
            version,
            tuple(known[send.wire] for send in plan.uploads),
            tuple(known[n] for n in optional),
            tuple(produced[send.wire] for send in plan.downloads),
            contract.uploads,
        )
        models.append(ServedModel(signature, contract))
    if all(bundle.holds(side) for side in Side):
        limits = input_specs((*bundle.inputs, *bundle.defaults), limit_bytes)
        signature = ModelSignature(
            name, version, bundle.inputs, bundle.defaults, bundle.outputs, limits
        )
        models.append(ServedModel(signature, _whole_contract(bundle, plan.segments, limits), True))
    return models


def _whole_contract(bundle: Bundle, segments: tuple[Segment, ...], limits: TensorSpecs) -> Contract:
    defaults = {s.part: names for s in segments if (names := bundle.defaults_of(s.part))}
    return Contract(bundle.digest, segments, limits, limits, defaults)


@dataclass
class _Accepted:
    """A request for a model that can be run.

    Attributes:
        model: the model.
        loaded: its bundle.
        id: the client's name for the request.
        size_bytes: of its message.
    """

    model: ServedModel
    loaded: LoadedBundle
    id: str
    size_bytes: int
    _request: ReceivedRequest | None

    def take(self) -> ReceivedRequest:
        """Return the request and forget it, so that its memory can be freed. Called once."""
        request, self._request = self._request, None
        assert request is not None
        return request


@dataclass(frozen=True)
class _KnownHeader:
    """A checked header, which is recognised when it comes again.

    Attributes:
        model: the model that it names.
        header: the header, checked for this model.
        order: the bundles that were served then; other bundles may have the same names.
    """

    model: ServedModel
    header: RequestHeader
    order: tuple[str, ...]


@dataclass
class _Statistics:
    """Counts and nanoseconds of the requests of one model."""

    successes: int = 0
    failures: int = 0
    success_ns: int = 0
    failure_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    last_ms: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        request: InferenceRequest | RunningRequest,
        took_s: float,
        error: OffloadError | None = None,
    ) -> None:
        """Count a request that is over."""
        with self.lock:
            self.last_ms = int(time.time() * 1000)
            if error is not None:
                self.failures += 1
                self.failure_ns += int(took_s * _NS)
                return
            self.successes += 1
            self.success_ns += int(took_s * _NS)
            self.queue_ns += int(request.queue_s * _NS)
            self.compute_ns += int(request.compute_s * _NS)

    def message(self, signature: ModelSignature) -> kserve.ModelStatistics:
        """As the protocol reports them."""

        def duration(count: int, ns: int) -> kserve.StatisticDuration:
            return kserve.StatisticDuration(count=count, ns=ns)

        with self.lock:
            stats = kserve.InferStatistics(
                success=duration(self.successes, self.success_ns),
                fail=duration(self.failures, self.failure_ns),
                queue=duration(self.successes, self.queue_ns),
                compute_input=duration(self.successes, 0),
                compute_infer=duration(self.successes, self.compute_ns),
                compute_output=duration(self.successes, 0),
            )
            return kserve.ModelStatistics(
                name=signature.name,
                version=signature.version,
                last_inference=self.last_ms,
                inference_count=self.successes,
                execution_count=self.successes,
                inference_stats=stats,
            )


class KServeService:
    """Answers the calls of KServe v2 about the bundles of a server."""

    def __init__(
        self,
        bundles: ServedBundles,
        dispatcher: Dispatcher,
        observer: Observer,
        memory: MemoryBudget,
        sessions: OpenSessions,
        *,
        limit_bytes: int,
        max_frames: int,
        is_serving: Callable[[], bool],
    ) -> None:
        """Answer for some bundles.

        Args:
            bundles: the bundles.
            dispatcher: runs their segments.
            observer: counts and logs what happens.
            memory: limits the bytes of all requests.
            sessions: where requests under way are listed.
            limit_bytes: the most that an input without a fixed shape may take.
            max_frames: requests of one stream at the same time.
            is_serving: whether the server takes requests.
        """
        self._bundles = bundles
        self._dispatcher = dispatcher
        self._observer = observer
        self._memory = memory
        self._sessions = sessions
        self._limit_bytes = limit_bytes
        self._max_frames = max_frames
        self._is_serving = is_serving
        self._models: dict[str, list[ServedModel]] = {}  # by digest
        self._statistics: dict[tuple[str, str], _Statistics] = {}
        self._known: dict[bytes, _KnownHeader] = {}

    @property
    def request_limit_bytes(self) -> int:
        """The longest request that any of the models takes, within the limit of one tensor.

        Several inputs of any size together get no more: gRPC reads a request before it is checked.
        """
        sizes = (
            HEADER_BYTES + sum(spec.limit_bytes for spec in model.signature.limits.values())
            for model in self._served()
        )
        return min(max(sizes, default=0), HEADER_BYTES + self._limit_bytes)

    @property
    def calls(self) -> Mapping[str, Callable[[bytes], bytes]]:
        """The methods that are no inference, by name: a request's bytes to an answer's."""

        def call(kind: type[Request], answer: Callable[[Request], Message]) -> Call:
            return lambda data: answer(_parsed(kind, data)).SerializeToString()

        return {
            "ServerLive": call(kserve.ServerLiveRequest, self.server_live),
            "ServerReady": call(kserve.ServerReadyRequest, self.server_ready),
            "ServerMetadata": call(kserve.ServerMetadataRequest, self.server_metadata),
            "ModelReady": call(kserve.ModelReadyRequest, self.model_ready),
            "ModelMetadata": call(kserve.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": call(kserve.ModelConfigRequest, self.model_config),
            "ModelStatistics": call(kserve.ModelStatisticsRequest, self.model_statistics),
            "RepositoryIndex": call(kserve.RepositoryIndexRequest, self.repository_index),
        }

    def server_live(self, _: kserve.ServerLiveRequest) -> kserve.ServerLiveResponse:
        """Whether the server answers: it does."""
        return kserve.ServerLiveResponse(live=True)

    def server_ready(self, _: kserve.ServerReadyRequest) -> kserve.ServerReadyResponse:
        """Whether the server takes requests."""
        return kserve.ServerReadyResponse(ready=self._is_serving())

    def server_metadata(self, _: kserve.ServerMetadataRequest) -> kserve.ServerMetadataResponse:
        """Name and version of the server, and the extensions that it speaks."""
        return kserve.ServerMetadataResponse(
            name="onnx-offload", version=offload.__version__, extensions=_EXTENSIONS
        )

    def model_ready(self, request: kserve.ModelReadyRequest) -> kserve.ModelReadyResponse:
        """Whether a model takes requests; it does not if the protocol cannot carry its tensors."""
        model = self._model(request.name, request.version)
        ready = self._is_serving() and not self._why_not(model)
        return kserve.ModelReadyResponse(ready=ready)

    def model_metadata(self, request: kserve.ModelMetadataRequest) -> kserve.ModelMetadataResponse:
        """Names, datatypes and shapes of a model's required inputs and its outputs."""
        model = self._usable(request.name, request.version).signature
        tensor = kserve.ModelMetadataResponse.TensorMetadata
        inputs, outputs = (
            [tensor(name=v.name, datatype=DATATYPES[v.type], shape=sizes(v)) for v in several]
            for several in (model.inputs, model.outputs)
        )
        return kserve.ModelMetadataResponse(
            name=model.name,
            versions=[
                m.signature.version for m in self._served() if m.signature.name == model.name
            ],
            platform=PLATFORM,
            inputs=inputs,
            outputs=outputs,
        )

    def model_config(self, request: kserve.ModelConfigRequest) -> kserve.ModelConfigResponse:
        """A model's configuration in Triton's form; its dims include the batch."""
        model = self._usable(request.name, request.version).signature
        return kserve.ModelConfigResponse(config=model_config(model))

    def model_statistics(
        self, request: kserve.ModelStatisticsRequest
    ) -> kserve.ModelStatisticsResponse:
        """Counts and times of the requests of one model, or of all."""
        models = [self._model(request.name, request.version)] if request.name else self._served()
        stats = [self._statistics_of(m.signature).message(m.signature) for m in models]
        return kserve.ModelStatisticsResponse(model_stats=stats)

    def repository_index(
        self, request: kserve.RepositoryIndexRequest
    ) -> kserve.RepositoryIndexResponse:
        """All models with their versions, and why some cannot be used."""
        response = kserve.RepositoryIndexResponse()
        for model in self._served():
            reason = self._why_not(model)
            if not (request.ready and reason):
                response.models.add(
                    name=model.signature.name,
                    version=model.signature.version,
                    state="UNAVAILABLE" if reason else "READY",
                    reason=reason,
                )
        return response

    def infer(self, data: bytes, peer: str, on_end: Callable[[Callable[[], None]], bool]) -> bytes:
        """Answer one ModelInferRequest.

        Args:
            data: the request.
            peer: the client; requests of one client take turns with those of others.
            on_end: arranges for a function to be called when the client gives up; False: it has.

        Raises:
            OffloadError: the request cannot be answered.
        """
        accepted = self.accept(data)
        if self._dispatcher.runs_here(accepted.loaded, accepted.model.parts):
            return self._compute(accepted, peer, on_end, in_stream=False)
        done = threading.Event()
        answers: list[bytes] = []

        def deliver(answer: bytes) -> None:
            answers.append(answer)
            done.set()

        session = self.queue(accepted, deliver, peer, in_stream=False)
        state = session.protocol
        assert isinstance(state, InferenceRequest)  # as `begin` made it
        try:
            if not done.is_set():
                close = partial(self.close, session)
                if not on_end(close):
                    close()
                done.wait()
        finally:
            self._sessions.discard(session)
        if state.error is not None:
            raise state.error
        return answers[0]

    def stream(self, connection: EndingConnection) -> None:
        """Answer the requests of one ModelStreamInfer until the client ends the stream.

        Answers come as they are ready. A stream with `max_frames` requests under way is read again
        when one of them is answered.
        """
        number = self._sessions.next_number()
        self._observer.opened(number, connection.peer, None)
        count = _RequestStream(connection, self, self._max_frames).run()
        self._observer.closed(number, count)

    def accept(self, data: bytes) -> _Accepted:
        """A request for a model whose segments are loaded.

        Raises:
            OffloadError: it names no model that can be run now.
        """
        if not self._is_serving():
            raise ServerError("the server is shutting down: try again")
        order, parts = self._bundles.order, split_request(data)
        accepted = self._recognised(data, parts, order)
        if accepted is not None:
            return accepted
        message = _parsed(kserve.ModelInferRequest, data)
        model = self._usable(message.model_name, message.model_version)
        if model.is_whole:
            self._bundles.load_whole(model.contract.digest)
        request = ReceivedRequest(len(data), message.id, message.raw_input_contents, message)
        is_raw = parts is not None and len(parts.raw) == len(message.inputs)
        if parts and is_raw:
            request.when_checked = partial(self._keep, parts.header, model, order)
        loaded = self._bundles.loaded.get(model.contract.digest)
        if loaded is None:
            raise BundleError(f"model {model.signature.name!r} was replaced just now: try again")
        return _Accepted(model, loaded, request.id, len(data), request)

    def _recognised(
        self, data: bytes, parts: RequestParts | None, order: tuple[str, ...]
    ) -> _Accepted | None:
        """A request with a header that was checked before; None: it must be parsed.

        Args:
            data: the request.
            parts: its parts, if it could be split.
            order: the bundles that are served now.
        """
        known = None if parts is None else self._known.get(parts.header)
        if parts is None or known is None:
            return None
        loaded = self._bundles.loaded.get(known.model.contract.digest)
        if loaded is None or known.order is not order or known.header.inputs != len(parts.raw):
            return None
        request = ReceivedRequest(len(data), parts.id, parts.raw, None, known.header)
        return _Accepted(known.model, loaded, parts.id, len(data), request)

    def _keep(
        self, header: bytes, model: ServedModel, order: tuple[str, ...], checked: RequestHeader
    ) -> None:
        """Keep a checked header, so that it is recognised when it comes again."""
        if len(self._known) >= _MOST_HEADERS:
            self._known.clear()
        self._known[header] = _KnownHeader(model, checked, order)

    def infer_briefly(self, data: bytes, turn: Hashable, *, in_stream: bool) -> bytes | None:
        """Answer a request on the caller's thread, without waiting, if its run is brief.

        Args:
            data: the request.
            turn: what takes turns among the workers.
            in_stream: it came in a stream; an error then becomes an answer with its sentence.

        Returns:
            The answer. None: it may take long, or is not like a request before it.

        Raises:
            OffloadError: it cannot be answered.
        """
        if len(data) > _BRIEF_BYTES or not self._is_serving():
            return None
        accepted = self._recognised(data, split_request(data), self._bundles.order)
        if accepted is None or not self._is_brief(accepted):
            return None
        try:
            return self._compute(accepted, turn, in_stream=in_stream)
        except NotBriefError:
            return None
        except OffloadError as error:
            if not in_stream:
                raise
            return write_stream_error(accepted.id, str(error))

    def _is_brief(self, accepted: _Accepted) -> bool:
        loaded, parts = accepted.loaded, accepted.model.parts
        return (
            len(parts) == 1
            and self._dispatcher.runs_here(loaded, parts)
            and loaded.runs_briefly(parts[0], accepted.size_bytes - HEADER_BYTES)
        )

    def _compute(
        self,
        accepted: _Accepted,
        turn: Hashable,
        on_end: Callable[[Callable[[], None]], bool] | None = None,
        *,
        in_stream: bool,
    ) -> bytes:
        """Compute the answer to a request on the caller's thread.

        Args:
            accepted: the request.
            turn: what takes turns among the workers.
            on_end: as for `infer`; None: its run is brief.
            in_stream: it came in a stream.

        Raises:
            OffloadError: it cannot be answered.
            NotBriefError: its run is not brief.
        """
        digest = accepted.model.contract.digest
        statistics = self._statistics_of(accepted.model.signature)
        running = RunningRequest(digest)
        self._sessions.running.add(running)
        began_s = time.monotonic()
        try:
            if on_end is not None and not on_end(running.stop):
                running.stop()
            answer = answer_at_once(
                accepted.take(),
                accepted.model,
                self._memory.reserve(lambda: None),
                partial(
                    self._dispatcher.compute,
                    turn,
                    accepted.loaded,
                    running,
                    is_brief=on_end is None,
                ),
                in_stream=in_stream,
            )
        except OffloadError as failure:
            error = running.why or failure
            is_dropped = running.is_stopped and running.why is None
            self._observer.passed("in", accepted.size_bytes)
            self._observer.frame(digest, 0, "dropped" if is_dropped else "failed", None)
            if not is_dropped:
                statistics.add(running, time.monotonic() - began_s, error)
                self._observer.failed(self._sessions.next_number(), error)
            raise error from None
        finally:
            self._sessions.running.discard(running)
        took_s = time.monotonic() - began_s
        statistics.add(running, took_s)
        self._observer.answered(digest, 0, accepted.size_bytes, len(answer), took_s)
        return answer

    def queue(
        self,
        accepted: _Accepted,
        deliver: Callable[[bytes], None],
        turn: Hashable,
        *,
        in_stream: bool,
    ) -> SessionState:
        """Queue a request for the workers.

        Its answer is delivered once, perhaps before this returns.
        """
        model, size_bytes, request = accepted.model, accepted.size_bytes, accepted.take()
        state = InferenceRequest(model, self._memory.reserve(lambda: None), in_stream=in_stream)
        began_s = time.monotonic()
        statistics = self._statistics_of(model.signature)

        def over(answer: bytes) -> None:
            if answer or state.error is not None:  # else the client has gone
                statistics.add(state, time.monotonic() - began_s, state.error)
            self._sessions.discard(session)
            deliver(answer)

        session = SessionState(self._sessions.next_number(), _Answering(over), state, turn)
        self._sessions.add(session)
        self._observer.passed("in", size_bytes)
        with session.lock:
            tasks = self._dispatcher.apply(session, state.begin(request, began_s))
        if state.error is not None:
            self._observer.failed(session.number, state.error)
        del request
        self._dispatcher.start(session, tasks, here=True)
        return session

    def close(self, session: SessionState) -> None:
        """Stop a request whose client has gone."""
        with session.lock:
            self._dispatcher.apply(session, session.protocol.close())
        self._dispatcher.drop(session)

    def _served(self) -> list[ServedModel]:
        """The models that take requests, in the order of the bundles on the command line."""
        served = []
        for digest in self._bundles.order:
            loaded = self._bundles.loaded.get(digest)
            if loaded is not None:
                if digest not in self._models:
                    self._models[digest] = models_of(loaded, self._limit_bytes)
                served += self._models[digest]
        return served

    def _model(self, name: str, version: str) -> ServedModel:
        """The model of a name, by default the first version.

        Raises:
            BundleError: there is none.
        """
        served = self._served()
        for model in served:
            if model.signature.name == name and version in ("", model.signature.version):
                return model
        names = list(dict.fromkeys(model.signature.name for model in served))
        of = f", version {version[:_SHOWN]!r}," if version else ""
        raise BundleError(f"model {name[:_SHOWN]!r}{of} is not served here: there are {names}")

    def _usable(self, name: str, version: str) -> ServedModel:
        """As `_model`; InputError if it is served but cannot be run."""
        model = self._model(name, version)
        if reason := self._why_not(model):
            raise InputError(f"model {name!r} cannot be used: {reason}")
        return model

    def _why_not(self, model: ServedModel) -> str:
        if model.is_whole and not self._bundles.can_load_whole(model.contract.digest):
            return "--max-memory holds, and its device's part was not loaded at the start"
        return model.signature.why_not()

    def _statistics_of(self, model: ModelSignature) -> _Statistics:
        key = model.name, model.version
        return self._statistics.get(key) or self._statistics.setdefault(key, _Statistics())


def _parsed(kind: type[Request], data: bytes) -> Request:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InputError(f"the request is not a {kind.DESCRIPTOR.name} of KServe v2") from error


class _RequestStream:
    """One ModelStreamInfer: begins its requests, and stops them if it breaks off."""

    def __init__(
        self, connection: EndingConnection, service: KServeService, max_requests: int
    ) -> None:
        """A stream of which at most `max_requests` are queued at the same time."""
        self._connection = connection
        self._service = service
        self._max_requests = max_requests
        self._room = threading.Semaphore(max_requests)
        self._under_way: set[SessionState] = set()
        self._is_broken = False
        self._count = 0

    def run(self) -> int:
        """Answer until the client ends the stream and all is answered; the number of requests."""
        if not self._connection.on_end(self._break):
            self._is_broken = True
        self._connection.handle_briefly(self._handle_briefly)
        while (data := self._connection.receive()) is not None:
            self._answer(data)
        if self._is_broken:
            self._break()  # what has begun since
        for _ in range(self._max_requests):
            self._room.acquire()
        return self._count

    def _handle_briefly(self, data: bytes) -> bool:
        answer = self._service.infer_briefly(data, self, in_stream=True)
        if answer is None:
            return False
        self._count += 1
        self._connection.send(answer)
        return True

    def _answer(self, data: bytes) -> None:
        self._count += 1
        try:
            accepted = self._service.accept(data)
        except OffloadError as error:
            self._connection.send(write_stream_error("", str(error)))
            return
        self._room.acquire()
        self._under_way = {s for s in self._under_way if not s.protocol.closed}
        session = self._service.queue(accepted, self._deliver, self, in_stream=True)
        self._under_way.add(session)

    def _deliver(self, message: bytes) -> None:
        try:
            if message:
                self._connection.send(message)
        finally:
            self._room.release()

    def _break(self) -> None:
        self._is_broken = True
        for session in tuple(self._under_way):
            self._service.close(session)


class _Answering:
    """The connection of a request that is a session: it takes the one answer."""

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self.send = deliver

    def receive(self) -> bytes | None:
        """Nothing comes after the request."""
        return None

    def handle_briefly(self, _: Callable[[bytes], bool]) -> None:
        """Nothing comes after the request."""

    def close(self) -> None:
        """Nothing is open."""
