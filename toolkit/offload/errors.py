"""All errors that a user can see, and the message and exit code of any exception.

    OffloadError
    ├── InputError            an input is wrong: correct it first
    ├── BundleError           a bundle is missing, damaged, or of another digest: deploy it again
    ├── ServerError           the server is unreachable, closed the connection, or refused: retry
    └── DeadlineError         no result in the time allowed: retry, or allow more time

Every message is one sentence: what failed, where, and what to do.
`retry` says whether the same call may succeed later without any change by the caller.
`option` names the command-line option that solves the problem, if there is one.
"""

import errno
import os
import traceback
from pathlib import Path

DEBUG_VARIABLE = "OFFLOAD_DEBUG"


class OffloadError(Exception):
    """Base of all errors that this project raises on purpose."""

    retry: bool = False
    option: str | None = None


class InputError(OffloadError, ValueError):
    """A file, name, shape, number or option of the caller cannot be used."""


class BundleError(OffloadError):
    """A bundle is missing, damaged, of another version, or not on the server."""


class ServerError(OffloadError, ConnectionError):
    """The server is unreachable, closed the connection, or refused the session."""

    retry = True


class DeadlineError(OffloadError, TimeoutError):
    """No result arrived within the time allowed."""

    retry = True


_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space; nothing half-written was left",
    errno.EACCES: "permission denied: choose a place you may use",
    errno.ENOENT: "no such file or folder: check the path",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another place",
    errno.EISDIR: "a folder stands where a file is needed: choose another place",
    errno.EADDRINUSE: "the port is in use: choose another with --listen",
}


def sentence(error: BaseException) -> str:
    """The message, one sentence, for any exception that ends a command."""
    if isinstance(error, OffloadError):
        flag = f" (--{error.option})" if error.option else ""
        hint = " (this may pass: try again)" if error.retry and not flag else ""
        return f"{error}{flag}{hint}"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{_ADVICE.get(error.errno or 0, error.strerror or str(error))}{where}"
    if isinstance(error, MemoryError):
        return "not enough memory: give it smaller inputs, or free some memory"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}{where}{f': {lines[0]}' if lines else ''}"
    hint = "" if wants_traceback() else f"; {DEBUG_VARIABLE}=1 shows where"
    return f"this is a bug: {what}{hint}"


def exit_code(error: BaseException) -> int:
    """The exit code of a command that an exception ended: 1 (failed) or 70 (a bug)."""
    expected = isinstance(error, OffloadError | OSError | MemoryError)
    return 1 if expected else os.EX_SOFTWARE


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks (OFFLOAD_DEBUG=1)."""
    return bool(os.environ.get(DEBUG_VARIABLE))
