"""Use a target as the machine that models are timed on."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

from offload.costs.link_fit import Sample
from offload.errors import InputError, ServerError
from offload.files import temporary_folder

from offload_runtimes.address import Address, parse_address
from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.stages import find_runtime
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.measure.target_machine import TargetMachine

_REACH_S = 5.0
_CANCEL_S = 5.0
_ALL_INTERFACES = ("0.0.0.0", "::")


class _Connection:
    """The worker's streams, for a thread that waits for them."""

    def __init__(self, agent: AgentClient, loop: asyncio.AbstractEventLoop) -> None:
        self._agent = agent
        self._loop = loop

    def write(self, data: bytes) -> None:
        self._wait(self._agent.write(data))

    def readline(self) -> bytes:
        line: bytes = self._wait(self._agent.reader.readline())
        return line

    def read(self, size: int) -> bytes:
        data: bytes = self._wait(self._read(size))
        return data

    async def _read(self, size: int) -> bytes:
        pieces = []
        while size and (piece := await self._agent.reader.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@contextmanager
def target_machine(target: TargetConfig) -> Iterator[TargetMachine]:
    """Start the measuring worker on a target; it ends with the block.

    Raises:
        InputError: the target has no runtime, or refuses the login.
        ServerError: the target cannot be reached.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="target", daemon=True)
    thread.start()
    opened = connect(target)

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        agent = wait(opened.__aenter__())
        try:
            wait(_start_worker(agent))
            yield TargetMachine(target.name, _Connection(agent, loop))
        finally:
            wait(opened.__aexit__(None, None, None))
    finally:
        # An interrupt may have come while the connection was being made.
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result(_CANCEL_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_others() -> None:
    """Cancel all other tasks of the loop, and wait until they have ended."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class MeetingPoint:
    """The address that a server binds, and the host under which a device reaches it.

    Attributes:
        listen: the address that the server binds.
        host: the server's name or address, as the device reaches it.
    """

    listen: Address
    host: str

    def reached_at(self, port: int) -> str:
        """The address for the device, once the server's port is known."""
        return str(replace(self.listen, host=self.host, port=port))


def meeting_point(device: TargetConfig, server: TargetConfig) -> MeetingPoint:
    """Where a server target listens for a device target.

    If the server's `listen` names an address of the network, both use it. If it is loopback or
    all interfaces and a side is another machine, the server listens on all interfaces, and the
    device uses the server's `host`, or this machine's own address.

    Raises:
        InputError: the server listens on a Unix socket, or the device's host is not known here.
    """
    listen = parse_address(server.listen)
    if listen.path:
        raise InputError(
            f"{server.name} listens on a Unix socket, which no other machine reaches: set `listen`"
            " to HOST:PORT"
        )
    if not (listen.is_this_machine or listen.host in _ALL_INTERFACES):
        return MeetingPoint(listen, listen.host)
    host = server.ssh.host if server.ssh else _own_address(device)
    is_remote = server.ssh is not None or device.ssh is not None
    if is_remote and listen.is_this_machine:
        listen = replace(listen, host="0.0.0.0")
    return MeetingPoint(listen, host)


def probe_between(
    device: TargetConfig, server: TargetConfig, repeats: int, *, insecure: bool = False
) -> list[Sample]:
    """Start a server that answers only probes, and time messages from a device to it.

    Both sides use certificates made for the probe, unless `insecure`.

    Raises:
        InputError: a target has no runtime, or the port is in use.
        ServerError: a target cannot be reached, or the device cannot reach the server.
    """
    meeting = meeting_point(device, server)
    with (
        temporary_folder() as folder,
        target_machine(server) as serving,
        target_machine(device) as machine,
    ):
        server_files: tuple[Path, ...] = ()
        device_files: tuple[Path, ...] = ()
        if not insecure:
            # Not on top: needs the package cryptography (extra `tls`).
            from offload_runtimes.security.certs import make_certificates

            make_certificates(folder, servers=[meeting.host], devices=["device"], days=1)
            server_files = certificate_files(folder, meeting.host)
            device_files = certificate_files(folder, "device")
        port = parse_address(serving.serve(str(meeting.listen), server_files)).port
        with explained(device, server, meeting.host, port):
            return machine.probe(meeting.reached_at(port), repeats, device_files)


def certificate_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Authority, certificate and key of one side, in a folder of `make_certificates`."""
    return folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key"


@contextmanager
def explained(device: TargetConfig, server: TargetConfig, host: str, port: int) -> Iterator[None]:
    """Add to a device's connection error whether this machine reaches the server.

    Raises:
        ServerError: in place of the one of the block.
    """
    try:
        yield
    except ServerError as error:
        address = str(Address(host, port))
        try:
            with socket.create_connection((host, port), _REACH_S):
                pass
        except OSError:
            raise ServerError(
                f"neither {device.name} nor this machine reaches {server.name} at {address}: is"
                " a firewall in the way, or is `host` another one than the server's own?"
            ) from error
        raise ServerError(
            f"{address} of {server.name} is reached from here but not from {device.name}"
            f" ({error}): is a firewall or NAT in between, or does the name mean another"
            " machine there?"
        ) from error


def _own_address(device: TargetConfig) -> str:
    """The address of this machine that a device would reach it at."""
    if device.ssh is None:
        return "127.0.0.1"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            device.ssh.host, 9, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing, but chooses the interface
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(
            f"{device.ssh.host} is not a name of the network here ({error.strerror}): give the"
            " server as a target with `host`"
        ) from error


async def _start_worker(agent: AgentClient) -> None:
    facts = await agent.call("facts")
    python = await find_runtime(agent, facts["root"])
    if python is None:
        raise InputError(
            f"{agent.target.name} has no runtime to measure with: run `offload device init"
            f" {agent.target.name}` first"
        )
    await agent.call("become", command=[python, "-m", "offload_runtimes", "measure"])
