"""A session with a server of its own within this process, over real gRPC on loopback."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Side

from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions

if TYPE_CHECKING:
    from offload_runtimes.server import Server


class LocalSession(OffloadSession):
    """An OffloadSession that owns the server it talks to."""

    def __init__(self, bundle: Bundle, server: "Server", **options: Any) -> None:
        """Start the server and connect to it; options as for OffloadSession."""
        server.start()
        try:
            super().__init__(bundle, server.address, **options)
        except BaseException:
            server.stop()
            raise
        self._closers.append(server.stop)


def open_session(
    bundle: str | Path | Bundle,
    server: str | None = None,
    *,
    server_options: EngineOptions | None = None,
    **options: Any,
) -> OffloadSession:
    """A session on a server, or, without one, on an embedded server if the plan needs any.

    Args:
        bundle: a bundle or its directory; both sides' files when the server is embedded.
        server: `HOST:PORT` of a server, or None.
        server_options: how the embedded server runs its part; None: as the device does.
        **options: as for OffloadSession.

    Raises:
        BundleError, InputError, ServerError: as OffloadSession and Server.
    """
    if server is not None:
        return OffloadSession(bundle, server, **options)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    fixed = options.get("plan")
    followed = opened if fixed is None else opened.only(fixed)
    if not followed.needs_server:
        return OffloadSession(opened, None, **options)
    for side, advice in (
        (Side.DEVICE, "give it the whole bundle or the device's half"),
        (Side.SERVER, "give the address of a server that has it (server=, --server HOST:PORT)"),
    ):
        if not opened.holds(side):
            raise InputError(f"{opened.path} does not have the {side.value}'s half: {advice}")
    from offload_runtimes.server import Server  # a device with a server elsewhere does without
    from offload_runtimes.serving.serve_options import ServeOptions

    chosen = server_options or EngineOptions(
        tuple(options.get("providers", ())),
        options.get("threads"),
        bool(options.get("optimize", True)),
        allow_cpu=bool(options.get("allow_cpu", False)),
    )
    options.pop("security", None)  # within one process there is nobody to hide from
    return LocalSession(opened, Server([opened], options=ServeOptions(chosen)), **options)
