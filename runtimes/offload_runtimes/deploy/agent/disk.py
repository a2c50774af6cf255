"""Files on the target: digests, whole writes, and the one error an agent answers with."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

PIECE_BYTES = 1 << 18


class RefusalError(Exception):
    """What was asked can't be done; the text is one sentence for the user."""


def digest_of(path: Path, size_bytes: int | None = None) -> Any:
    """SHA-256 object of a file's first bytes (None: all of them)."""
    found, left = hashlib.sha256(), size_bytes
    with path.open("rb") as stream:
        while left is None or left > 0:
            piece = stream.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
            if not piece:
                break
            found.update(piece)
            left = None if left is None else left - len(piece)
    return found


def is_whole(path: Path, file: dict[str, Any]) -> bool:
    """Whether a path is a plain file of the size and digest that a file must have."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file["size_bytes"]:
        return False
    return bool(digest_of(path).hexdigest() == file["sha256"])


def settle(beside: Path, path: Path) -> None:
    """Rename a file that is complete to its place, its bytes on the disk first."""
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    beside.chmod(0o644)
    beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside its place, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    settle(beside, path)
    sync_folder(path.parent)


def link_whole(link: Path, to: str) -> None:
    """Point a link somewhere in one step, whether or not it was there."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(to)
    beside.replace(link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(name: str) -> str:
    """A file name, checked that it cannot lead out of its folder."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise RefusalError(f"{name!r} is not a file name: make the bundle again")
    return name


def names_with(manifest: Path, sha256: str) -> list[str]:
    """Names that a bundle's manifest gives to files of some content; none if it can't be read."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return [plain(name) for name, entry in files.items() if entry["sha256"] == sha256]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RefusalError):
        return []
