"""Talk with the agent on a target: start it, ask, send files."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from offload.errors import InputError, OffloadError, ServerError

from offload_runtimes.deploy.targets import TargetConfig

_AGENT = Path(__file__).parent.parent / "agent"
_MODULES = ("machine", "store", "serve")  # each imports only those before it
_PACKAGE = "offload_runtimes.agent"
_PIECE_BYTES = 1 << 18
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


class Target(Protocol):
    """What a deployment needs of a target."""

    place: TargetConfig

    async def call(self, verb: str, /, **arguments: Any) -> dict[str, Any]:
        """Ask the agent for something; an OffloadError says why it can't be done."""

    async def send(
        self,
        verb: str,
        source: Path,
        offset_bytes: int,
        sent: Callable[[int], None],
        /,
        **arguments: Any,
    ) -> bool:
        """Send a file's bytes from an offset on; whether they arrived as they should."""


class AgentClient:
    """A target whose agent reads requests from one stream and answers on another."""

    def __init__(
        self,
        place: TargetConfig,
        reader: Reader,
        writer: Writer,
        errors: Reader,
        ended: Callable[[], Awaitable[int | None]],
    ) -> None:
        """`ended` waits for the agent's end; its exit code, None when nobody knows it."""
        self.place = place
        self._ended = ended
        self._has_answered = False
        self._reader = reader
        self._writer = writer
        self._errors = errors

    async def start(self) -> None:
        """Send the agent itself."""
        with contextlib.suppress(OSError):
            await self._write(payload(self.place.root))

    async def call(self, verb: str, /, **arguments: Any) -> dict[str, Any]:
        """Ask the agent for something.

        Raises:
            InputError: it can't be done; the target says why.
            ServerError: the connection was cut.
        """
        with contextlib.suppress(OSError):
            await self._write(json.dumps({"call": verb, **arguments}).encode() + b"\n")
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
        """Send a file's bytes from an offset on; whether they arrived as they should.

        Raises:
            InputError: the target refuses, or the file is shorter than it was said to be.
            ServerError: the connection was cut.
        """
        left = int(arguments["file"]["size_bytes"]) - offset_bytes
        with contextlib.suppress(OSError):  # the reply says why the other end went
            await self._write(json.dumps({"call": verb, **arguments}).encode() + b"\n")
            with source.open("rb") as stream:
                stream.seek(offset_bytes)
                while left > 0:
                    piece = stream.read(min(left, _PIECE_BYTES))
                    if not piece:
                        raise InputError(f"{source} became shorter while it was sent: make it anew")
                    await self._write(piece)
                    sent(len(piece))
                    left -= len(piece)
        return bool((await self._reply())["whole"])

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _reply(self) -> dict[str, Any]:
        line = b""
        with contextlib.suppress(OSError):
            line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise await self._gone()
        try:
            reply: Mapping[str, Any] = json.loads(line)
        except ValueError as error:
            said = line.decode(errors="replace").strip()
            raise InputError(
                f"{self.place.name} says {said!r} where an answer was expected: its login"
                " scripts must not print in sessions without a terminal"
            ) from error
        if "error" in reply:
            raise InputError(f"{self.place.name}: {reply['error']}")
        self._has_answered = True
        answer: dict[str, Any] = reply["ok"]
        return answer

    async def _gone(self) -> OffloadError:
        """Why no answer came."""
        said = b""
        with contextlib.suppress(OSError, TimeoutError):
            said = await asyncio.wait_for(self._errors.read(), 2)
        lines = said.decode(errors="replace").strip().splitlines()
        why = f" ({lines[-1]})" if lines else ""
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(self._ended(), 2)
        if (
            code and code > 0 and not self._has_answered
        ):  # not by words: shells speak many languages
            return InputError(
                f"{self.place.name} does not start {self.place.python}, exit code {code}{why}:"
                " install Python 3.11 or newer there, or name it as `python` in devices.toml"
            )
        return ServerError(
            f"the connection to {self.place.name} was cut{why}: what has arrived there is kept"
        )


def payload(root: str) -> bytes:
    """The agent as one text that Python can execute."""
    texts = [(f"{_PACKAGE}.{name}", (_AGENT / f"{name}.py").read_text()) for name in _MODULES]
    head = f"SOURCES = {json.dumps(texts)!r}\nROOT = {root!r}\n"
    return (head + _BOOT).encode()


def command(python: str, size_bytes: int) -> tuple[str, ...]:
    """The command that reads so many bytes of agent from its input and becomes it."""
    code = (
        f"import os\nb = b''\nwhile len(b) < {size_bytes}:\n"
        f"    p = os.read(0, {size_bytes} - len(b))\n"
        "    b += p or exit(1)\nexec(b)"
    )
    # One line without quotes, backslashes, dollar and exclamation marks: as the account's login
    # shell may be csh or fish, which read them in their own ways.
    return (python, "-c", f'exec(bytes.fromhex("{code.encode().hex()}"))')
