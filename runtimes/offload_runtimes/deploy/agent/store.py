"""The directory that releases are deployed to.

ROOT/current              a link to the release in use
ROOT/releases/<id>/       releases: plain files, never links
ROOT/staging/<id>/        what is arriving: whole files, and `.part` files to be resumed
ROOT/proofs/<id>.*        what a release must reproduce
ROOT/journal.json         releases that passed, newest first, and the one on trial
ROOT/.lock                held while somebody deploys; released by its holder's end
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offload_runtimes.deploy.agent.disk import (
    RefusalError,
    digest_of,
    is_whole,
    names_with,
    plain,
    settle,
    sync_folder,
)
from offload_runtimes.deploy.agent.journal import Journal

_SPARE_BYTES = 16 << 20  # left free on the target's disk


class Store:
    """Releases in a directory: staged, sealed, made current on trial, committed or taken back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root)
        self.releases = root / "releases"
        self.staging = root / "staging"
        self.proofs = root / "proofs"
        self.lock_handle = -1

    def lock(self) -> dict[str, Any]:
        """Become the only one who changes the directory; finish what a dead one left open."""
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
        """Stage what is here already; of every other file, the number of bytes that arrived."""
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
        """Receive a file from an offset on; whether it then holds what it must."""
        path = self.staging / plain(release) / plain(file["name"])
        part = _part(path)
        part.touch()
        found = digest_of(part, offset_bytes)
        with part.open("r+b") as stream:
            stream.truncate(offset_bytes)
            stream.seek(offset_bytes)
            for piece in pieces:
                found.update(piece)
                stream.write(piece)
                stream.flush()
        if found.hexdigest() != file["sha256"]:
            part.unlink()
            return {"whole": False}
        settle(part, path)
        return {"whole": True}

    def receive(self, name: str, file: dict[str, Any], pieces: Iterator[bytes]) -> dict[str, bool]:
        """Receive a file to a path inside the root (a proof, a wheel), whole or not at all."""
        path = self.root.joinpath(*(plain(part) for part in name.split("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part(path).open("wb") as stream:
            stream.writelines(pieces)
        good = is_whole(_part(path), file)
        if good:
            settle(_part(path), path)
        return {"whole": good}

    def seal(self, release: str, files: list[dict[str, Any]]) -> dict[str, str]:
        """Make a release of what was staged; in an older one of this name, mend its files."""
        folder, staged = self.releases / plain(release), self.staging / release
        self.releases.mkdir(exist_ok=True)
        names = {file["name"] for file in files}
        for path in staged.iterdir():
            if path.name not in names:
                path.unlink()
        if folder.exists():  # of the same content: every file is right or wrong on its own
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
        """End the trial well; older releases than the newest `keep` and staging are removed."""
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
        """End a trial badly."""
        return {"undone": self.journal.back()}

    def damaged(self, folder: str, files: list[dict[str, Any]]) -> dict[str, list[str]]:
        """Names of the files of a folder that are missing or changed."""
        where = self.root / folder
        return {"names": [f["name"] for f in files if not is_whole(where / f["name"], f)]}

    def _check_space(self, files: list[dict[str, Any]], staged: Path) -> None:
        here = sum(path.stat().st_size for path in staged.glob("*"))
        needed = sum(file["size_bytes"] for file in files) - here
        free = shutil.disk_usage(self.root).free - _SPARE_BYTES
        if needed > max(free, 0):
            raise RefusalError(
                f"no space in {self.root}: {needed / 1e6:.1f} MB are needed and"
                f" {max(free, 0) / 1e6:.1f} MB are free, make room there"
            )

    def _copy(self, file: dict[str, Any], path: Path) -> bool:
        """Copy a file of this content out of another release or staging folder."""
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
