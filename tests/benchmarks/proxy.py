"""A TCP proxy that cuts, stalls, corrupts and delays connections."""

import contextlib
import random
import socket
import threading
import time


class Proxy:
    """Forwards connections to a target, with faults on request.

    Attributes:
        address: where it listens (`host:port`).
        target: where it forwards to; may change for later connections.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._corrupt = 0
        self._refuse = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> None:
        """Break all connections and refuse new ones until `mend`."""
        self._refuse = True
        self._break_all()

    def stall(self) -> None:
        """Stop forwarding without closing connections, until `mend`."""
        self._flowing.clear()

    def corrupt(self) -> None:
        """Flip a bit of the next large piece that passes."""
        self._corrupt = 1

    def mend(self) -> None:
        """Forward again."""
        self._refuse = False
        self._flowing.set()

    def close(self) -> None:
        """Break all and stop."""
        self._refuse = True
        self._listener.close()
        self._break_all()

    def _break_all(self) -> None:
        with self._lock:
            sockets, self._open = self._open, set()
        for one in sockets:
            _hang_up(one)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._refuse:
                    _hang_up(near)
                else:
                    threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        host, port = self.target.rsplit(":", 1)
        try:
            far = socket.create_connection((host, int(port)), 5)
        except OSError:
            _hang_up(near)
            return
        with self._lock:
            self._open |= {near, far}
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far)
        back.join()
        with self._lock:
            self._open -= {near, far}

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(self._spoilt(data))
        _hang_up(source)
        _hang_up(sink)

    def _spoilt(self, data: bytes) -> bytes:
        if not self._corrupt or len(data) < 256:
            return data
        self._corrupt = 0
        at = random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def wait_until(condition: object, timeout_s: float) -> float | None:
    """Seconds until a callable returns true; None after the limit."""
    start_s = time.monotonic()
    while time.monotonic() - start_s < timeout_s:
        if condition():  # type: ignore[operator]
            return time.monotonic() - start_s
        time.sleep(0.002)
    return None
