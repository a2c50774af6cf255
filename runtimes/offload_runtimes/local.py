"""Open a session; without a server, start one within this process, over gRPC on loopback."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offload.bundle.bundle import Bundle, open_bundle
from offload.errors import InputError
from offload.planning.plan import Side

from offload_runtimes.client import OffloadSession
from offload_runtimes.device.session_options import SessionOptions
from offload_runtimes.engine import EngineOptions


def open_session(
    bundle: str | Path | Bundle,
    server: str | Sequence[str] | None = None,
    options: SessionOptions | None = None,
    *,
    server_options: EngineOptions | None = None,
    **changes: Any,
) -> OffloadSession:
    """Open a session with a server, or with a server within this process if the plan needs one.

    Args:
        bundle: a bundle or its directory; without `server`, with the files of both sides.
        server: `HOST:PORT` of a server, a list of them as in OffloadSession, or None.
        options: how the session runs the bundle.
        server_options: how the server within this process runs segments; None: as the device.
        **changes: fields of SessionOptions, as keywords.

    Raises:
        BundleError, InputError, ServerError: as OffloadSession and Server.
    """
    options = replace(options or SessionOptions(), **changes)
    if server is not None:
        return OffloadSession(bundle, server, options)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    followed = opened if options.share else opened.without_sharing()
    if not (followed if options.plan is None else opened.only(options.plan)).needs_server:
        return OffloadSession(opened, None, options)
    for side, advice in (
        (Side.DEVICE, "give the whole bundle or the device's half"),
        (Side.SERVER, "give the address of a server that has it (server=, --server HOST:PORT)"),
    ):
        if not opened.holds(side):
            raise InputError(f"{opened.path} does not have the {side.value}'s half: {advice}")
    from offload_runtimes.server import Server  # not needed with a server elsewhere
    from offload_runtimes.serving.serve_options import ServeOptions

    options = replace(options, security=None)  # plaintext does not leave this process
    serve_options = ServeOptions(server_options or options.engine)
    local_server = Server([opened], options=serve_options)
    local_server.start()
    try:
        return OffloadSession(opened, local_server.address, options, on_close=local_server.stop)
    except BaseException:
        local_server.stop()
        raise
