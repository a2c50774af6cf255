"""Tell systemd how a service is: ready, still alive, stopping (the protocol of sd_notify(3))."""

import os
import socket


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
