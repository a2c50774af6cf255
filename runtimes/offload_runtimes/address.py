"""Server addresses: `HOST:PORT`, `[IPV6]:PORT` and `unix:PATH`, and their proxy if any."""

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from offload.errors import InputError

KSERVE_SCHEME = "kserve://"  # before the address of a server of KServe v2
_UNIX = "unix:"
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # in gRPC's order
_BYPASS_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server: a host and a port, or a Unix socket.

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
        """The address in gRPC's syntax."""
        return str(self).replace("%", "%25") if ":" in self.host else str(self)

    @property
    def is_this_machine(self) -> bool:
        """Whether only this machine can reach the address: loopback, or a Unix socket."""
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
        raise InputError(f"an address must be a string like '192.0.2.7:50051', not {text!r}")
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        path = path[2:] if path.startswith("//") else path
        if not path or "\0" in path:
            raise InputError(f"address {text!r} names no socket: write it like unix:/run/offload")
        return Address("", 0, path)
    scheme, separator, after = text.partition("://")
    if separator:
        raise InputError(
            f"address {text!r} is not understood: leave out {scheme}:// and write it like"
            f" {after.strip('/') or '192.0.2.7:50051'}"
        )
    host, colon, port = text.rpartition(":")
    bracketed = f"[{text.strip('[]')}]" if ":" in text else text
    if _ip(text.strip("[]")) is not None or (text and not colon):
        raise InputError(f"address {text!r} has no port: write it like {bracketed}:50051")
    has_brackets = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if has_brackets else host
    is_wrong = not bare or any(c.isspace() or c in "/[]@" for c in bare)
    is_wrong = is_wrong or (":" in bare) != has_brackets or (has_brackets and _ip(bare) is None)
    if is_wrong or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InputError(f"address {text!r} is not understood: write it like 192.0.2.7:50051")
    return Address(bare, int(port))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "]" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def proxy_of(address: Address, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy for an address by the environment's variables; None: connect directly.

    The variables and rules are gRPC's, but a connection to a loopback, private or link-local
    address, or to a name that resolves to one, never uses a proxy.
    """
    proxy = next((environment[name] for name in _PROXY_VARIABLES if environment.get(name)), None)
    if proxy is None or address.path or address.is_this_machine:
        return None
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        infos = []  # the name is unknown here; the proxy may know it
    ips = [ip for ip in (_ip(str(info[4][0])) for info in infos) if ip is not None]
    if any(not ip.is_global for ip in ips):
        return None
    bypass = next((environment[name] for name in _BYPASS_VARIABLES if environment.get(name)), "")
    for entry in filter(None, (word.strip() for word in bypass.split(","))):
        if entry == "*" or address.host.lower().endswith(entry.lower()):
            return None
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            continue
        if any(ip in network for ip in ips):
            return None
    return proxy
