"""The agent: answer a deployer's requests on standard input, one line of JSON each.

`put` and `receive` are followed by the file's bytes. A reply is one line of JSON with `ok` or, in
the last one, `error`. If the requests end while a release is on trial, it is taken back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from offload_runtimes.agent.machine import facts, run, runs, servers, spawn
from offload_runtimes.agent.store import PIECE_BYTES, RefusalError, Store, link_whole, write_whole

_IDLE_S = 120.0


class Requests:
    """Lines and file contents read from standard input."""

    def __init__(self) -> None:
        self._buffer = b""

    def lines(self) -> Iterator[dict[str, Any]]:
        """Requests until standard input closes."""
        while b"\n" in self._buffer or self._more():
            if b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                yield json.loads(line.decode("utf-8"))

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        """The next bytes, in pieces; EOFError if standard input closes before."""
        while size_bytes > 0:
            if not self._buffer and not self._more():
                raise EOFError
            piece, self._buffer = self._buffer[:size_bytes], self._buffer[size_bytes:]
            size_bytes -= len(piece)
            yield piece

    def _more(self) -> bool:
        """Wait for bytes, with a time limit: a link may break without notice."""
        if not select.select([0], [], [], _IDLE_S)[0]:
            return False
        piece = os.read(0, PIECE_BYTES)
        self._buffer += piece
        return bool(piece)


class Agent:
    """The requests of a deployer, by name."""

    def __init__(self, root: str, requests: Requests) -> None:
        self.store = Store(Path(os.path.abspath(in_home(root))))  # noqa: PTH100
        self._requests = requests
        store = self.store
        self.calls: dict[str, Callable[..., dict[str, Any]]] = {
            "facts": lambda: facts(store.root),
            "state": store.journal.read,
            "lock": store.lock,
            "survey": store.survey,
            "put": self._put,
            "receive": self._receive,
            "seal": store.seal,
            "swap": store.swap,
            "commit": store.commit,
            "back": store.back,
            "damaged": store.damaged,
            "run": lambda **asked: run(store.root, **asked),
            "read": self._read,
            "write": self._write,
            "remove": self._remove,
            "listing": self._listing,
            "link": self._link,
            "target": self._target,
            "servers": lambda: {"servers": servers(store.root)},
            "become": self._become,
            "spawn": lambda **asked: spawn(store.root, **asked),
            "purge": self._purge,
            "runs": lambda pid: {"runs": runs(pid)},
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        return self.calls[request.pop("call")](**request)

    def _put(self, release: str, file: dict[str, Any], offset_bytes: int) -> dict[str, Any]:
        pieces = self._requests.pieces(file["size_bytes"] - offset_bytes)
        return self.store.put(release, file, offset_bytes, pieces)

    def _receive(self, name: str, file: dict[str, Any], private: bool = False) -> dict[str, Any]:
        pieces = self._requests.pieces(file["size_bytes"])
        return self.store.receive(name, file, pieces, private)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.store.root / in_home(name)
        return {"text": path.read_text(encoding="utf-8") if path.is_file() else None}

    def _write(self, name: str, text: str) -> dict[str, Any]:
        path = self.store.root / in_home(name)
        write_whole(path, text)
        return {"path": str(path)}

    def _listing(self, folder: str) -> dict[str, Any]:
        return {"names": sorted(path.name for path in (self.store.root / folder).glob("*"))}

    def _target(self, name: str) -> dict[str, Any]:
        path = self.store.root / name
        to = os.readlink(path) if path.is_symlink() else None  # noqa: PTH115  for Python 3.8
        return {"to": to}

    def _remove(self, name: str) -> dict[str, Any]:
        path = self.store.root / in_home(name)
        path.unlink(missing_ok=True)
        return {"path": str(path)}

    def _become(self, command: list[str]) -> dict[str, Any]:
        """Replace this process by another program, which takes over the connection."""
        _reply({"ok": {}})
        if self.store.root.is_dir():
            os.chdir(self.store.root)
        try:
            os.execv(command[0], command)
        except OSError as error:
            raise RefusalError(f"{command[0]} does not start: {error.strerror}") from error

    def _purge(self) -> dict[str, Any]:
        """Remove the root, if it is one of a deployment."""
        root = self.store.root
        if any((root / name).exists() for name in ("journal.json", "runtime", ".lock")):
            shutil.rmtree(root)
        return {}

    def _link(self, name: str, to: str) -> dict[str, Any]:
        link_whole(self.store.root / name, to)
        return {}


def in_home(name: str) -> Path:
    """Expand `~` to the account's home; RefusalError if it has none."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise RefusalError(
            f"the account has no home directory, so {name} does not exist: set HOME"
        ) from error


def sentence(error: OSError, root: Path) -> str:
    """One sentence for an error of the operating system."""
    where = error.filename or root
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left in {root}: make room there and deploy again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where} is not writable: choose another folder or user"
    return f"{where}: {error.strerror or error}"


def serve(root: str) -> None:
    """Answer requests until standard input closes or a request fails."""
    requests = Requests()
    agent = None
    try:
        agent = Agent(root, requests)
        for request in requests.lines():
            _reply({"ok": agent.answer(request)})
    except (BrokenPipeError, EOFError):
        pass
    except RefusalError as error:
        _last_word(str(error))
    except OSError as error:
        _last_word(sentence(error, agent.store.root if agent else Path(root)))
    except Exception as error:  # noqa: BLE001  a sentence instead of a traceback
        _last_word(f"this is a bug of the agent: {type(error).__name__}: {error}")
    finally:
        if agent and agent.store.lock_handle >= 0:
            agent.store.journal.back()


def _last_word(error: str) -> None:
    with contextlib.suppress(OSError):
        _reply({"error": error})


def _reply(value: dict[str, Any]) -> None:
    os.write(1, json.dumps(value).encode() + b"\n")
