"""Deploy a bundle to several targets at once."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from offload.bundle.bundle import Bundle
from offload.errors import InputError, OffloadError
from offload.planning.plan import Side
from offload.records import to_json

from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.stages import (
    DEPLOY,
    KEEP,
    Activation,
    DeploymentOutcome,
    DeploymentProgress,
    FileTransfer,
    Stage,
    content_of,
    contents,
    release_id,
    run_stages,
    sends,
)
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.measure.proof_replay import proof_of, write_proof


class Deployment:
    """Deploys a bundle to one target."""

    def __init__(
        self,
        agent: AgentClient,
        bundle: Bundle,
        sides: tuple[Side, ...],
        proof: Path | None,
        report: Callable[[DeploymentProgress], None] = lambda _: None,
        keep: int = KEEP,
    ) -> None:
        """Prepare a deployment.

        Args:
            agent: of the target.
            bundle: the whole bundle.
            sides: the sides whose files the target gets.
            proof: file of the outputs to reproduce there; None: no sample could be made.
            report: called with the progress.
            keep: number of releases that the target keeps.
        """
        self._agent = agent
        self._bundle = bundle
        self._sides = sides
        self._proof = proof
        self._keep = keep
        self._on_progress = report
        self._activation = Activation(agent, release_id(bundle.digest))
        self._release = self._activation.release
        self._files = contents(bundle, sides)
        self._sends: tuple[FileTransfer, ...] = ()
        self._sent_bytes = 0

    async def run(self) -> DeploymentOutcome:
        """Deploy; an error is in the outcome, not raised."""
        work = {
            **self._activation.work(),
            Stage.SURVEY: self._survey,
            Stage.SEND: self._send,
            Stage.SEAL: self._seal,
            Stage.COMMIT: self._commit,
        }
        stage, why = await run_stages(work, DEPLOY, self._report)
        return DeploymentOutcome(
            self._agent.target.name,
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
        name = self._agent.target.name
        self._on_progress(DeploymentProgress(name, stage, self._sent_bytes, total_bytes))

    async def _survey(self) -> None:
        """Ask which files the target lacks."""
        files = to_json(self._files)
        missing = await self._agent.call("survey", release=self._release, files=files)
        self._sends = sends(self._files, missing)

    async def _send(self) -> None:
        """Send the missing files and the proof."""

        def sent(size_bytes: int) -> None:
            self._sent_bytes += size_bytes
            self._report(Stage.SEND)

        for send in self._sends:
            source = self._bundle.path / send.file.name
            # If the bytes that had arrived were not the file's, it is sent again from the start.
            for offset_bytes in (send.offset_bytes, 0):
                request = {"release": self._release, "file": to_json(send.file)}
                request["offset_bytes"] = offset_bytes
                if await self._agent.send("put", source, offset_bytes, sent, **request):
                    break
            else:
                raise InputError(
                    f"{source} does not arrive as the bundle says: it was changed, make the bundle"
                    " again"
                )
        if self._proof:
            await send_whole(self._agent, f"proofs/{self._release}.npz", self._proof)

    async def _seal(self) -> None:
        await self._agent.call("seal", release=self._release, files=to_json(self._files))

    async def _commit(self) -> None:
        entry = {
            "id": self._release,
            "digest": self._bundle.digest,
            "sides": to_json(self._sides),
            "files": to_json(self._files),
            "time_s": time.time(),
        }
        await self._activation.commit(entry, self._keep)


async def send_whole(agent: AgentClient, name: str, source: Path, *, private: bool = False) -> None:
    """Send one small file to a path inside the target's root.

    A private file can be read by the target's account alone.

    Raises:
        InputError: it arrives changed.
    """
    file = to_json(content_of(source))
    request = {"name": name, "file": file, "private": private}
    if not await agent.send("receive", source, 0, lambda _: None, **request):
        raise InputError(f"{source} arrives changed at {agent.target.name}: try again")


def deploy_to(
    bundle: Bundle,
    targets: Sequence[tuple[TargetConfig, tuple[Side, ...]]],
    report: Callable[[DeploymentProgress], None] = lambda _: None,
    keep: int = KEEP,
) -> list[DeploymentOutcome]:
    """Deploy a bundle to targets, all at once, each with the files of its sides.

    Args:
        bundle: the whole bundle, both halves.
        targets: targets, and the sides whose files each gets.
        report: called with the progress of each target.
        keep: number of releases that a target keeps.

    Returns:
        The outcomes, in the order of the targets; they hold errors, which are not raised.

    Raises:
        BundleError: the bundle lacks a half, or onnxruntime on this machine refuses it.
    """

    async def deploy_one(
        target: TargetConfig, sides: tuple[Side, ...], proof: Path | None
    ) -> DeploymentOutcome:
        try:
            async with connect(target) as agent:
                return await Deployment(agent, bundle, sides, proof, report, keep).run()
        except OffloadError as error:
            release = release_id(bundle.digest)
            return DeploymentOutcome(target.name, release, Stage.REFUSED, why=error)

    async def deploy_all(proofs: Mapping[tuple[Side, ...], Path]) -> list[DeploymentOutcome]:
        deployments = (deploy_one(target, sides, proofs.get(sides)) for target, sides in targets)
        return list(await asyncio.gather(*deployments))

    with tempfile.TemporaryDirectory(prefix="offload-proof-") as folder:
        proofs = _write_proofs(bundle, {sides for _, sides in targets}, Path(folder))
        return asyncio.run(deploy_all(proofs))


def _write_proofs(
    bundle: Bundle, halves: Iterable[tuple[Side, ...]], folder: Path
) -> dict[tuple[Side, ...], Path]:
    """Write a proof for each set of sides; none if no sample of the model's inputs can be made."""
    written: dict[tuple[Side, ...], Path] = {}
    try:
        proof = proof_of(bundle)
    except InputError:
        return written
    for sides in halves:
        path = folder / f"{'-'.join(sides)}.npz"
        write_proof(path, proof.only({s.part for s in bundle.parts(*sides)}))
        written[sides] = path
    return written
