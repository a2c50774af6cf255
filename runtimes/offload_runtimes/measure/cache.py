"""Cache measurements of this machine in the user's cache folder."""

import contextlib
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from offload.errors import InputError
from offload.files import write_text
from offload.records import to_json

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")


def cache_folder() -> Path | None:
    """The folder of this user's measurements; None: the account has no home."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "onnx-offload"
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
    """Read a measurement from the cache, or measure and store it.

    Where there is no cache, or it can't be read or written, it is measured every time, with one
    warning (RuntimeWarning) a process.

    Args:
        name: path relative to the `cache_folder`, unique for all that the measurement depends on.
        read: reads the file; InputError where it has another format or doesn't fit.
        measure: measures.
        again: measure even when there is a file.
        progress: called with a phrase about the file that is used, or that doesn't fit.
        outdated: why a cached measurement is no longer valid; empty where it is.

    Raises:
        InputError: as `measure`.
    """
    folder = cache_folder()
    path = None if folder is None else folder / name
    is_cached = False
    if path is not None and not again:
        with contextlib.suppress(OSError):  # a folder above may not be readable
            is_cached = path.is_file()
    if path is not None and is_cached:
        try:
            known = read(path)
            when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        except (InputError, OSError):
            progress("the cached measurement doesn't fit: measuring again")
        else:
            since = f"{name.parent}: measured at {when:%Y-%m-%d %H:%M}"
            why = outdated(known)
            if not why:
                progress(f"{since}, --again measures again")
                return known
            progress(f"{since}, but {why}: measuring again")
    measured = measure()
    if path is None:
        _warn("this account has no home")
        return measured
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(to_json(measured)))
    except OSError as error:
        _warn(f"{folder} can't be written ({error.strerror})")
    return measured


@functools.cache
def _warn(why: str) -> None:
    warnings.warn(
        f"measurements are not cached: {why}; set XDG_CACHE_HOME to a folder that you can write",
        RuntimeWarning,
        stacklevel=3,
    )
