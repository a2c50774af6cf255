"""Real OpenSSH servers on loopback, each with its own keys, and a wire that can be cut."""

import asyncio
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_sshd = pytest.mark.skipif(
    SSHD is None, reason="no OpenSSH server here: apt-get install openssh-server"
)
_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Sshd:
    """A running server."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    def target(self, name: str = "target") -> str:
        """A directory behind this server, as the user writes it."""
        return f"{self.address}{self.folder / name}"

    @property
    def host_key(self) -> str:
        return (self.folder / "host_key.pub").read_text().split(" ", 2)[1]


@dataclass(frozen=True)
class User:
    """A user's home: key and known hosts."""

    home: Path

    def know(self, server: Sshd, host_key: str = "") -> None:
        """Accept a server's host key, or another one in its name."""
        line = f"[127.0.0.1]:{server.port} ssh-ed25519 {host_key or server.host_key}\n"
        with (self.home / ".ssh/known_hosts").open("a") as stream:
            stream.write(line)


def make_user(home: Path) -> User:
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    make_key(home / ".ssh/id_ed25519")
    (home / ".ssh/known_hosts").touch()
    return User(home)


def make_key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    folder: Path,
    user: User,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Sshd]:
    """A server that lets the user in; the user knows it.

    Args:
        folder: gets its files.
        user: who may log in.
        environment: of its sessions.
        prefix: words before its command, like `ip netns exec NAME`.
    """
    assert SSHD is not None
    folder.mkdir(parents=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself up, if it is root's
    make_key(folder / "host_key")
    shutil.copy(user.home / ".ssh/id_ed25519.pub", folder / "authorized_keys")
    server = Sshd(folder, free_port())
    config = _CONFIG.format(port=server.port, folder=folder)
    if environment:
        config += "SetEnv " + " ".join(f'"{n}={value}"' for n, value in environment.items()) + "\n"
    (folder / "config").write_text(config)
    process = subprocess.Popen(
        [*prefix, SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(server.port, prefix)
        user.know(server)
        yield server
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, prefix: Sequence[str]) -> None:
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    give_up_s = time.monotonic() + 10
    while subprocess.run(
        [*prefix, sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False
    ).returncode:
        assert time.monotonic() < give_up_s, "sshd did not start"
        time.sleep(0.02)


class Scissors:
    """A port that passes everything on to another one, and cuts after some bytes."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self.cut_after_bytes = 1 << 60
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self._server = started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to_port)
        left = [self.cut_after_bytes]

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while left[0] > 0 and (data := await source.read(1 << 14)):
                kept = data[: left[0]]
                left[0] -= len(kept)
                sink.write(kept)
                await sink.drain()
            for end in (writer, back):
                end.transport.abort()

        both = (pass_on(reader, back), pass_on(there, writer))
        try:
            await asyncio.gather(*both, return_exceptions=True)
        finally:  # also when both failed, or this was cancelled
            for end in (writer, back):
                end.transport.abort()
