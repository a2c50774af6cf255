"""The directory of releases on a target.

ROOT/current              a link to the release in use
ROOT/releases/<id>/       releases: plain files, never links
ROOT/staging/<id>/        arriving files: complete ones, and `.part` files to be resumed
ROOT/proofs/<id>.*        outputs that a release must reproduce
ROOT/journal.json         releases that passed, newest first, and the one on trial
ROOT/.lock                locked during a deployment; released when its process ends
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offload_runtimes.agent.machine import run

PIECE_BYTES = 1 << 18


class RefusalError(Exception):
    """A request that cannot be carried out; the text is one sentence for the user."""


def digest_of(path: Path, size_bytes: int | None = None) -> Any:
    """SHA-256 object of a file's first `size_bytes` (None: all)."""
    digest, left = hashlib.sha256(), size_bytes
    with path.open("rb") as stream:
        while left is None or left > 0:
            piece = stream.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
            if not piece:
                break
            digest.update(piece)
            left = None if left is None else left - len(piece)
    return digest


def is_whole(path: Path, file: dict[str, Any]) -> bool:
    """Whether a path is a plain file with the size and digest of a release's file."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file["size_bytes"]:
        return False
    return bool(digest_of(path).hexdigest() == file["sha256"])


def settle(beside: Path, path: Path, mode: int = 0o644) -> None:
    """Rename a complete file to its final path, after its bytes are on the disk."""
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    beside.chmod(mode)
    beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    settle(beside, path)
    sync_folder(path.parent)


def link_whole(link: Path, to: str) -> None:
    """Create or replace a symbolic link atomically."""
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
    """Check that a file name does not lead out of its folder; returns it."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise RefusalError(f"{name!r} is not a file name: make the bundle again")
    return name


def names_with(manifest: Path, sha256: str) -> list[str]:
    """Names of a manifest's files with this digest; none if the manifest cannot be read."""
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return [plain(name) for name, entry in files.items() if entry["sha256"] == sha256]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RefusalError):
        return []


_AFTER_S = 120.0


class Journal:
    """`current`, a link to the release in use, and `journal.json`, its history.

    A release is on trial from `swap` to `commit`. The journal names the release before, so that the
    next deployer can undo a trial that a killed deployer or a power cut left open.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"

    def read(self) -> dict[str, Any]:
        """Releases that passed, newest first; the current trial; the release in use."""
        path = self.root / "journal.json"
        journal: dict[str, Any] = {"releases": [], "trial": None}
        try:
            with contextlib.suppress(FileNotFoundError):
                journal = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RefusalError(f"{path} is damaged: remove it and deploy again") from error
        return {**journal, "current": self.current_id()}

    def current_id(self) -> str | None:
        """Name of the release that `current` points to."""
        with contextlib.suppress(OSError):
            return Path(os.readlink(self.current)).name  # noqa: PTH115 (Python 3.8)
        return None

    def swap(self, release: str, after: list[str]) -> dict[str, Any]:
        """Make a release current, on trial; `after` is the command to run if it is taken back."""
        journal = self.read()
        trial = {"from": journal["current"], "to": release, "after": after}
        self._write(journal["releases"], trial)
        self._point(release)
        return trial

    def commit(self, entry: dict[str, Any], keep: int) -> set[str]:
        """End the trial with success; returns the releases to keep: newest and current ones."""
        others = [e for e in self.read()["releases"] if e["id"] != entry["id"]]
        kept = [entry, *others][: max(keep, 1)]
        self._write(kept, None)
        return {e["id"] for e in kept} | {str(self.current_id())}

    def back(self) -> dict[str, Any] | None:
        """End the trial with failure: put the release before back; returns the trial."""
        journal = self.read()
        trial: dict[str, Any] | None = journal["trial"]
        if trial is None:
            return None
        if trial["from"] is not None:
            self._point(trial["from"])
        else:
            self.current.unlink(missing_ok=True)
        self._write(journal["releases"], None)
        if trial["after"]:
            run(self.root, trial["after"], _AFTER_S, alone=True)
        return trial

    def _point(self, release: str) -> None:
        link_whole(self.current, f"releases/{release}")

    def _write(self, releases: list[dict[str, Any]], trial: dict[str, Any] | None) -> None:
        text = json.dumps({"releases": releases, "trial": trial}, indent=1)
        write_whole(self.root / "journal.json", text)


_SPARE_BYTES = 16 << 20  # left free on the target's disk


class Store:
    """The releases in a directory: stage, seal, switch on trial, commit or take back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root)
        self.releases = root / "releases"
        self.staging = root / "staging"
        self.proofs = root / "proofs"
        self.lock_handle = -1

    def lock(self) -> dict[str, Any]:
        """Lock the directory, and undo a trial that a killed deployer left open."""
        if self.root.exists() and not self.root.is_dir():
            raise RefusalError(f"{self.root} is not a directory: choose another target")
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise RefusalError(
                f"{self.root} is being changed by another process: try again when it has finished"
            ) from error
        self.lock_handle = handle
        self.journal.back()
        return self.journal.read()

    def survey(self, release: str, files: list[dict[str, Any]]) -> dict[str, int]:
        """Stage files that other releases have; returns the bytes received of each missing file."""
        folder, staged = self.releases / plain(release), self.staging / release
        lacking = [file for file in files if not is_whole(folder / plain(file["name"]), file)]
        self._check_space(lacking, staged)
        staged.mkdir(parents=True, exist_ok=True)
        missing = {}
        for file in lacking:
            path = staged / file["name"]
            if not is_whole(path, file) and not self._copy(file, path):
                part = _part(path)
                arrived = part.stat().st_size if part.is_file() else 0
                missing[file["name"]] = arrived if arrived <= file["size_bytes"] else 0
        return missing

    def put(
        self, release: str, file: dict[str, Any], offset_bytes: int, pieces: Iterator[bytes]
    ) -> dict[str, bool]:
        """Receive a file from an offset on; `whole`: its digest is right."""
        path = self.staging / plain(release) / plain(file["name"])
        part = _part(path)
        part.touch()
        digest = digest_of(part, offset_bytes)
        with part.open("r+b") as stream:
            stream.truncate(offset_bytes)
            stream.seek(offset_bytes)
            for piece in pieces:
                digest.update(piece)
                stream.write(piece)
                stream.flush()
        if digest.hexdigest() != file["sha256"]:
            part.unlink()
            return {"whole": False}
        settle(part, path)
        return {"whole": True}

    def receive(
        self, name: str, file: dict[str, Any], pieces: Iterator[bytes], private: bool = False
    ) -> dict[str, bool]:
        """Receive a file (a proof, a wheel, a key) to a path inside the root, atomically.

        A private file can be read by the account alone.
        """
        path = self.root.joinpath(*(plain(part) for part in name.split("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o600 if private else 0o644
        _part(path).unlink(missing_ok=True)
        handle = os.open(_part(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            stream.writelines(pieces)
        good = is_whole(_part(path), file)
        if good:
            settle(_part(path), path, mode)
        return {"whole": good}

    def seal(self, release: str, files: list[dict[str, Any]]) -> dict[str, str]:
        """Make a release of the staged files; they replace those of an older one of this name."""
        folder, staged = self.releases / plain(release), self.staging / release
        self.releases.mkdir(exist_ok=True)
        names = {file["name"] for file in files}
        for path in staged.iterdir():
            if path.name not in names:
                path.unlink()
        if folder.exists():  # of the same digest: only damaged files were staged
            for path in staged.iterdir():
                path.replace(folder / path.name)
            staged.rmdir()
        else:
            sync_folder(staged)
            staged.rename(folder)
        sync_folder(folder)
        sync_folder(self.releases)
        return {"folder": str(folder)}

    def swap(self, release: str, after: list[str]) -> dict[str, Any]:
        """Make a release current, on trial until `commit`."""
        if not (self.releases / plain(release)).is_dir():
            raise RefusalError(f"{self.root} has no release {release}: see `offload releases`")
        return self.journal.swap(release, after)

    def commit(self, entry: dict[str, Any], keep: int) -> dict[str, Any]:
        """End the trial with success; remove staging and all but the newest `keep` releases."""
        kept = self.journal.commit(entry, keep)
        for folder in self.releases.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for proof in self.proofs.glob("*"):
            if proof.name.split(".")[0] not in kept:
                proof.unlink()
        shutil.rmtree(self.staging, ignore_errors=True)
        return self.journal.read()

    def back(self) -> dict[str, Any]:
        """End the trial with failure."""
        return {"undone": self.journal.back()}

    def damaged(self, folder: str, files: list[dict[str, Any]]) -> dict[str, list[str]]:
        """Names of the files of a folder that are missing or changed."""
        path = self.root / folder
        return {"names": [f["name"] for f in files if not is_whole(path / f["name"], f)]}

    def _check_space(self, files: list[dict[str, Any]], staged: Path) -> None:
        staged_bytes = sum(path.stat().st_size for path in staged.glob("*"))
        needed = sum(file["size_bytes"] for file in files) - staged_bytes
        free = shutil.disk_usage(self.root).free - _SPARE_BYTES
        if needed > max(free, 0):
            raise RefusalError(
                f"no space in {self.root}: {needed / 1e6:.1f} MB are needed and"
                f" {max(free, 0) / 1e6:.1f} MB are free, make room there"
            )

    def _copy(self, file: dict[str, Any], path: Path) -> bool:
        """Copy a file with this digest from another release or staging folder; True if found."""
        beside = path.with_name(path.name + ".copy")
        for folder in [*self.releases.glob("*"), *self.staging.glob("*")]:
            for name in names_with(folder / "manifest.json", file["sha256"]):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(folder / name, beside)
                    if is_whole(beside, file):
                        settle(beside, path)
                        return True
        beside.unlink(missing_ok=True)
        return False


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
