"""A folder for what an experiment writes, gone with its process or at the next one's start."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offload_runtimes.testbed import host
from offload_runtimes.testbed.layout import Layout

_PREFIX = "offload-bench-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process, removed at the end of the block; those of killed ones go first."""
    root, process = Path(tempfile.gettempdir()), os.getpid()
    for left in root.glob(f"{_PREFIX}*"):
        owner = Layout(left.name.removeprefix(_PREFIX)).owner
        if owner and host.started_of(owner[0]) != owner[1]:
            shutil.rmtree(left, ignore_errors=True)
    folder = root / f"{_PREFIX}{Layout.of_process(process, host.started_of(process) or 0).name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
