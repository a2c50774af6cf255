"""SSH connections by asyncssh, with the user's ~/.ssh/config and known_hosts."""

import contextlib
import re
import shlex
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncssh
from offload.errors import InputError, OffloadError, ServerError

from offload_runtimes.deploy.targets import SshAccount

# Keywords that decide how a host is reached and verified. Others (terminals, forwarding, commands)
# do not matter for a deployment, and RemoteCommand and RequestTTY would break it.
_KEYWORDS = frozenset(
    {
        *("addressfamily", "bindaddress", "casignaturealgorithms", "certificatefile", "ciphers"),
        *("hostkeyalgorithms", "hostkeyalias", "hostname", "identitiesonly", "identityagent"),
        *("identityfile", "kexalgorithms", "macs", "pkcs11provider", "port"),
        *("preferredauthentications", "proxycommand", "proxyjump", "pubkeyauthentication"),
        *("tag", "user"),
    }
)
_KNOWN_HOSTS = ("userknownhostsfile", "globalknownhostsfile")
_CONDITIONS = frozenset({"all", "canonical", "final"})  # of Match, without an argument
_ARGUMENT = frozenset({"host", "originalhost", "localuser", "user", "tagged", "exec"})
_NEVER = "Match originalhost ,"  # matches no host
_DEPTH = 16  # of nested includes, as in OpenSSH
_WORD = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*(?:=\s*)?(.*)")


@dataclass(frozen=True, slots=True)
class SshFiles:
    """Copy of the user's configuration that asyncssh can read.

    Attributes:
        config: the configuration.
        origins: the source of each of its lines, as `FILE line N`.
    """

    config: Path
    origins: tuple[str, ...]

    def origin(self, line_number: int) -> str:
        """Where a line of the copy, counted from 1, comes from."""
        return self.origins[min(line_number, len(self.origins)) - 1]


@contextmanager
def ssh_files(
    readable: Callable[[str], bool], has_local_network: bool, warn: Callable[[str], None]
) -> Iterator[SshFiles]:
    """Copy the user's files to a temporary folder, for the length of the block.

    Args:
        readable: whether the library can read a line of known_hosts.
        has_local_network: whether the library evaluates `Match localnetwork`.
        warn: called for each condition and line that is skipped.

    Raises:
        InputError: there is no home, or a file can't be read.
    """
    try:
        folder = Path("~/.ssh").expanduser()
    except RuntimeError as error:
        raise InputError("this account has no home to hold .ssh: set HOME") from error
    argument = _ARGUMENT | {"localnetwork"} if has_local_network else _ARGUMENT
    with tempfile.TemporaryDirectory(prefix="offload-ssh-") as name:
        copies: dict[str, Path] = {}

        def known_hosts(paths: Iterable[str]) -> str:
            """Copy known_hosts files; returns their paths as words of the configuration."""
            words = []
            for path in paths:
                if path not in copies:
                    copies[path] = Path(name, f"known_hosts_{len(copies)}")
                    copies[path].write_text(
                        "" if path.lower() == "none" else _readable_lines(path, readable, warn),
                        errors="surrogateescape",
                    )
                words.append(f'"{copies[path]}"')
            return " ".join(words)

        lines = list(_Reader(folder, argument, warn).lines(folder / "config"))
        copied = []
        for text, _ in lines:
            keyword, rest = _split(text)
            is_known_hosts = keyword in _KNOWN_HOSTS
            copied.append(f"{keyword} {known_hosts(shlex.split(rest))}" if is_known_hosts else text)
        default = [str(folder / "known_hosts"), str(folder / "known_hosts2")]
        copied += ["Host *", f"UserKnownHostsFile {known_hosts(default)}"]
        config = Path(name, "config")
        config.write_text("".join(f"{text}\n" for text in copied), errors="surrogateescape")
        origins = (*(origin for _, origin in lines), *["the default configuration"] * 2)
        yield SshFiles(config, origins)


class _Reader:
    """Reads an SSH configuration and the files that it includes."""

    def __init__(self, folder: Path, argument: frozenset[str], warn: Callable[[str], None]) -> None:
        """`argument`: conditions of Match that take an argument and that the library knows."""
        self._folder = folder
        self._argument = argument
        self._warn = warn

    def lines(self, path: Path, depth: int = 0) -> Iterator[tuple[str, str]]:
        """The relevant lines and their origins, with included files expanded in place."""
        if depth > _DEPTH:
            raise InputError(f"{path} is included by itself: correct ~/.ssh/config")
        block = "Host *"
        for number, line in enumerate(_read(path).splitlines(), 1):
            origin = f"{path} line {number}"
            text = _without_comment(line).strip()
            keyword, rest = _split(text)
            if keyword == "include":
                for pattern in _words(rest, origin):
                    for included in sorted(_matching(pattern, self._folder)):
                        yield from self.lines(included, depth + 1)
                yield block, origin  # the block from before the include continues
            elif keyword in ("host", "match"):
                block = text if keyword == "host" else self._match(text, rest, origin)
                yield block, origin
            elif keyword in _KEYWORDS or keyword in _KNOWN_HOSTS:
                _words(rest, origin)
                yield text, origin

    def _match(self, text: str, rest: str, origin: str) -> str:
        """The Match line, or one that never matches if the library lacks a condition."""
        words = _words(rest, origin)
        while words:
            name = words.pop(0).lower().lstrip("!")
            if name in self._argument:
                del words[:1]
            elif name not in _CONDITIONS:
                self._warn(f"{origin}: the condition {name!r} is not known, so it does not match")
                return _NEVER
        return text


def _words(text: str, origin: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{origin} is not understood ({error}): correct it") from error


def _split(text: str) -> tuple[str, str]:
    """The keyword of a line, in lower case, and the rest; both empty for any other text."""
    match = _WORD.fullmatch(text)
    return (match[1].lower(), match[2]) if match else ("", "")


def _without_comment(line: str) -> str:
    """Remove the comment of a line: from a `#` outside quotes at the start of a word."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def _matching(pattern: str, folder: Path) -> list[Path]:
    path = Path(pattern).expanduser()
    start, rest = (Path(path.anchor), path.parts[1:]) if path.anchor else (folder, path.parts)
    return [found for found in start.glob(str(Path(*rest))) if found.is_file()]


def _readable_lines(name: str, readable: Callable[[str], bool], warn: Callable[[str], None]) -> str:
    """The lines of a known_hosts file that the library can read."""
    path = Path(name).expanduser()
    kept = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if readable(line):
            kept.append(f"{line}\n")
        else:
            warn(f"{path} line {number} is not understood and skipped")
    return "".join(kept)


def _read(path: Path) -> str:
    """A file's text; empty when it is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): check its permissions"
        ) from error


_HAS_LOCAL_NETWORK = find_spec("ifaddr") is not None  # what asyncssh takes for it
_CONNECT_S = 15.0
_KEEPALIVE_S = 10.0


class _Stream:
    """Streams of a remote process; errors of asyncssh become errors of the operating system."""

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
async def open_process(
    name: str, account: SshAccount, words: Sequence[str]
) -> AsyncIterator[tuple[_Stream, _Stream, Callable[[], Awaitable[int | None]]]]:
    """Run a command on another machine; its input closes with the block.

    Args:
        name: of the target, for messages.
        account: where to log in.
        words: the command.

    Yields:
        Its input and output, its errors, and a function that waits for its exit code.

    Raises:
        InputError: the host key is not the known one, or no key is accepted.
        ServerError: the machine cannot be reached.
    """
    options: dict[str, Any] = {"port": account.port, "username": account.user}
    options["client_keys"] = account.key and [account.key]
    given = {key: value for key, value in options.items() if value is not None}
    with ssh_files(_is_readable, _HAS_LOCAL_NETWORK, _warn) as files:
        try:
            connection = await asyncssh.connect(
                account.host,
                connect_timeout=_CONNECT_S,
                login_timeout=_CONNECT_S,
                keepalive_interval=_KEEPALIVE_S,
                config=[str(files.config)],
                **given,
            )
        except asyncssh.ConfigParseError as error:
            raise _config_failure(error, files) from error
        except (OSError, KeyError, ValueError, RecursionError, asyncssh.Error) as error:
            raise _failure(account, error) from error
    async with connection:
        try:
            process = await connection.create_process(shlex.join(words), encoding=None)
        except (OSError, asyncssh.Error) as error:
            raise ServerError(f"{name} starts no program ({error}): check the account") from error

        async def ended() -> int | None:
            with contextlib.suppress(OSError, asyncssh.Error):
                await process.wait_closed()
            return process.exit_status

        yield _Stream(process, process.stdout), _Stream(process, process.stderr), ended
        with contextlib.suppress(OSError, asyncssh.Error):
            process.stdin.write_eof()
            await process.wait()


def _is_readable(line: str) -> bool:
    """Whether asyncssh can read a line of known_hosts."""
    try:
        asyncssh.import_known_hosts(line)
    except (ValueError, asyncssh.Error):
        return False
    return True


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _config_failure(error: Exception, files: SshFiles) -> InputError:
    """An error in the user's configuration, with its place there instead of in the copy."""
    found = re.fullmatch(r".* line (\d+): (.*)", str(error))
    where, why = (files.origin(int(found[1])), found[2]) if found else ("~/.ssh/config", str(error))
    return InputError(f"{where} is not understood ({why}): correct it")


def _failure(ssh: SshAccount, error: Exception) -> OffloadError:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return InputError(
                f"the host key of {ssh} is not the one known here ({error}): log in once with"
                " ssh to check and accept it"
            )
        case asyncssh.PermissionDenied():
            return InputError(
                f"{ssh} accepts none of your keys: add one there with ssh-copy-id, or name it as"
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
            return InputError(f"~/.ssh/config has an unknown setting ({error}): correct it")
        case _:
            return ServerError(f"{ssh} can't be reached ({error}): is its SSH server running?")
