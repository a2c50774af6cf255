"""The order of a deployment, as pure decisions.

    lock, survey, send, seal, trial      failed: refused
    swap, check, commit                  failed: back, undone (or lost)
    committed

Until `swap` nothing in use is touched: the release runs its proof (`trial`) where it lies, and a
failure leaves the old release current. From `swap` on, a failure puts the old one back; where the
connection is gone too (`lost`), the target's agent does so on its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from offload.bundle.bundle import MANIFEST, Bundle, file_digest
from offload.planning.plan import Side

_ID_LENGTH = 16


class Stage(StrEnum):
    """Where a deployment is."""

    LOCK = "lock"
    SURVEY = "survey"
    SEND = "send"
    SEAL = "seal"
    TRIAL = "trial"
    SWAP = "swap"
    CHECK = "check"
    COMMIT = "commit"
    BACK = "back"
    COMMITTED = "committed"
    REFUSED = "refused"
    UNDONE = "undone"
    LOST = "lost"

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self in (Stage.COMMITTED, Stage.REFUSED, Stage.UNDONE, Stage.LOST)


DEPLOY = (
    Stage.LOCK,
    Stage.SURVEY,
    Stage.SEND,
    Stage.SEAL,
    Stage.TRIAL,
    Stage.SWAP,
    Stage.CHECK,
    Stage.COMMIT,
    Stage.COMMITTED,
)
ROLLBACK = (Stage.LOCK, Stage.TRIAL, Stage.SWAP, Stage.CHECK, Stage.COMMIT, Stage.COMMITTED)
_ON_TRIAL = (Stage.SWAP, Stage.CHECK, Stage.COMMIT)


def following(stage: Stage, *, failed: bool, order: tuple[Stage, ...] = DEPLOY) -> Stage:
    """The stage after one that succeeded or failed.

    Args:
        stage: the one that ended; not a last one.
        failed: how it ended.
        order: the stages of a deployment, or `ROLLBACK`.
    """
    if stage is Stage.BACK:
        return Stage.LOST if failed else Stage.UNDONE
    if failed:
        return Stage.BACK if stage in _ON_TRIAL else Stage.REFUSED
    return order[order.index(stage) + 1]


@dataclass(frozen=True, slots=True)
class Content:
    """One file of a release: its name, and what it must hold."""

    name: str
    sha256: str
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As the agent reads it."""
        return {"name": self.name, "sha256": self.sha256, "size_bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class Send:
    """A file to send, and the bytes of it that the target has already."""

    file: Content
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes that travel."""
        return self.file.size_bytes - self.offset_bytes


def release_id(digest: str) -> str:
    """The folder's name of a bundle's release."""
    return digest[:_ID_LENGTH]


def content_of(path: Path) -> Content:
    """A file of this machine."""
    return Content(path.name, file_digest(path), path.stat().st_size)


def contents(bundle: Bundle, sides: Iterable[Side]) -> tuple[Content, ...]:
    """The files that some sides need, the manifest first: it tells what the others are."""
    wanted = set(sides)
    return (
        content_of(bundle.path / MANIFEST),
        *(
            Content(file.name, file.sha256, file.size_bytes)
            for file in bundle.files
            if wanted & set(file.sides)
        ),
    )


def sends(files: Iterable[Content], missing: Mapping[str, int]) -> tuple[Send, ...]:
    """What to send, given how much of each missing file has arrived; the smallest first.

    Small files first: the manifest and the plan let a later deployment use what was staged.
    """
    wanted = (Send(file, missing[file.name]) for file in files if file.name in missing)
    return tuple(sorted(wanted, key=lambda send: (send.file.name != MANIFEST, send.size_bytes)))
