"""An SSH server on loopback, and the home of a user who knows it, for the front-door tests.

Run as a program it is the server: it accepts the key in HOME and runs commands by a shell of one's
choice. It prints its port.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh


@dataclass(frozen=True)
class SshServer:
    """A running server.

    Attributes:
        port: where it listens on 127.0.0.1.
        home: the user's home; commands run in `home/remote`.
    """

    port: int
    home: Path

    @property
    def target(self) -> str:
        return f"me@127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "SSH_AUTH_SOCK": ""}

    def config(self, text: str) -> None:
        (self.home / ".ssh/config").write_text(text)


@contextmanager
def ssh_server(home: Path, shell: str = "sh") -> Iterator[SshServer]:
    """A server that the user of a home knows and may log in to."""
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / "remote").mkdir()
    command = [sys.executable, __file__, str(home), shell]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield SshServer(int(process.stdout.readline()), home)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


async def _main(home: Path, shell: str) -> None:
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user.write_private_key(home / ".ssh/id_ed25519")
    (home / "authorized").write_bytes(user.export_public_key())

    async def run(process: "asyncssh.SSHServerProcess[bytes]") -> None:
        assert process.command is not None
        child = await asyncio.create_subprocess_exec(
            *(shell, "-c", process.command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home / "remote",
            env={**os.environ, "HOME": str(home / "remote")},
        )

        async def passed_on(
            source: asyncio.StreamReader, sink: "asyncssh.SSHWriter[bytes]"
        ) -> None:
            while data := await source.read(1 << 16):
                sink.write(data)

        async def fed(sink: asyncio.StreamWriter) -> None:
            try:
                while data := await process.stdin.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
                sink.close()
            except (OSError, asyncssh.Error):
                pass  # one of them has gone

        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        feeding = asyncio.create_task(fed(child.stdin))
        await asyncio.gather(
            passed_on(child.stdout, process.stdout), passed_on(child.stderr, process.stderr)
        )
        process.exit(await child.wait())
        feeding.cancel()

    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host],
        authorized_client_keys=str(home / "authorized"),
        process_factory=run,
        encoding=None,
    )
    port = server.sockets[0].getsockname()[1]
    public = host.export_public_key().decode()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    print(port, flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))
