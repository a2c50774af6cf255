"""Deploy one bundle to many targets at once."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from offload.bundle.bundle import Bundle
from offload.errors import InputError, OffloadError
from offload.planning.plan import Side

from offload_runtimes.deploy.agent_client import Target
from offload_runtimes.deploy.connect import connect
from offload_runtimes.deploy.stages import (
    DEPLOY,
    KEEP,
    Activation,
    DeploymentOutcome,
    DeploymentProgress,
    FileTransfer,
    ReleaseFile,
    Stage,
    content_of,
    contents,
    release_id,
    run_stages,
    sends,
)
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.measure.proof_replay import proof_of, write_proof

_ATTEMPTS = 2


@dataclass(frozen=True)
class DeploymentJob:
    """What is deployed to one target.

    Attributes:
        bundle: the whole bundle.
        sides: whose files the target gets.
        proof: a file of what they must reproduce there; None: no sample could be made.
        keep: how many releases the target keeps.
    """

    bundle: Bundle
    sides: tuple[Side, ...]
    proof: Path | None
    keep: int = KEEP


class Deployment:
    """A job at one target."""

    def __init__(
        self, target: Target, job: DeploymentJob, report: Callable[[DeploymentProgress], None]
    ) -> None:
        self._target = target
        self._job = job
        self._tell = report
        self._activation = Activation(target, release_id(job.bundle.digest))
        self._release = self._activation.release
        self._files: tuple[ReleaseFile, ...] = contents(job.bundle, job.sides)
        self._sends: tuple[FileTransfer, ...] = ()
        self._sent_bytes = 0

    async def run(self) -> DeploymentOutcome:
        """Deploy; a failure is in the outcome, not raised."""
        work = {
            **self._activation.work(),
            Stage.SURVEY: self._survey,
            Stage.SEND: self._send,
            Stage.SEAL: self._seal,
            Stage.COMMIT: self._commit,
        }
        stage, why = await run_stages(work, DEPLOY, self._report)
        return DeploymentOutcome(
            self._target.place.name,
            self._release,
            stage,
            self._activation.journal.get("current"),
            self._activation.verdict,
            tuple(send.file.name for send in self._sends),
            self._sent_bytes,
            why,
            self._activation.unproved,
            self._activation.runtime,
        )

    def _report(self, stage: Stage) -> None:
        total_bytes = sum(send.size_bytes for send in self._sends)
        self._tell(
            DeploymentProgress(self._target.place.name, stage, self._sent_bytes, total_bytes)
        )

    def _note_sent(self, size_bytes: int) -> None:
        self._sent_bytes += size_bytes
        self._report(Stage.SEND)

    async def _survey(self) -> None:
        wanted = [file.to_json() for file in self._files]
        missing = await self._target.call("survey", release=self._release, files=wanted)
        self._sends = sends(self._files, missing)

    async def _send(self) -> None:
        for send in self._sends:
            await self._send_file(send)
        if self._job.proof:
            await send_whole(self._target, f"proofs/{self._release}.npz", self._job.proof)

    async def _send_file(self, send: FileTransfer) -> None:
        source = self._job.bundle.path / send.file.name
        offset_bytes = send.offset_bytes
        for _ in range(_ATTEMPTS):
            arrived = await self._target.send(
                "put",
                source,
                offset_bytes,
                self._note_sent,
                release=self._release,
                file=send.file.to_json(),
                offset_bytes=offset_bytes,
            )
            if arrived:
                return
            offset_bytes = 0  # what had arrived before was not this file's beginning
        raise InputError(
            f"{source} does not arrive as the bundle says: it was changed, make the bundle again"
        )

    async def _seal(self) -> None:
        await self._target.call(
            "seal", release=self._release, files=[file.to_json() for file in self._files]
        )

    async def _commit(self) -> None:
        entry = {
            "id": self._release,
            "digest": self._job.bundle.digest,
            "sides": [side.value for side in self._job.sides],
            "files": [file.to_json() for file in self._files],
            "time_s": time.time(),
        }
        await self._activation.commit(entry, self._job.keep)


async def send_whole(target: Target, name: str, source: Path) -> None:
    """Send one small file to a path inside the target's root.

    Raises:
        InputError: it does not arrive as it is here.
    """
    file = content_of(source).to_json()
    if not await target.send("receive", source, 0, lambda _: None, name=name, file=file):
        raise InputError(f"{source} does not arrive at {target.place.name} as it is: try again")


def deploy_to(
    bundle: Bundle,
    places: Sequence[tuple[TargetConfig, tuple[Side, ...]]],
    report: Callable[[DeploymentProgress], None] = lambda _: None,
    keep: int = KEEP,
) -> list[DeploymentOutcome]:
    """Deploy a bundle to targets, all at once, each with the files of its sides.

    Args:
        bundle: the whole bundle, both halves.
        places: targets and the sides whose files each gets.
        report: told how far each target is.
        keep: how many releases a target keeps.

    Returns:
        How it ended, in the order of the targets; failures are in there, not raised.

    Raises:
        BundleError: the bundle lacks a half, or onnxruntime here refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="offload-proof-") as folder:
        proofs = _proofs(bundle, {sides for _, sides in places}, Path(folder))
        jobs = [
            (place, DeploymentJob(bundle, sides, proofs.get(sides), keep))
            for place, sides in places
        ]
        return asyncio.run(_deploy_all(jobs, report))


def _proofs(
    bundle: Bundle, halves: Iterable[tuple[Side, ...]], folder: Path
) -> dict[tuple[Side, ...], Path]:
    """A proof file for each set of sides; none for a model that takes no sample."""
    written: dict[tuple[Side, ...], Path] = {}
    try:
        whole = proof_of(bundle)
    except InputError:
        return written
    for sides in halves:
        path = folder / f"{'-'.join(sides)}.npz"
        write_proof(path, whole.only({s.part for s in bundle.parts(*sides)}))
        written[sides] = path
    return written


async def _deploy_all(
    jobs: Iterable[tuple[TargetConfig, DeploymentJob]], report: Callable[[DeploymentProgress], None]
) -> list[DeploymentOutcome]:
    return list(await asyncio.gather(*(_deploy_one(place, job, report) for place, job in jobs)))


async def _deploy_one(
    place: TargetConfig, job: DeploymentJob, report: Callable[[DeploymentProgress], None]
) -> DeploymentOutcome:
    try:
        async with connect(place) as target:
            return await Deployment(target, job, report).run()
    except OffloadError as error:
        release = release_id(job.bundle.digest)
        return DeploymentOutcome(place.name, release, Stage.REFUSED, why=error)
