"""Write named arrays: the .npz files of `offload run`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from offload.files import staged_file

Array = np.ndarray[Any, np.dtype[Any]]


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name, whole or not at all.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses.
    """
    with staged_file(path) as staged, staged.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy takes any keyword
