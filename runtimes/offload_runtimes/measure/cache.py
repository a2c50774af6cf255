"""What was measured on this machine, kept in the user's cache: nothing is measured twice."""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from offload.errors import InputError
from offload.files import write_text


class Cacheable(Protocol):
    """What can be kept."""

    def to_json(self) -> Mapping[str, Any]:
        """A JSON object."""


Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T", bound=Cacheable)


def cache_folder() -> Path | None:
    """Where what was measured on this machine is kept for the user; None: there is no home."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "onnx-offload"
    home = os.path.expanduser("~")  # noqa: PTH111  Path's raises where there is none
    return None if home == "~" else Path(home) / ".cache/onnx-offload"


def feeds_digest(inputs: Iterable[Mapping[str, Array]]) -> str:
    """SHA-256 of several sets of inputs: names, types, shapes and values."""
    digest = hashlib.sha256()
    for feeds in inputs:
        for name, array in sorted(feeds.items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            text = array.dtype.kind == "O"
            digest.update(repr(array.tolist()).encode() if text else array.tobytes())
    return digest.hexdigest()


def cached(
    name: Path,
    read: Callable[[Path], T],
    measure: Callable[[], T],
    *,
    again: bool,
    progress: Callable[[str], None],
    outdated: Callable[[T], str] = lambda _: "",
) -> T:
    """What lies in the cache by a name, else what is measured now and left there.

    Where there is no cache, or it can't be read or written, it is measured every time, with one
    warning (RuntimeWarning) a process.

    Args:
        name: relative to the `cache_folder`; it must tell all that the measurement depends on.
        read: reads the file; InputError where it is another version's or doesn't fit.
        measure: takes the time.
        again: measure even when a file is there.
        progress: called with a phrase about the file that is used, or that doesn't fit.
        outdated: says why what lies there doesn't hold any more; empty where it does.

    Raises:
        InputError: as `measure`.
    """
    folder = cache_folder()
    path = None if folder is None else folder / name
    if path is not None and not again and _is_file(path):
        try:
            known = read(path)
            when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        except (InputError, OSError):
            progress("what was measured before doesn't fit: measuring again")
        else:
            since = f"{name.parent}: measured at {when:%Y-%m-%d %H:%M}"
            why = outdated(known)
            if not why:
                progress(f"{since}, --again measures anew")
                return known
            progress(f"{since}, but {why}: measuring again")
    found = measure()
    if path is None:
        _warn("this account has no home")
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found.to_json()))
    except OSError as error:
        _warn(f"{folder} can't be written ({error.strerror})")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder above may not be searched
        return False


@functools.cache
def _warn(why: str) -> None:
    warnings.warn(
        f"measurements are not kept: {why}; set XDG_CACHE_HOME to a folder of yours",
        RuntimeWarning,
        stacklevel=3,
    )
