"""The server: runs the server's segments of bundles for devices, over gRPC."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from offload.bundle.bundle import Bundle
from offload.errors import OffloadError

from offload_runtimes.address import parse_address
from offload_runtimes.closing import close_at_exit
from offload_runtimes.serving.kserve import KServeService
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.serving.session_server import SessionServer
from offload_runtimes.transport.grpc_server import GrpcHost


class Server(SessionServer):
    """Serves bundles, known by their digests, on one address."""

    def __init__(
        self,
        bundles: Iterable[str | Path | Bundle],
        listen: str = "127.0.0.1:0",
        options: ServeOptions | None = None,
    ) -> None:
        """Load all bundles; the server listens after `start`.

        Args:
            bundles: bundles or their directories; the server's files suffice. With `ROOT/current`
                of a deployment, the earlier releases that it keeps are served, too.
            listen: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`; port 0 takes a free one.
            options: how it runs; None: the defaults of `ServeOptions`.

        Raises:
            BundleError: a bundle is missing, damaged or lacks its server part.
            InputError: an address or an option is wrong, or a segment is refused.
        """
        options = options or ServeOptions()
        super().__init__(bundles, options)
        self._forget: Callable[[], None] = lambda: None
        address = parse_address(listen)
        options.security.check(address)
        kserve = KServeService(
            self._bundles,
            self._dispatcher,
            self._observer,
            self._memory,
            self._sessions,
            limit_bytes=self._limit_bytes,
            max_frames=options.limits.max_frames,
            is_serving=lambda: self._serving,
        )
        self._host = GrpcHost(
            address,
            self.serve,
            self.streams,
            receive_limit_bytes=self._bundles.max_message_bytes,
            kserve=kserve,
        )
        self._host.describe(options.reflection)

    @property
    def address(self) -> str:
        """The address that it listens on; after `start`, with the actual port."""
        return self._host.address

    def start(self) -> Self:
        """Begin to listen; InputError when a port is in use."""
        try:
            self.open()
            self._host.set_serving(True)
            self._host.start()
            self._forget = close_at_exit(self.stop)
        except OffloadError:
            self.stop()
            raise
        return self

    def drain(self, timeout_s: float = 30.0) -> bool:
        """Refuse new work and wait for the frames in flight; True if all were answered."""
        self._host.set_serving(False)
        return super().drain(timeout_s)

    def stop(self, grace_s: float = 0.2) -> None:
        """End all sessions and the threads; may be called twice."""
        self._host.set_serving(False)
        self.end_sessions()
        self._host.stop(grace_s)
        super().stop()
        self._forget()

    def close(self) -> None:
        """As `stop`."""
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
