"""Run a server as a service: signals, systemd notifications, a status socket."""

import contextlib
import gc
import json
import os
import queue
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Self

from offload_runtimes.address import parse_address
from offload_runtimes.installation import versions
from offload_runtimes.server import Server
from offload_runtimes.serving.handshakes import failed_handshakes
from offload_runtimes.serving.metrics import LOG
from offload_runtimes.transport.diagnosis import connect


def notify(state: str) -> bool:
    """Send a state such as `READY=1` to systemd; False if it expects none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
        speaker.connect(address)
        speaker.sendall(state.encode())
    return True


def watchdog_s() -> float | None:
    """Interval within which systemd expects a notification; None if it expects none."""
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    process = str(os.getpid())
    if not interval_us.isdecimal() or os.environ.get("WATCHDOG_PID", process) != process:
        return None
    return int(interval_us) / 1e6


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Request(Enum):
    """What a signal asks the server to do."""

    NOTHING = "nothing"
    RELOAD = "reload"
    STOP = "stop"


class StopSignal:
    """Waits for signals; a context manager for the main thread.

    SIGTERM and SIGINT ask to stop. SIGHUP asks to reload, or to stop if the server's terminal was
    closed.

    It waits on a socket, not on a lock: the kernel may deliver a signal to any thread of gRPC or
    onnxruntime, and a main thread that waits for a lock would not notice it.
    """

    def __enter__(self) -> Self:
        self._stop = self._reload = False
        self._had_terminal = _has_terminal()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._writer.fileno())
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_fd)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float | None = None) -> Request:
        """The request since the last call; waits for one, at most `timeout_s`."""
        if not (self._stop or self._reload) and select.select([self._reader], [], [], timeout_s)[0]:
            self._reader.recv(4096)  # other signals write, too: the handler decides
        if self._stop:
            return Request.STOP
        request, self._reload = Request.RELOAD if self._reload else Request.NOTHING, False
        return request

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not (self._had_terminal and not _has_terminal()):
            self._reload = True
        else:
            self._stop = True


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal that still exists."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


_NAME = "onnx-offload"


@contextmanager
def status_socket(status: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Serve the status as one line of JSON on a Unix socket, for the length of the block.

    If no socket can be made, the server runs without one, and logs a warning.
    """
    try:
        folder = status_folder()
        path = folder / f"{os.getpid()}.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        LOG.warning("no status socket", extra={"fields": {"error": str(error)}})
        yield
        return
    thread = threading.Thread(target=_serve_status, args=(listener, status), daemon=True)
    thread.start()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        thread.join()
        listener.close()


def status_folder() -> Path:
    """The folder of this account's status sockets; created if it is missing.

    Raises:
        OSError: it cannot be created, or belongs to another account.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    folder = runtime / _NAME
    if not os.access(runtime, os.W_OK):
        folder = Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another account")
    return folder


def _serve_status(listener: socket.socket, status: Callable[[], Mapping[str, Any]]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it was shut down
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(1.0)
            connection.sendall(json.dumps(status()).encode() + b"\n")


_CONNECT_S = 5.0
_RELEASES_S = 2.0  # between checks for new releases
_JOIN_S = 5.0


def serve_until_asked(
    server: Server,
    ready: Callable[[str], None],
    draining: Callable[[], None] = lambda: None,
    drain_s: float = 30.0,
) -> None:
    """Start a server, pass its address to `ready`, serve until SIGTERM or SIGINT, then drain.

    SIGHUP reads certificates, tokens and the bundles' directories again; new releases of a
    deployment are loaded without it. Open sessions continue.

    Systemd's watchdog is notified only while the port accepts connections, so a server that hangs
    or has lost its port is restarted. `draining` is called before the server waits, at most
    `drain_s`, for frames in flight.

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
        signals = stack.enter_context(StopSignal())
        if server.certificate_expiries_s:
            stack.enter_context(failed_handshakes(lambda reason: server.refused("tls", "", reason)))
        stack.enter_context(server)
        # Exclude loaded modules and models from garbage collection, which took up to half of the
        # time of a short request.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        stack.enter_context(status_socket(status))
        reload_bundles = stack.enter_context(_following_releases(server))
        ready(server.address)
        notify(f"READY=1\nSTATUS=serving on {server.address}")
        limit_s = watchdog_s()
        while (request := signals.wait(limit_s and limit_s / 3)) is not Request.STOP:
            if request is Request.RELOAD:
                server.reload()
                reload_bundles()
            if answers(server.address):
                notify("WATCHDOG=1")
        notify("STOPPING=1")
        draining()
        server.drain(drain_s)


@contextmanager
def _following_releases(server: Server) -> Iterator[Callable[[], None]]:
    """Load new releases on a thread of its own: loading may outlast systemd's watchdog.

    Yields a function that requests a reload even if no root has another release.
    """
    requests: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def follow() -> None:
        while True:
            forced = False
            with contextlib.suppress(queue.Empty):
                forced = requests.get(timeout=_RELEASES_S)
                if not forced:
                    return
            try:
                server.reload_bundles(even_unchanged=forced)
            except Exception:  # noqa: BLE001  logged; the next release may load
                LOG.exception("bundles not reloaded")

    thread = threading.Thread(target=follow, name="releases", daemon=True)
    thread.start()
    try:
        yield lambda: requests.put(True)
    finally:
        requests.put(False)
        thread.join(_JOIN_S)


def answers(address: str) -> bool:
    """Whether a server accepts connections; a TLS handshake is not tried."""
    parsed = parse_address(address)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parsed.host, parsed.host)
    try:
        connect(replace(parsed, host=host), _CONNECT_S).close()
    except OSError:
        return False
    return True
