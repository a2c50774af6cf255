"""What was measured on this machine, kept in the user's cache: nothing is measured twice."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from offload.errors import InputError
from offload.files import write_text


class Measured(Protocol):
    """What can be kept."""

    def to_json(self) -> Mapping[str, Any]:
        """A JSON object."""


Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T", bound=Measured)


def cache_folder() -> Path:
    """Where what was measured on this machine is kept for the user."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(home) / "onnx-offload"


def feeds_digest(inputs: Iterable[Mapping[str, Array]]) -> str:
    """SHA-256 of several sets of inputs: names, types, shapes and values."""
    digest = hashlib.sha256()
    for feeds in inputs:
        for name, array in sorted(feeds.items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            text = array.dtype.kind == "O"
            digest.update(repr(array.tolist()).encode() if text else array.tobytes())
    return digest.hexdigest()


def kept(
    path: Path,
    read: Callable[[Path], T],
    measure: Callable[[], T],
    *,
    again: bool,
    progress: Callable[[str], None],
) -> T:
    """What lies at a path, else what is measured now and left there.

    Args:
        path: in the `cache_folder`; its name must tell all that the measurement depends on.
        read: reads the file; InputError where it is another version's or doesn't fit.
        measure: takes the time.
        again: measure even when a file is there.
        progress: called with a phrase when a file doesn't fit.

    Raises:
        InputError: as `measure`.
    """
    if path.is_file() and not again:
        try:
            return read(path)
        except InputError:
            progress("what was measured before doesn't fit: measuring again")
    found = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found.to_json()))
    return found
