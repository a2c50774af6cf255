"""Run a server as a service: signals, systemd notifications, a status socket."""

import contextlib
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
from offload_runtimes.server import Server
from offload_runtimes.serving.handshakes import failed_handshakes
from offload_runtimes.serving.metrics import LOG
from offload_runtimes.transport.diagnosis import connect
from offload_runtimes.versions import versions


def notify(state: str) -> bool:
    """Send one state, like `READY=1`; False when nobody asked to be told."""
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
    """Seconds within which systemd wants a sign of life; None when it wants none."""
    told = os.environ.get("WATCHDOG_USEC", "")
    if not told.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(told) / 1e6


_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Request(Enum):
    """What a server was asked to do."""

    NOTHING = "nothing"
    RELOAD = "reload"
    STOP = "stop"


class StopSignal:
    """Waits for signals; a context manager of the main thread.

    SIGTERM and SIGINT ask to stop. SIGHUP asks to reload, or to stop when it comes because the
    terminal that the server was started in is gone.

    A lock does not do: the kernel may hand a signal to any thread of gRPC's or onnxruntime's, and
    a main thread that waits for a lock would then not hear of it. A socket wakes it all the same.
    """

    def __enter__(self) -> Self:
        self._stop = self._reload = False
        self._had_terminal = _has_terminal()
        self._bell, self._button = socket.socketpair()
        self._button.setblocking(False)
        self._before_fd = signal.set_wakeup_fd(self._button.fileno())
        self._before = {number: signal.signal(number, self._ask) for number in _NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_fd)
        self._bell.close()
        self._button.close()

    def wait(self, timeout_s: float | None = None) -> Request:
        """What was asked for since the last call; waits for it, `timeout_s` at most."""
        rung = [self._bell]
        if not (self._stop or self._reload) and select.select(rung, [], [], timeout_s)[0]:
            self._bell.recv(4096)  # other signals ring, too: only the handler knows which
        if self._stop:
            return Request.STOP
        asked, self._reload = Request.RELOAD if self._reload else Request.NOTHING, False
        return asked

    def _ask(self, number: int, _frame: FrameType | None) -> None:
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
    """Within the block, answer every connection with the status, as one line of JSON.

    Where no socket can be made the server runs without one, and logs a warning.
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
    thread = threading.Thread(target=_answer, args=(listener, status), daemon=True)
    thread.start()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        thread.join()
        listener.close()


def status_folder() -> Path:
    """The folder of this account's status sockets, made where it is missing.

    Raises:
        OSError: it can't be made, or is another account's.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    folder = runtime / _NAME
    if not os.access(runtime, os.W_OK):
        folder = Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another account's")
    return folder


def _answer(listener: socket.socket, status: Callable[[], Mapping[str, Any]]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it was shut down
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(1.0)
            connection.sendall(json.dumps(status()).encode() + b"\n")


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
        while (what := asked.wait(limit_s and limit_s / 3)) is not Request.STOP:
            if what is Request.RELOAD:
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
