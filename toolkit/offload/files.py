"""Write files atomically: a temporary file or folder first, renamed into place when complete."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from offload.errors import InputError

# A file system with no more than this left counts as full when something fails on it.
_FULL_BYTES = 1 << 18


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; an older one stays untouched when anything fails.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses (full, read-only).
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file atomically; an older one stays untouched when anything fails.

    `mode` holds its permissions, of which the umask takes away some.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses (full, read-only).
    """
    with staged_file(path, mode) as staged:
        staged.write_bytes(content)


@contextmanager
def staged_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A path beside the target to write to; renamed over the target when the block succeeds.

    Raises:
        InputError: the folder does not exist.
    """
    _check_folder(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    staged = Path(name)
    try:
        yield staged
        staged.chmod(mode & ~_umask())
        staged.replace(path)
    except OSError as error:
        name_folder(error, path.parent)
        raise
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside the target; it takes the target's place when the block succeeds.

    An older target is moved aside just before and removed just after.

    Raises:
        InputError: the folder to hold it does not exist.
    """
    _check_folder(path)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staged
        staged.chmod(0o777 & ~_umask())
        _swap(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder for files of this process; removed at the end.

    Raises:
        InputError: the block failed and the file system of the folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="offload-") as name:
        try:
            yield Path(name)
        except (OSError, InputError) as error:
            if not _is_full(Path(name), error):
                raise
            raise InputError(
                f"the folder for temporary files, {Path(name).parent}, is full: free some space"
                " there, or set TMPDIR to a folder with more"
            ) from error


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether something failed because a folder has no room left, as far as can be told."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(error.filename or "").startswith(str(folder))
    return shutil.disk_usage(folder).free < _FULL_BYTES


def name_folder(error: BaseException | None, folder: Path) -> None:
    """Say in an error of the operating system, which may name no file, where it happened."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(folder)


def _swap(staged: Path, path: Path) -> None:
    if not path.exists():
        staged.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(old / "was")
    try:
        staged.rename(path)
    except OSError:
        (old / "was").rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist: create it first")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class AtomicFiles:
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
