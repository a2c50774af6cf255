"""One replica of Ray Serve: a session server that gets its streams from Ray."""

import os
import platform
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from offload.errors import BundleError

from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES
from offload_runtimes.serving.metrics import LOG, log_to_stderr
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.serving.session_server import SessionServer
from offload_runtimes.transport import PROBE_LIMIT_BYTES
from offload_runtimes.transport.async_stream import AsyncStream
from offload_runtimes.transport.streams import echo

_POLL_S = 0.1
_RELEASES_S = 2.0  # between checks for new releases
# Time for the ingress to learn that Ray has stopped this replica.
_DEREGISTER_S = 1.0
_METRICS_PORTS = 64


class SerializedReply:
    """A message for Ray, which serializes what a replica yields."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802  protobuf's name
        """The message's bytes."""
        return self._data


class Replica:
    """A replica: loads the bundles, and serves the sessions that Ray's ingress sends to it.

    When Ray stops the replica, its sessions end by Goodbye: frames in flight are answered, and the
    devices connect again, to another replica.
    """

    def __init__(
        self,
        bundles: Sequence[str],
        digests: Sequence[str | None],
        options: ServeOptions,
        drain_s: float,
        log: bool,
    ) -> None:
        """Load the bundles.

        Args:
            bundles: their directories on this machine.
            digests: the digest that each must have; None: any.
            options: how it runs. Each replica exports its metrics on the next free port.
            drain_s: seconds that work under way may take when the replica is stopped.
            log: write JSON lines to stderr.

        Raises:
            BundleError: a bundle is missing on this machine, damaged, or another one.
            InputError: onnxruntime refuses a segment.
        """
        if log and not LOG.handlers:
            log_to_stderr()
        for bundle in bundles:
            if not os.path.isdir(bundle):  # noqa: PTH112
                raise BundleError(
                    f"node {platform.node()} of the cluster has no bundle at {bundle}: deploy it to"
                    " every node (`offload deploy`)"
                )
        self._server = SessionServer(bundles, options)
        for bundle, digest, found in zip(bundles, digests, self._server.bundles, strict=False):
            if digest is not None and digest not in self._server.bundles:
                raise BundleError(
                    f"node {platform.node()} of the cluster holds bundle {found[:12]} at {bundle},"
                    f" not {digest[:12]}: deploy the same bundle to every node"
                )
        self._drain_s = drain_s
        self._stopped = threading.Event()
        self._server.open(_METRICS_PORTS)
        threading.Thread(target=self._follow_releases, name="releases", daemon=True).start()
        threading.Thread(target=self._end_when_stopped, name="stopping", daemon=True).start()

    async def Session(  # noqa: N802  the method's name in offload.proto
        self, requests: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[SerializedReply]:
        """Serve a session."""
        limit_bytes = min(
            max(self._server.max_message_bytes, PROBE_LIMIT_BYTES), MESSAGE_LIMIT_BYTES
        )
        stream = _stream(requests, grpc_context, limit_bytes)
        replies = stream.replies(self._server.streams, self._server.serve, counts=True)
        async with aclosing(replies):
            async for message in replies:
                yield SerializedReply(message)

    async def Probe(  # noqa: N802  the method's name in offload.proto
        self, requests: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[SerializedReply]:
        """Answer probes of the link."""
        stream = _stream(requests, grpc_context, PROBE_LIMIT_BYTES)
        replies = stream.replies(self._server.streams, echo, counts=False)
        async with aclosing(replies):
            async for message in replies:
                yield SerializedReply(message)

    def about(self) -> dict[str, Any]:
        """What it serves, for the command line."""
        server = self._server
        return {
            "bundles": list(server.bundles),
            "providers": list(server.providers),
            "metrics": server.metrics_address,
            "alone": server.alone,
            "pid": os.getpid(),
        }

    def __del__(self) -> None:
        """Called by Ray, after the last stream has ended."""
        if hasattr(self, "_stopped"):  # else it did not begin
            self._stopped.set()
            self._server.stop()

    def _follow_releases(self) -> None:
        """Load new releases of deployments."""
        while not self._stopped.wait(_RELEASES_S):
            try:
                self._server.reload_bundles(even_unchanged=False)
            except Exception:  # noqa: BLE001  logged; the next release may load
                LOG.exception("bundles not reloaded")

    def _end_when_stopped(self) -> None:
        """End the sessions when Ray stops this replica, which waits for the open streams."""
        try:
            while not _is_stopping():
                if self._stopped.wait(_POLL_S):
                    return
        except (AttributeError, LookupError):
            LOG.warning(
                "this release of Ray does not show that a replica is stopped: its sessions will be"
                " broken, and resume on another replica"
            )
            return
        self._stopped.wait(_DEREGISTER_S)  # else devices would connect to this replica again
        self._server.drain(self._drain_s)
        self._server.end_sessions()


def _stream(requests: AsyncIterator[bytes], context: Any, limit_bytes: int) -> AsyncStream:
    """A stream from what Ray passes to a handler."""

    def set_status(code: Any, details: str) -> None:
        context.set_code(code)
        context.set_details(details)

    return AsyncStream(
        requests, context.peer(), context.invocation_metadata(), set_status, limit_bytes
    )


def _is_stopping() -> bool:
    """Whether Ray has asked this replica to stop.

    Ray calls nothing of a deployment before all its streams have ended (`__del__` comes after), and
    shows the state nowhere in public, so this reads the flag that Ray's own health check reads.

    Raises:
        AttributeError, LookupError: this release of Ray has it elsewhere.
    """
    from ray._private.worker import global_worker

    actor = global_worker.actors[global_worker.actor_id]
    return bool(actor._replica_impl._shutting_down)  # noqa: SLF001
