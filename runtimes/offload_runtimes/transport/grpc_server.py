"""The gRPC server: listen, answer health checks and probes, hand over sessions."""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from offload.errors import InputError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.address import Address
from offload_runtimes.protocol import kserve_pb2
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES
from offload_runtimes.security.credentials import Certificates, ServerCredentials
from offload_runtimes.transport import (
    FRAME_BYTES,
    KSERVE,
    PROBE_LIMIT_BYTES,
    SERVICE,
    brief_calls,
)
from offload_runtimes.transport.connection import Connection, InferenceService
from offload_runtimes.transport.streams import SPARE_CALLS, ServerStream, StreamHost, echo

T = TypeVar("T")
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
LOG = logging.getLogger("offload.server")
_IDLE_S = 10.0
_LAST_ANSWERS_S = 5.0  # for a device to read its last answers


class DaemonPool(ThreadPoolExecutor):
    """Runs each call at once on a daemon thread, a new one if none is idle; gRPC limits the calls.

    The process waits for the threads of a ThreadPoolExecutor when it exits, so a server that was
    not stopped would keep it from exiting. An idle thread ends after `_IDLE_S`. If no more
    threads can be started, a call waits until a thread is free: an exception would end the server.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = 0  # threads that wait for a call and will get the next one
        self._late = 0  # calls for which no thread could be started
        self._is_over = False
        self._counting = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Run a call on a thread, unless `brief_calls` takes it over."""
        return brief_calls.begin(self.start, fn, args) or self.start(fn, *args, **kwargs)

    def start(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Run a call on a thread."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  raised by future.result()
                future.set_exception(error)

        with self._counting:
            has_idle = self._idle > 0
            self._idle -= has_idle
        if not has_idle:
            self._start_thread()
        self._calls.put(call)  # not an argument of the thread, which would keep it
        return future

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="grpc", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.discard(thread)
            with self._counting:
                self._late += 1
            LOG.warning("a call waits until another one has ended (%s)", error)

    def join(self, timeout_s: float) -> None:
        """Wait for the running calls, and end the threads."""
        until_s = time.monotonic() + timeout_s
        with self._counting:
            self._is_over = True
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._calls.put(None)
        for thread in tuple(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(until_s - time.monotonic(), 0.0))

    def _work(self) -> None:
        call = self._calls.get()
        while call is not None:
            call()
            call = None  # it refers to a request
            with self._counting:
                if self._is_over:
                    break
                is_late = self._late > 0
                self._late -= is_late
                self._idle += not is_late
            call = self._calls.get() if is_late else self._next()
        self._threads.discard(threading.current_thread())

    def _next(self) -> Callable[[], None] | None:
        """Wait for a call; None: the thread has been idle for too long, or the pool is over."""
        with suppress(queue.Empty):
            return self._calls.get(timeout=_IDLE_S)
        with self._counting:
            if self._idle > 0:
                self._idle -= 1
                return None
        return self._calls.get()  # it is on its way


class GrpcHost:
    """Listens on an address and serves sessions and probes.

    Attributes:
        address: where it listens; after `start` with the port really taken.
    """

    def __init__(
        self,
        listen: Address,
        serve: Callable[[Connection], None],
        streams: StreamHost,
        *,
        receive_limit_bytes: int,
        kserve: InferenceService | None = None,
    ) -> None:
        """Prepare the services; it listens after `start`.

        Args:
            listen: the address.
            serve: serves a session until it ends.
            streams: admits calls; its certificates are used.
            receive_limit_bytes: the longest message of a session that is received.
            kserve: answers the calls of KServe v2; None: they are not offered.
        """
        self._listen = listen
        self._credentials = _credentials(streams.credentials)
        self._streams = streams
        self._pool = DaemonPool()
        services = {
            SERVICE: {
                "Session": self._stream_handler(serve, counts=True, is_brief=True),
                "Probe": self._stream_handler(echo, counts=False),
            }
        }
        if kserve is not None:
            receive_limit_bytes = max(receive_limit_bytes, kserve.request_limit_bytes)
            services[KSERVE] = self._kserve_handlers(kserve)
        self._services = tuple(services)
        receive_limit_bytes = min(max(receive_limit_bytes, PROBE_LIMIT_BYTES), MESSAGE_LIMIT_BYTES)
        self._server = grpc.server(
            self._pool,
            handlers=[
                grpc.method_handlers_generic_handler(service, methods)
                for service, methods in services.items()
            ],
            options=[
                ("grpc.max_receive_message_length", receive_limit_bytes),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.http2.max_frame_size", FRAME_BYTES),
                ("grpc.so_reuseport", 0),  # else a second server takes the same port in silence
                # By default gRPC reads ahead as far as the link's bandwidth and delay suggest. If
                # memory is limited, it reads one message a stream: 32 devices that sent 1 MB each
                # time without reading made a server 0.35 to 1.2 GB larger, with this 0.12 GB.
                *([] if math.isinf(streams.memory.limit_bytes) else [("grpc.http2.bdp_probe", 0)]),
            ],
            maximum_concurrent_rpcs=streams.max_sessions + SPARE_CALLS,
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.set_serving(False)
        self.address = str(self._listen)

    def describe(self, wanted: bool | None) -> None:
        """Let clients read the services' descriptions; called before `start`.

        `wanted` None: if only this machine can reach the server and grpcio-reflection is installed.

        Raises:
            InputError: it is wanted and grpcio-reflection is not installed.
        """
        if wanted is None:
            wanted = self._listen.is_this_machine and _can_reflect()
        if wanted:
            _reflect(self._server, (*self._services, health.SERVICE_NAME))

    def start(self) -> None:
        """Bind and serve; InputError if the port is in use."""
        target = self._listen.target
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(target)
            else:
                port = self._server.add_secure_port(target, self._credentials)
        except RuntimeError as error:
            advice = (
                "the socket is in use or cannot be made there, choose another path"
                if self._listen.path
                else "the port is in use or the address is not this machine's, choose another"
            )
            raise InputError(f"cannot listen on {self._listen}: {advice}") from error
        if not self._listen.path:
            self.address = str(replace(self._listen, port=port))
        self._server.start()

    def stop(self, grace_s: float | None) -> None:
        """Refuse new streams, let open ones end within `grace_s`, then break them."""
        self._server.stop(grace_s).wait()
        self._pool.join(_LAST_ANSWERS_S)

    def set_serving(self, is_serving: bool) -> None:
        """Answer health checks with SERVING or NOT_SERVING from now on."""
        status = health_pb2.HealthCheckResponse
        for service in ("", *self._services):
            self._health.set(service, status.SERVING if is_serving else status.NOT_SERVING)

    def _stream_handler(
        self, serve: Callable[[ServerStream], None], *, counts: bool, is_brief: bool = False
    ) -> Handler:
        """A handler that gives each stream to `serve`.

        Args:
            serve: serves the stream.
            counts: it is one of `max_sessions`.
            is_brief: `serve` may handle messages on the polling thread, see `brief_calls`.
        """

        def handle(
            requests: Iterator[bytes],
            context: grpc.ServicerContext,
            transmit: Callable[[bytes | None], None],
        ) -> None:
            self._streams.serve(requests, context, transmit, serve, counts=counts)

        # gRPC then passes a function that sends, instead of taking an iterator: any thread may
        # send. It is called experimental, and has been there since gRPC 1.24.
        handle.experimental_non_blocking = True  # type: ignore[attr-defined]
        handle.brief = is_brief  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(handle)

    def _kserve_handlers(self, kserve: InferenceService) -> dict[str, Handler]:
        def infer(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._streams.admitted(context, counts=True):
                return kserve.infer(request, context.peer(), context.add_callback)

        def infer_briefly(request: bytes, context: grpc.ServicerContext) -> bytes | None:
            with self._streams.admitted(context, counts=True):
                return kserve.infer_briefly(request, context.peer(), in_stream=False)

        infer.brief = infer_briefly  # type: ignore[attr-defined]

        def handler(call: Callable[[bytes], bytes]) -> Handler:
            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                with self._streams.admitted(context, counts=False):
                    return call(request)

            return grpc.unary_unary_rpc_method_handler(answer)

        return {
            **{name: handler(call) for name, call in kserve.calls.items()},
            "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
            "ModelStreamInfer": self._stream_handler(kserve.stream, counts=True, is_brief=True),
        }


def _can_reflect() -> bool:
    return find_spec("grpc_reflection") is not None


def _reflect(server: grpc.Server, services: Iterable[str]) -> None:
    """Add gRPC's reflection service, which describes the services to any client."""
    if not _can_reflect():
        raise InputError("reflection needs a package: pip install 'grpcio-reflection>=1.70'")
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    pool = DescriptorPool()  # KServe's messages are not in the default one
    for file in (pb, kserve_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server, pool=pool)


def _credentials(credentials: ServerCredentials) -> grpc.ServerCredentials | None:
    """gRPC's credentials, which check at each handshake whether the certificates have changed."""
    first = used = credentials.certificates()
    if first is None:
        return None

    def configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
        pair = (certificates.key, certificates.certificate)
        return grpc.ssl_server_certificate_configuration([pair], certificates.client_ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        now = credentials.certificates()
        if now is None or now is used:
            return None
        used = now
        return configuration(now)

    # The stubs lack that None means no change.
    return grpc.dynamic_ssl_server_credentials(
        configuration(first),
        changed,  # type: ignore[arg-type]
        first.client_ca is not None,
    )
