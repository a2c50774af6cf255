"""Let `offload status` ask a running server how it is: one line of JSON on a local socket.

Only the account that runs the server may ask. The deployer's agent (`deploy/agent/machine.py`)
looks into the same folders.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offload_runtimes.serving.observe import LOG

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
