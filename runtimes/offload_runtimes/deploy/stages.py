"""The stages of a deployment: what to do next, the proof on the target, making it current."""

import json
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from offload.bundle.bundle import MANIFEST, Bundle, file_digest
from offload.errors import InputError, OffloadError
from offload.planning.plan import Side

from offload_runtimes.deploy.agent_client import Target
from offload_runtimes.deploy.service import installed_unit, restart, restart_command

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
class ReleaseFile:
    """One file of a release: its name, and what it must hold."""

    name: str
    sha256: str
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As the agent reads it."""
        return {"name": self.name, "sha256": self.sha256, "size_bytes": self.size_bytes}


@dataclass(frozen=True, slots=True)
class FileTransfer:
    """A file to send, and the bytes of it that the target has already."""

    file: ReleaseFile
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes that travel."""
        return self.file.size_bytes - self.offset_bytes


def release_id(digest: str) -> str:
    """The folder's name of a bundle's release."""
    return digest[:_ID_LENGTH]


def content_of(path: Path) -> ReleaseFile:
    """A file of this machine."""
    return ReleaseFile(path.name, file_digest(path), path.stat().st_size)


def contents(bundle: Bundle, sides: Iterable[Side]) -> tuple[ReleaseFile, ...]:
    """The files that some sides need, the manifest first: it tells what the others are."""
    wanted = set(sides)
    return (
        content_of(bundle.path / MANIFEST),
        *(
            ReleaseFile(file.name, file.sha256, file.size_bytes)
            for file in bundle.files
            if wanted & set(file.sides)
        ),
    )


def sends(files: Iterable[ReleaseFile], missing: Mapping[str, int]) -> tuple[FileTransfer, ...]:
    """What to send, given how much of each missing file has arrived; the smallest first.

    Small files first: the manifest and the plan let a later deployment use what was staged.
    """
    wanted = (FileTransfer(file, missing[file.name]) for file in files if file.name in missing)
    return tuple(sorted(wanted, key=lambda send: (send.file.name != MANIFEST, send.size_bytes)))


_TRIAL_S = 600.0
_LOOK_S = 60.0
_RUNTIME = "runtime/current/bin/python"


@dataclass(frozen=True, slots=True)
class ProofResult:
    """What a proof found on a target: how far its numbers are off, and what made them.

    Attributes:
        worst: the largest difference, relative to the largest value of its tensor.
        allowed: how large it may be.
        ort: version of the onnxruntime that ran there.
        segments: how many segments were run.
        providers: execution providers really used.
    """

    worst: float
    allowed: float
    ort: str
    segments: int
    providers: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is kept in the target's journal."""
        return {
            "worst": self.worst,
            "allowed": self.allowed,
            "ort": self.ort,
            "segments": self.segments,
            "providers": list(self.providers),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ProofResult":
        """What `to_json` made; an older journal knows no providers."""
        return cls(**{**value, "providers": tuple(value.get("providers", ()))})

    @property
    def ran_on(self) -> str:
        """The onnxruntime and, where it is not the CPU, the provider, for people."""
        others = ", ".join(name for name in self.providers if name != "cpu")
        return f"onnxruntime {self.ort}{others and f' with {others}'}"


async def find_runtime(target: Target, root: str) -> str | None:
    """A Python on the target that has the light runtime; None when there is none."""
    other = sys.executable if target.place.ssh is None else target.place.python
    for python in (f"{root}/{_RUNTIME}", other):
        seen = await target.call(
            "run", command=[python, "-c", "import offload_runtimes"], timeout_s=_LOOK_S
        )
        if seen["code"] == 0:
            return python
    return None


async def runtime_versions(target: Target, python: str) -> dict[str, Any] | None:
    """What `python -m offload_runtimes version` says there; None: an older one can't say."""
    command = [python, "-m", "offload_runtimes", "version"]
    done = await target.call("run", command=command, timeout_s=_LOOK_S)
    try:
        found: dict[str, Any] = json.loads(done["out"].strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if done["code"] == 0 else None


async def try_release(target: Target, root: str, python: str, release: str) -> ProofResult:
    """Run a release's proof on its target.

    Raises:
        InputError: it crashes there, or gives other numbers; the text says which.
    """
    command = [
        *(python, "-m", "offload_runtimes", "prove", f"{root}/releases/{release}"),
        *("--proof", f"{root}/proofs/{release}.npz", *target.place.options),
    ]
    done = await target.call("run", command=command, timeout_s=_TRIAL_S)
    return judge(target.place.name, done)


def judge(name: str, done: Mapping[str, Any]) -> ProofResult:
    """Read what `prove` printed on a target.

    Raises:
        InputError: it crashed, or the numbers differ.
    """
    try:
        found = json.loads(done["out"].strip().splitlines()[-1])
        worst = float("inf") if found["worst"] is None else float(found["worst"])
        providers = tuple(found.get("providers", ()))
        verdict = ProofResult(worst, found["allowed"], found["ort"], found["segments"], providers)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"the probe on {name} {ending(done)}") from error
    if not found["ok"]:
        raise InputError(
            f"the probe on {name} gives other numbers: {found['tensor']!r} is off by"
            f" {worst:.2g} of its largest value, {verdict.allowed:g} is allowed"
            f" ({verdict.ran_on})"
        )
    return verdict


def ending(done: Mapping[str, Any]) -> str:
    """How a program on a target ended badly, as the rest of a sentence."""
    code = int(done["code"])
    if code == -signal.SIGILL:
        return (
            "crashed with an illegal instruction: this onnxruntime is not made for its processor,"
            " take another with `offload device init --ort VERSION`"
        )
    if code == -signal.SIGKILL:
        return "was killed: it took too long or too much memory"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    lines = [line for line in done["err"].strip().splitlines() if line.strip()]
    return f"failed: {lines[-1].removeprefix('error: ') if lines else f'exit code {code}'}"


KEEP = 3


class Activation:
    """One release on its way to be current.

    Attributes:
        target: where.
        release: its id.
        journal: what the target's journal said when it was locked.
        verdict: what the proof said; None: it has not run.
        unproved: why it could not run.
        runtime: what runs there, as `Versions.to_json` says it; None: unknown.
    """

    def __init__(self, target: Target, release: str) -> None:
        self.target = target
        self.release = release
        self.journal: Mapping[str, Any] = {}
        self.verdict: ProofResult | None = None
        self.unproved = ""
        self.runtime: Mapping[str, Any] | None = None
        self._root = ""
        self._python: str | None = None
        self._unit: str | None = None

    def work(self) -> dict[Stage, Callable[[], Awaitable[None]]]:
        """What to do in the stages that need nothing more than the release."""
        return {
            Stage.LOCK: self.lock,
            Stage.TRIAL: self._trial,
            Stage.SWAP: self._swap,
            Stage.CHECK: self._check,
            Stage.BACK: self._back,
        }

    async def lock(self) -> None:
        """Lock the target, and see what it is and has."""
        self.journal = await self.target.call("lock")
        self._root = (await self.target.call("facts"))["root"]
        self._python = await find_runtime(self.target, self._root)
        if self._python:
            self.runtime = await runtime_versions(self.target, self._python)
        self._unit = await installed_unit(self.target)

    async def commit(self, entry: Mapping[str, Any], keep: int) -> None:
        """Enter the release in the target's journal."""
        probe = self.verdict.to_json() if self.verdict else None
        await self.target.call("commit", entry={**entry, "probe": probe}, keep=keep)

    async def _trial(self) -> None:
        proofs = await self.target.call("listing", folder="proofs")
        if f"{self.release}.npz" not in proofs["names"]:
            self.unproved = "no sample of the model's inputs was found"
        elif not self._python:
            self.unproved = "no runtime there: `offload device init` installs one"
        else:
            self.verdict = await try_release(self.target, self._root, self._python, self.release)

    async def _swap(self) -> None:
        after = restart_command(self._unit) if self._unit else ()
        await self.target.call("swap", release=self.release, after=list(after))

    async def _check(self) -> None:
        if self._unit:
            await restart(self.target, self._unit)

    async def _back(self) -> None:
        await self.target.call("back")


@dataclass(frozen=True, slots=True)
class DeploymentProgress:
    """How far a deployment to one target is."""

    target: str
    stage: Stage
    sent_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeploymentOutcome:
    """How a deployment or rollback ended.

    Attributes:
        target: the target's name.
        release: the release that was to be current.
        stage: `committed`, `refused` (what was current is untouched), `undone` (put back) or
            `lost` (the connection went; the target's agent puts back what isn't committed).
        previous: the release that was current before; None: none.
        verdict: what the proof said; None: it was not run.
        unproved: why it was not run.
        runtime: what runs there, as `Versions.to_json` says it; None: unknown.
        sent: names of the files that travelled.
        sent_bytes: their bytes that travelled.
        why: what failed; None: nothing.
    """

    target: str
    release: str
    stage: Stage
    previous: str | None = None
    verdict: ProofResult | None = None
    sent: tuple[str, ...] = ()
    sent_bytes: int = 0
    why: OffloadError | None = None
    unproved: str = ""
    runtime: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the release is in use."""
        return self.stage is Stage.COMMITTED


async def run_stages(
    work: Mapping[Stage, Callable[[], Awaitable[None]]],
    order: tuple[Stage, ...],
    report: Callable[[Stage], None],
) -> tuple[Stage, OffloadError | None]:
    """Take the stages in order; the last one, and what failed first on the way (None: nothing)."""
    stage, why = order[0], None
    while not stage.is_last:
        report(stage)
        try:
            await work[stage]()
        except OffloadError as error:
            why = why or error
            stage = following(stage, failed=True, order=order)
        else:
            stage = following(stage, failed=False, order=order)
    report(stage)
    return stage, why
