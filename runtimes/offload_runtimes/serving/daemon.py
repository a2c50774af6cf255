"""Serve until asked to stop; under systemd, say when ready and give signs of life."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from offload_runtimes.address import parse_address
from offload_runtimes.grpc.diagnosis import connect
from offload_runtimes.server import Server
from offload_runtimes.serving.handshakes import failed_handshakes
from offload_runtimes.serving.notify import notify, watchdog_s
from offload_runtimes.serving.observe import LOG
from offload_runtimes.serving.status import status_socket
from offload_runtimes.serving.stopping import Asked, StopSignal
from offload_runtimes.versions import versions

_ANSWER_S = 5.0
_RELEASES_S = 2.0  # between looks at the roots of deployments
_JOIN_S = 5.0


def serve_until_asked(
    server: Server,
    ready: Callable[[str], None],
    draining: Callable[[], None] = lambda: None,
    drain_s: float = 30.0,
) -> None:
    """Start a server, tell its address, and serve until SIGTERM or SIGINT; then drain.

    SIGHUP reads certificates and tokens again, and takes up what the bundles' directories hold by
    then; a new release of a deployment is taken up without it, too. Open sessions go on.

    Signs of life are given by this process only while its port accepts connections, so a server
    that hangs or has lost its port is restarted. `draining` is called before work under way is
    waited for, `drain_s` at most.

    Raises:
        InputError: the port is in use.
    """
    started_s = time.time()
    about = versions().to_json()

    def status() -> dict[str, Any]:
        return {
            **about,
            "providers": list(server.providers),
            "pid": os.getpid(),
            "listening": server.address,
            "bundles": list(server.bundles),
            "paths": [os.path.abspath(path) for path in server.paths],  # noqa: PTH100  keeps links
            "sessions": server.sessions,
            "started_s": started_s,
        }

    with ExitStack() as stack:
        asked = stack.enter_context(StopSignal())
        if server.certificate_expiries_s:
            failed = failed_handshakes(lambda reason: server.refused("tls", "", reason))
            stack.enter_context(failed)
        stack.enter_context(server)
        stack.enter_context(status_socket(status))
        reload_bundles = stack.enter_context(_following_releases(server))
        ready(server.address)
        notify(f"READY=1\nSTATUS=serving on {server.address}")
        limit_s = watchdog_s()
        while (what := asked.wait(limit_s and limit_s / 3)) is not Asked.STOP:
            if what is Asked.RELOAD:
                server.reload()
                reload_bundles()
            if answers(server.address):
                notify("WATCHDOG=1")
        notify("STOPPING=1")
        draining()
        server.drain(drain_s)


@contextmanager
def _following_releases(server: Server) -> Iterator[Callable[[], None]]:
    """Take up new releases on a thread of its own, for loading may outlast systemd's watchdog.

    Gives a function that asks for it although no root has another release.
    """
    wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def follow() -> None:
        while True:
            asked = False
            with contextlib.suppress(queue.Empty):
                asked = wakes.get(timeout=_RELEASES_S)
                if not asked:
                    return
            try:
                server.reload_bundles(even_unchanged=asked)
            except Exception:  # noqa: BLE001  logged; the next release may be taken up
                LOG.exception("bundles not reloaded")

    thread = threading.Thread(target=follow, name="releases", daemon=True)
    thread.start()
    try:
        yield lambda: wakes.put(True)
    finally:
        wakes.put(False)
        thread.join(_JOIN_S)


def answers(address: str) -> bool:
    """Whether a server accepts connections; one with TLS is not asked for more."""
    listens = parse_address(address)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listens.host, listens.host)
    try:
        connect(replace(listens, host=here), _ANSWER_S).close()
    except OSError:
        return False
    return True
