"""Files that come into being together: written beside, renamed when all are complete."""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from offload.files import name_folder


class Beside:
    """New files of one folder. Leaving the block renames them all, or on an error removes all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, BinaryIO] = {}

    def file(self, name: str) -> BinaryIO:
        """The file that will be called `name`, open for writing; the same one each time."""
        if name not in self._open:
            self._open[name] = self._beside(name).open("w+b")
        return self._open[name]

    def paths(self) -> tuple[Path, ...]:
        """The final paths, in order of creation."""
        return tuple(self._folder / name for name in self._open)

    def _beside(self, name: str) -> Path:
        return self._folder / f".{name}.{os.getpid()}.part"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        name_folder(error, self._folder)
        try:
            for file in self._open.values():
                file.close()  # may find the disk full
            if kind is None:
                for name in self._open:
                    self._beside(name).replace(self._folder / name)
        finally:
            for name in self._open:
                self._beside(name).unlink(missing_ok=True)
