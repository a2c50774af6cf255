"""Read and write named arrays: the .npz files of `offload run`."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from offload.errors import InputError
from offload.files import staged_file

Array = np.ndarray[Any, np.dtype[Any]]


def read_arrays(path: Path) -> dict[str, Array]:
    """Arrays by name; nothing is ever unpickled.

    Raises:
        InputError: no such file, or not an .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            if isinstance(found, np.ndarray):
                raise InputError(f"{path} holds one unnamed array: save it with np.savez(name=...)")
            return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise InputError(f"input {path} does not exist: check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is not an .npz file of plain arrays: write it with np.savez(path, name=array)"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name, whole or not at all.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses.
    """
    with staged_file(path) as staged, staged.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy takes any keyword
