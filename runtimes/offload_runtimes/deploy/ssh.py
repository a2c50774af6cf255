"""The one door to asyncssh: an agent on a machine reached over SSH.

The user's own configuration, keys and agent are used; host keys are checked strictly.
"""

import contextlib
import re
import shlex
import warnings
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from typing import Any

import asyncssh
from offload.errors import InputError, OffloadError, ServerError

from offload_runtimes.deploy.channel import Channel, command, payload
from offload_runtimes.deploy.place import Place, Ssh
from offload_runtimes.deploy.ssh_config import SshFiles, ssh_files

_HAS_LOCAL_NETWORK = find_spec("ifaddr") is not None  # what asyncssh takes for it
_CONNECT_S = 15.0
_KEEPALIVE_S = 10.0


class _Stream:
    """A process's streams, with the system's own errors instead of asyncssh's."""

    def __init__(
        self, process: asyncssh.SSHClientProcess[bytes], reader: asyncssh.SSHReader[bytes]
    ) -> None:
        self._writer = process.stdin
        self._reader = reader

    async def readline(self) -> bytes:
        with _system_errors():
            return await self._reader.readline()

    async def read(self, n: int = -1, /) -> bytes:
        with _system_errors():
            return await self._reader.read(n)

    def write(self, data: bytes, /) -> None:
        with _system_errors():
            self._writer.write(data)

    async def drain(self) -> None:
        with _system_errors():
            await self._writer.drain()


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    try:
        yield
    except asyncssh.Error as error:
        raise ConnectionResetError(str(error)) from error


@contextlib.asynccontextmanager
async def over_ssh(place: Place) -> AsyncIterator[Channel]:
    """The agent on another machine.

    Raises:
        InputError: the host key is not known or another one, or no key of ours is accepted.
        ServerError: the machine can't be reached.
    """
    assert place.ssh is not None
    words = command(place.python, len(payload(place.root)))
    with ssh_files(_is_readable, _HAS_LOCAL_NETWORK, _warn) as files:
        try:
            connection = await asyncssh.connect(**_options(place.ssh), config=[str(files.config)])
        except asyncssh.ConfigParseError as error:
            raise _config_failure(error, files) from error
        except (OSError, KeyError, ValueError, RecursionError, asyncssh.Error) as error:
            raise _failure(place.ssh, error) from error
    async with connection:
        try:
            process = await connection.create_process(shlex.join(words), encoding=None)
        except (OSError, asyncssh.Error) as error:
            raise ServerError(f"{place.name} starts no program for us ({error})") from error
        replies, errors = _Stream(process, process.stdout), _Stream(process, process.stderr)

        async def ended() -> int | None:
            with contextlib.suppress(OSError, asyncssh.Error):
                await process.wait_closed()
            return process.exit_status

        yield Channel(place, replies, replies, errors, ended)
        with contextlib.suppress(OSError, asyncssh.Error):
            process.stdin.write_eof()
            await process.wait()


def _is_readable(line: str) -> bool:
    """Whether asyncssh reads a line of known_hosts."""
    try:
        asyncssh.import_known_hosts(line)
    except (ValueError, asyncssh.Error):
        return False
    return True


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _config_failure(error: Exception, files: SshFiles) -> InputError:
    """What is wrong in the user's configuration, and where; asyncssh read a copy of it."""
    found = re.fullmatch(r".* line (\d+): (.*)", str(error))
    where, why = (files.origin(int(found[1])), found[2]) if found else ("~/.ssh/config", str(error))
    return InputError(f"{where} is not understood ({why}): mend it")


def _options(ssh: Ssh) -> dict[str, Any]:
    given = {"port": ssh.port, "username": ssh.user, "client_keys": ssh.key and [ssh.key]}
    return {
        "host": ssh.host,
        "connect_timeout": _CONNECT_S,
        "login_timeout": _CONNECT_S,
        "keepalive_interval": _KEEPALIVE_S,
        **{name: value for name, value in given.items() if value is not None},
    }


def _failure(ssh: Ssh, error: Exception) -> OffloadError:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return InputError(
                f"the host key of {ssh} is not the one known here ({error}): log in once with"
                " ssh to check and accept it"
            )
        case asyncssh.PermissionDenied():
            return InputError(
                f"{ssh} accepts none of our keys: add one there with ssh-copy-id, or name it as"
                " `key` in devices.toml"
            )
        case RecursionError():  # asyncssh follows a jump host's own ProxyJump without end
            return InputError(
                f"~/.ssh/config: the ProxyJump of {ssh} applies to the jump host too: exclude it"
                " there, like `Host * !gate`"
            )
        case KeyError():
            return InputError("this account has no name to log in with: write USER@HOST, set USER")
        case asyncssh.KeyImportError() | FileNotFoundError() | PermissionError():
            return InputError(f"the key for {ssh} can't be read ({error}): give another")
        case TimeoutError():
            return ServerError(f"{ssh} did not answer within {_CONNECT_S:g} s: is it switched on?")
        case ValueError() if not isinstance(error, OSError):
            return InputError(f"~/.ssh/config asks for what is not known here ({error}): mend it")
        case _:
            return ServerError(f"{ssh} can't be reached ({error}): is its SSH server running?")
