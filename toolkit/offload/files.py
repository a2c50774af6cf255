"""Write files atomically: a temporary file or folder first, renamed into place when complete."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offload.errors import InputError

# When something fails, a file system with at most this many bytes left counts as full.
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

    `mode` sets its permissions, restricted by the umask.

    Raises:
        InputError: the folder does not exist.
        OSError: the disk refuses (full, read-only).
    """
    with staged_file(path, mode) as staged:
        staged.write_bytes(content)


@contextmanager
def staged_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A temporary path in the target's folder, renamed to the target when the block succeeds.

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
        _add_folder(error, path.parent)
        raise
    finally:
        staged.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to the target, renamed to the target when the block succeeds.

    An older target is moved away just before the rename and removed just after it.

    Raises:
        InputError: the parent folder does not exist.
    """
    _check_folder(path)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staged
        staged.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / "was")
            try:
                staged.rename(path)
            except OSError:
                (old / "was").rename(path)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            staged.rename(path)
    except OSError as error:
        _add_folder(error, path.parent)
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder for temporary files, removed when the block ends.

    Raises:
        InputError: the block failed and the file system of the folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="offload-") as name:
        try:
            yield Path(name)
        except (OSError, InputError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                is_full = str(error.filename or name).startswith(name)
            else:
                is_full = shutil.disk_usage(name).free < _FULL_BYTES
            if not is_full:
                raise
            raise InputError(
                f"the folder for temporary files, {Path(name).parent}, is full: free some space"
                " there, or set TMPDIR to a folder with more"
            ) from error


def _add_folder(error: OSError, folder: Path) -> None:
    """Add the folder to an error of the operating system that names no file."""
    if error.errno is not None and error.filename is None:
        error.filename = str(folder)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"folder {path.parent} does not exist: create it first")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
