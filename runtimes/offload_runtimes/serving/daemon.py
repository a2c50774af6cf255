"""Serve until asked to stop; under systemd, say when ready and give signs of life."""

from collections.abc import Callable
from dataclasses import replace

from offload_runtimes.address import parse_address
from offload_runtimes.grpc.diagnosis import connect
from offload_runtimes.server import Server
from offload_runtimes.serving.notify import notify, watchdog_s
from offload_runtimes.serving.stopping import StopSignal

_ANSWER_S = 5.0


def serve_until_asked(
    server: Server,
    ready: Callable[[str], None],
    draining: Callable[[], None] = lambda: None,
    drain_s: float = 30.0,
) -> None:
    """Start a server, tell its address, and serve until SIGTERM or SIGINT; then drain.

    Signs of life are given by this process only while its port accepts connections, so a server
    that hangs or has lost its port is restarted. `draining` is called before work under way is
    waited for, `drain_s` at most.

    Raises:
        InputError: the port is in use.
    """
    with StopSignal() as asked, server:
        ready(server.address)
        notify(f"READY=1\nSTATUS=serving on {server.address}")
        limit_s = watchdog_s()
        while not asked.wait(limit_s and limit_s / 3):
            if answers(server.address):
                notify("WATCHDOG=1")
        notify("STOPPING=1")
        draining()
        server.drain(drain_s)


def answers(address: str) -> bool:
    """Whether a server accepts connections; one with TLS is not asked for more."""
    listens = parse_address(address)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listens.host, listens.host)
    try:
        connect(replace(listens, host=here), _ANSWER_S).close()
    except OSError:
        return False
    return True
