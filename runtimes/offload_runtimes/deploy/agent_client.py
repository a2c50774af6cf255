"""The client of the agent on a target: start the agent, send requests and files."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from offload.errors import InputError, OffloadError, ServerError

from offload_runtimes.deploy.targets import TargetConfig

_AGENT = Path(__file__).parent.parent / "agent"
_MODULES = ("machine", "store", "serve")  # each imports only those before it
_PACKAGE = "offload_runtimes.agent"
_PIECE_BYTES = 1 << 18
_REPLY_LIMIT_BYTES = 1 << 24
_BOOT = """
import json, sys, types
if sys.version_info < (3, 8):
    print(json.dumps({"error": "Python %d.%d is too old: 3.11 is needed" % sys.version_info[:2]}))
    sys.exit(1)
for name, text in json.loads(SOURCES):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.serve(ROOT)
"""


class Reader(Protocol):
    """A stream of replies."""

    async def readline(self) -> bytes:
        """The next line; what is left when the stream ends."""

    async def read(self, n: int = -1, /) -> bytes:
        """The next bytes, or all of them."""


class Writer(Protocol):
    """A stream of requests."""

    def write(self, data: bytes, /) -> None:
        """Queue bytes."""

    async def drain(self) -> None:
        """Wait until there is room for more."""


class AgentClient:
    """An agent on a target, reached by a stream of requests and a stream of replies.

    Attributes:
        target: the target.
    """

    def __init__(
        self,
        target: TargetConfig,
        reader: Reader,
        writer: Writer,
        errors: Reader,
        ended: Callable[[], Awaitable[int | None]],
    ) -> None:
        """`ended` waits for the agent's end and returns its exit code, None if unknown."""
        self.target = target
        self._ended = ended
        self._has_answered = False
        self.reader = reader
        self._writer = writer
        self._errors = errors

    async def start(self) -> None:
        """Send the agent's own code."""
        with contextlib.suppress(OSError):
            await self.write(payload(self.target.root))

    async def call(self, verb: str, /, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            InputError: the agent refuses; the text says why.
            ServerError: the connection was cut.
        """
        with contextlib.suppress(OSError):
            await self.write(json.dumps({"call": verb, **arguments}).encode() + b"\n")
        return await self._reply()

    async def send(
        self,
        verb: str,
        source: Path,
        offset_bytes: int,
        sent: Callable[[int], None],
        /,
        **arguments: Any,
    ) -> bool:
        """Send a file from an offset on; True if the target then has the whole file.

        Args:
            verb: the request that the bytes follow.
            source: the file.
            offset_bytes: bytes that the target has already.
            sent: called with the bytes of each piece sent.
            **arguments: of the request; `file` holds the file's size and digest.

        Raises:
            InputError: the target refuses, or the file is shorter than its size in `file`.
            ServerError: the connection was cut.
        """
        left = int(arguments["file"]["size_bytes"]) - offset_bytes
        with contextlib.suppress(OSError):  # the reply says why the agent ended
            await self.write(json.dumps({"call": verb, **arguments}).encode() + b"\n")
            with source.open("rb") as stream:
                stream.seek(offset_bytes)
                while left > 0:
                    piece = stream.read(min(left, _PIECE_BYTES))
                    if not piece:
                        raise InputError(f"{source} became shorter while it was sent: try again")
                    await self.write(piece)
                    sent(len(piece))
                    left -= len(piece)
        return bool((await self._reply())["whole"])

    async def write(self, data: bytes) -> None:
        """Send bytes to the agent, or to the program that it has become."""
        self._writer.write(data)
        await self._writer.drain()

    async def _reply(self) -> dict[str, Any]:
        line = b""
        with contextlib.suppress(OSError):
            line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise await self._gone()
        try:
            reply: Mapping[str, Any] = json.loads(line)
        except ValueError as error:
            text = line.decode(errors="replace").strip()
            raise InputError(
                f"{self.target.name} says {text!r} instead of an answer: its login scripts must"
                " not print in sessions without a terminal"
            ) from error
        if "error" in reply:
            raise InputError(f"{self.target.name}: {reply['error']}")
        self._has_answered = True
        result: dict[str, Any] = reply["ok"]
        return result

    async def _gone(self) -> OffloadError:
        """The error to report when no reply came."""
        output = b""
        with contextlib.suppress(OSError, TimeoutError):
            output = await asyncio.wait_for(self._errors.read(), 2)
        lines = output.decode(errors="replace").strip().splitlines()
        reason = f" ({lines[-1]})" if lines else ""
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(self._ended(), 2)
        # Decided by the exit code, not by the text: shells print errors in many languages.
        if code and code > 0 and not self._has_answered:
            return InputError(
                f"{self.target.name} does not start {self.target.python}, exit code {code}{reason}:"
                " install Python 3.11 or newer there, or name it as `python` in devices.toml"
            )
        return ServerError(
            f"the connection to {self.target.name} was cut{reason}: files received there are kept"
        )


def payload(root: str) -> bytes:
    """The agent's modules as one Python script."""
    texts = [(f"{_PACKAGE}.{name}", (_AGENT / f"{name}.py").read_text()) for name in _MODULES]
    head = f"SOURCES = {json.dumps(texts)!r}\nROOT = {root!r}\n"
    return (head + _BOOT).encode()


def command(python: str, size_bytes: int) -> tuple[str, ...]:
    """The command that reads the agent's script, of this size, from its input and executes it."""
    code = (
        f"import os\nb = b''\nwhile len(b) < {size_bytes}:\n"
        f"    p = os.read(0, {size_bytes} - len(b))\n"
        "    b += p or exit(1)\nexec(b)"
    )
    # One line without quotes, backslashes, dollar and exclamation marks, which csh and fish, the
    # login shells of some accounts, read differently.
    return (python, "-c", f'exec(bytes.fromhex("{code.encode().hex()}"))')


@contextlib.asynccontextmanager
async def connect(target: TargetConfig) -> AsyncIterator[AgentClient]:
    """Start the agent on a target, in a child process or over SSH.

    The agent ends with the block, and takes back a release that is still on trial.

    Raises:
        InputError: the target refuses the login, or its host key is not the known one.
        ServerError: the target cannot be reached.
    """
    words = command(
        sys.executable if target.ssh is None else target.python, len(payload(target.root))
    )
    if target.ssh is None:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_REPLY_LIMIT_BYTES,
        )
        replies, requests, errors = process.stdout, process.stdin, process.stderr
        assert replies is not None
        assert requests is not None
        assert errors is not None
        agent = AgentClient(target, replies, requests, errors, process.wait)
        try:
            await agent.start()
            yield agent
        finally:
            requests.close()
            await process.wait()
        return
    try:
        from offload_runtimes.deploy.ssh import open_process
    except ImportError as error:
        raise InputError(
            f"{target.name} is reached over SSH, which needs the package asyncssh:"
            " pip install 'onnx-offload[deploy]'"
        ) from error
    async with open_process(target.name, target.ssh, words) as (stream, stderr, ended):
        agent = AgentClient(target, stream, stream, stderr, ended)
        await agent.start()
        yield agent
