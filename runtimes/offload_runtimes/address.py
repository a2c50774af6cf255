"""Addresses: `HOST:PORT`, `[IPV6]:PORT` and `unix:PATH`, and whether a proxy stands before them."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from offload.errors import InputError

_UNIX = "unix:"
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's order
_BYPASS_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a host and a port, or a Unix socket.

    Attributes:
        host: name or IP address, without brackets; empty for a Unix socket.
        port: TCP port; 0 for a Unix socket, or for any free port.
        path: path of the Unix socket; empty for a host.
    """

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """The address as gRPC reads it."""
        return str(self).replace("%", "%25") if ":" in self.host else str(self)

    @property
    def is_this_machine(self) -> bool:
        """Whether only this machine can reach it: loopback, or a Unix socket."""
        if self.path or self.host == "localhost":
            return True
        address = _ip(self.host)
        return address is not None and address.is_loopback


def parse_address(text: object) -> Address:
    """Read `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.

    Raises:
        InputError: the text is none of these.
    """
    if not isinstance(text, str):
        raise InputError(f"an address is a string like '192.0.2.7:50051', not {text!r}")
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        path = path[2:] if path.startswith("//") else path
        if not path or "\0" in path:
            raise InputError(f"address {text!r} names no socket: write it like unix:/run/offload")
        return Address("", 0, path)
    scheme, separator, rest = text.partition("://")
    if separator:
        raise InputError(
            f"address {text!r} is not understood: leave out {scheme}:// and write it like"
            f" {rest.strip('/') or '192.0.2.7:50051'}"
        )
    host, colon, port = text.rpartition(":")
    if _ip(text.strip("[]")) is not None or (text and not colon):
        raise InputError(f"address {text!r} has no port: write it like {_bracketed(text)}:50051")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    odd = not bare or any(c.isspace() or c in "/[]@" for c in bare)
    odd = odd or (":" in bare) != bracketed or (bracketed and _ip(bare) is None)
    if odd or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InputError(f"address {text!r} is not understood: write it like 192.0.2.7:50051")
    return Address(bare, int(port))


def _bracketed(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "]" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def proxy_of(address: Address, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy that the environment's variables set for an address; None: connect directly.

    gRPC's variables and rules, but a connection to a loopback, private or link-local address, or
    to a name that stands for one, never goes through a proxy.
    """
    proxy = next((environment[name] for name in _PROXY_VARIABLES if environment.get(name)), None)
    if proxy is None or address.path or address.is_this_machine:
        return None
    found = [ip for ip in map(_ip, _resolved(address)) if ip is not None]
    if any(not ip.is_global for ip in found):
        return None
    bypass = next((environment[name] for name in _BYPASS_VARIABLES if environment.get(name)), "")
    for entry in filter(None, (word.strip() for word in bypass.split(","))):
        if entry == "*" or address.host.lower().endswith(entry.lower()):
            return None
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            continue
        if any(ip in network for ip in found):
            return None
    return proxy


def _resolved(address: Address) -> list[str]:
    """The IP addresses of a host; none when its name is unknown here, maybe not to the proxy."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in found]
