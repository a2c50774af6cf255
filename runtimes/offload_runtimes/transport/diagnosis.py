"""Find out why a server cannot be reached, with plain sockets, whose errors are exact."""

import socket
import ssl
import time

from offload.errors import ServerError

from offload_runtimes.address import Address
from offload_runtimes.security.credentials import ClientSecurity


def connect(address: Address, timeout_s: float) -> socket.socket:
    """Open a TCP or Unix socket connection.

    Raises:
        OSError: the error of the operating system.
    """
    if not address.path:
        return socket.create_connection((address.host, address.port), timeout_s)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_s)
        connection.connect(address.path)
    except BaseException:
        connection.close()
        raise
    return connection


def unreachable(
    address: Address, security: ClientSecurity, proxy: str | None, timeout_s: float
) -> ServerError:
    """The error for a connection that gRPC could not open.

    Resolves the name, connects, and checks on which sides TLS is used, within about `timeout_s`.
    """
    if proxy is not None:
        return _cannot(
            address,
            f"the environment variables set the proxy {proxy}, which gives no connection: check the"
            f" proxy, or set no_proxy={address.host} to connect directly",
        )
    until_s = time.monotonic() + timeout_s
    try:
        connection = connect(address, timeout_s)
    except socket.gaierror:
        return _cannot(address, f"there is no host named {address.host!r}: check the name")
    except FileNotFoundError:
        return _cannot(address, "no such socket: check the path, and that the server is running")
    except ConnectionRefusedError:
        return _cannot(
            address, "nothing listens there: start the server with `offload serve`, check the port"
        )
    except TimeoutError:
        return _cannot(
            address, "no answer from that host: check the address, and that no firewall is between"
        )
    except OSError as error:
        return _cannot(
            address,
            f"no route to that host ({error.strerror}): check the address and this machine's"
            " network",
        )
    with connection:
        return _refusal(address, security, connection, until_s)


def _cannot(address: Address, why: str, option: str | None = None) -> ServerError:
    error = ServerError(f"server {address} cannot be reached: {why}")
    error.option = option
    return error


def _refusal(
    address: Address, security: ClientSecurity, connection: socket.socket, until_s: float
) -> ServerError:
    """Why gRPC failed although the connection was accepted."""
    speaks_tls = _speaks_tls(address, connection, until_s)
    if speaks_tls is None:
        return _cannot(
            address,
            "it takes connections but does not answer: is it an onnx-offload server, and not"
            " overloaded?",
        )
    if speaks_tls and security.ca is None:
        return _cannot(address, "it speaks TLS: give the authority of its certificate", "ca")
    if not speaks_tls and security.ca is not None:
        return _cannot(
            address,
            "it does not speak TLS: connect without certificates, or give the server its own",
        )
    if speaks_tls:
        return _cannot(
            address,
            "the TLS handshake fails: do both sides' certificates come from authorities the other"
            " trusts, name the right host and last until today?",
        )
    return _cannot(address, "it does not answer gRPC: is it an onnx-offload server?")


def _speaks_tls(address: Address, connection: socket.socket, until_s: float) -> bool | None:
    """Whether the other end answers a TLS handshake; None: no answer of any kind."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    connection.settimeout(max(until_s - time.monotonic(), 0.1))
    try:
        with context.wrap_socket(connection, server_hostname=address.host or None):
            return True
    except TimeoutError:
        return None
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False
