"""Failed TLS handshakes, read from stderr, the only place where gRPC reports them."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FAILED = re.compile(rb"ssl_transport_security.*Handshake failed with (?:fatal )?error (.*)")
_JOIN_S = 1.0
_VERBOSITY = "GRPC_VERBOSITY"
_EXPERIMENTS = "GRPC_EXPERIMENTS"  # a server uses gRPC's defaults
_REASON = re.compile(r"OPENSSL_internal:(\w+)")


def report_handshakes() -> None:
    """Import gRPC so that it writes failed handshakes to stderr, unless the user configured it.

    `offload_runtimes.transport` silences gRPC otherwise. The environment is restored afterwards,
    for child processes.
    """
    if _VERBOSITY in os.environ:
        return
    added = [name for name in (_VERBOSITY, _EXPERIMENTS) if name not in os.environ]
    os.environ.update(dict.fromkeys(added, ""))
    try:
        import offload_runtimes.transport  # noqa: F401
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def failed_handshakes(failed: Callable[[str], None]) -> Iterator[None]:
    """Call `failed` with OpenSSL's reason of each failed handshake, for the length of the block.

    Meanwhile the process's stderr goes through a pipe; all other lines are passed on.
    """
    sys.stderr.flush()
    real = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)

    def pass_on() -> None:
        incomplete = b""
        while data := os.read(source, 1 << 16):
            *lines, incomplete = (incomplete + data).split(b"\n")
            for line in lines:
                match = _FAILED.search(line)
                if match is None:
                    os.write(real, line + b"\n")
                else:
                    text = match[1].decode(errors="replace")
                    reason = _REASON.search(text)
                    failed(reason[1].lower() if reason else text)
        os.write(real, incomplete)

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)  # the pipe's last end is closed: the reader sees the end
        reader.join(_JOIN_S)  # a child that has our stderr would keep the pipe open
        if not reader.is_alive():
            os.close(source)
            os.close(real)
