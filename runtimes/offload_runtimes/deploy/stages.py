"""The stages of a deployment or rollback, and the proof of a release on its target."""

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
from offload.records import to_json

from offload_runtimes.deploy.agent_client import AgentClient
from offload_runtimes.deploy.service import installed_unit, restart, restart_command

_ID_LENGTH = 16


class Stage(StrEnum):
    """Stage of a deployment."""

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
        """Whether the deployment has ended."""
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
    """Name, digest and size of a file of a release."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileTransfer:
    """A file to send, and the number of its bytes that the target has."""

    file: ReleaseFile
    offset_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes to send."""
        return self.file.size_bytes - self.offset_bytes


def release_id(digest: str) -> str:
    """Name of the folder of a bundle's release."""
    return digest[:_ID_LENGTH]


def content_of(path: Path) -> ReleaseFile:
    """Name, digest and size of a file on this machine."""
    return ReleaseFile(path.name, file_digest(path), path.stat().st_size)


def contents(bundle: Bundle, sides: Iterable[Side]) -> tuple[ReleaseFile, ...]:
    """The files that these sides need, the manifest first: it lists the others."""
    needed = set(sides)
    return (
        content_of(bundle.path / MANIFEST),
        *(
            ReleaseFile(file.name, file.sha256, file.size_bytes)
            for file in bundle.files
            if needed & set(file.sides)
        ),
    )


def sends(files: Iterable[ReleaseFile], missing: Mapping[str, int]) -> tuple[FileTransfer, ...]:
    """The files to send, given the bytes that have arrived of each missing file.

    The manifest and small files go first: with manifest and plan, a later deployment can use the
    staged files.
    """
    transfers = (FileTransfer(file, missing[file.name]) for file in files if file.name in missing)
    return tuple(sorted(transfers, key=lambda send: (send.file.name != MANIFEST, send.size_bytes)))


_TRIAL_S = 600.0
_LOOK_S = 60.0
_RUNTIME = "runtime/current/bin/python"


@dataclass(frozen=True, slots=True)
class ProofResult:
    """Result of a proof on a target: its largest difference, and what computed it.

    Attributes:
        worst: the largest difference, relative to the largest value of its tensor.
        allowed: the largest difference allowed.
        ort: version of the onnxruntime that ran there.
        segments: how many segments were run.
        providers: execution providers in use.
    """

    worst: float
    allowed: float
    ort: str
    segments: int
    providers: tuple[str, ...] = ()

    @property
    def ran_on(self) -> str:
        """Version of onnxruntime and providers other than the CPU, for messages."""
        others = ", ".join(name for name in self.providers if name != "cpu")
        return f"onnxruntime {self.ort}{others and f' with {others}'}"


async def find_runtime(agent: AgentClient, root: str) -> str | None:
    """A Python on the target that has the light runtime; None when there is none."""
    other = sys.executable if agent.target.ssh is None else agent.target.python
    for python in (f"{root}/{_RUNTIME}", other):
        seen = await agent.call(
            "run", command=[python, "-c", "import offload_runtimes"], timeout_s=_LOOK_S
        )
        if seen["code"] == 0:
            return python
    return None


async def runtime_versions(agent: AgentClient, python: str) -> dict[str, Any] | None:
    """Output of `python -m offload_runtimes version` there; None if it is too old for that."""
    command = [python, "-m", "offload_runtimes", "version"]
    done = await agent.call("run", command=command, timeout_s=_LOOK_S)
    try:
        shown: dict[str, Any] = json.loads(done["out"].strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return shown if done["code"] == 0 else None


async def try_release(agent: AgentClient, root: str, python: str, release: str) -> ProofResult:
    """Run a release's proof on its target.

    Raises:
        InputError: it crashes on the target, or gives other numbers.
    """
    command = [
        *(python, "-m", "offload_runtimes", "prove", f"{root}/releases/{release}"),
        *("--proof", f"{root}/proofs/{release}.npz", *agent.target.options),
    ]
    done = await agent.call("run", command=command, timeout_s=_TRIAL_S)
    return judge(agent.target.name, done)


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
    """How a program on a target failed, as the end of a sentence."""
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
    """Makes one release current: proves it, switches to it, restarts the service.

    Attributes:
        agent: of the target.
        release: its id.
        journal: the target's journal when it was locked.
        verdict: result of the proof; None: it has not run.
        unproved: why it could not run.
        runtime: versions of the runtime there, as `Versions.to_json`; None: unknown.
    """

    def __init__(self, agent: AgentClient, release: str) -> None:
        self.agent = agent
        self.release = release
        self.journal: Mapping[str, Any] = {}
        self.verdict: ProofResult | None = None
        self.unproved = ""
        self.runtime: Mapping[str, Any] | None = None
        self._root = ""
        self._python: str | None = None
        self._unit: str | None = None

    def work(self) -> dict[Stage, Callable[[], Awaitable[object]]]:
        """The functions for the stages that are the same for a deployment and a rollback."""
        return {
            Stage.LOCK: self.lock,
            Stage.TRIAL: self._trial,
            Stage.SWAP: self._swap,
            Stage.CHECK: self._check,
            Stage.BACK: lambda: self.agent.call("back"),
        }

    async def lock(self) -> None:
        """Lock the target, and read its journal, runtime and service."""
        self.journal = await self.agent.call("lock")
        self._root = (await self.agent.call("facts"))["root"]
        self._python = await find_runtime(self.agent, self._root)
        if self._python:
            self.runtime = await runtime_versions(self.agent, self._python)
        self._unit = await installed_unit(self.agent)

    async def commit(self, entry: Mapping[str, Any], keep: int) -> None:
        """Add the release to the target's journal."""
        probe = to_json(self.verdict)
        await self.agent.call("commit", entry={**entry, "probe": probe}, keep=keep)

    async def _trial(self) -> None:
        proofs = await self.agent.call("listing", folder="proofs")
        if f"{self.release}.npz" not in proofs["names"]:
            self.unproved = "no sample of the model's inputs was found"
        elif not self._python:
            self.unproved = "no runtime there: `offload device init` installs one"
        else:
            self.verdict = await try_release(self.agent, self._root, self._python, self.release)

    async def _swap(self) -> None:
        after = restart_command(self._unit) if self._unit else ()
        await self.agent.call("swap", release=self.release, after=list(after))

    async def _check(self) -> None:
        if self._unit:
            await restart(self.agent, self._unit)


@dataclass(frozen=True, slots=True)
class DeploymentProgress:
    """Progress of a deployment to one target."""

    target: str
    stage: Stage
    sent_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DeploymentOutcome:
    """Result of a deployment or rollback.

    Attributes:
        target: the target's name.
        release: the release to make current.
        stage: `committed`; `refused`: the current release is unchanged; `undone`: it was put back;
            or `lost`: the connection broke, and the agent puts back what is not committed.
        previous: the release that was current before; None: none.
        verdict: result of the proof; None: it was not run.
        unproved: why it was not run.
        runtime: versions of the runtime there, as `Versions.to_json`; None: unknown.
        sent: names of the files that were sent.
        sent_bytes: bytes that were sent.
        why: the first error; None: none.
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
    work: Mapping[Stage, Callable[[], Awaitable[object]]],
    order: tuple[Stage, ...],
    report: Callable[[Stage], None],
) -> tuple[Stage, OffloadError | None]:
    """Go through the stages; returns the last one and the first error (None: none)."""
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
