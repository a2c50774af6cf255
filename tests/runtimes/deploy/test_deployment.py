"""Deploying to directories of this machine, through the very agent that SSH targets run."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offload.bundle.bundle import MANIFEST, Bundle, manifest_digest, open_bundle
from offload.errors import BundleError, InputError
from offload.planning.plan import Side
from offload_runtimes.deploy import deployment
from offload_runtimes.deploy.agent_client import connect
from offload_runtimes.deploy.deployment import deploy_to
from offload_runtimes.deploy.stages import DeploymentOutcome, DeploymentProgress, Stage
from offload_runtimes.deploy.targets import TargetConfig, find_target
from offload_runtimes.measure import proof_replay as proof

from tests.runtimes.bundles import branches
from tests.toolkit.bundle.several import swept

BOTH = tuple(Side)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return branches(tmp_path / "net.bundle").bundle


def place(path: Path) -> TargetConfig:
    return find_target(str(path), {})


def deploy(bundle: Bundle, target: Path, sides: tuple[Side, ...] = BOTH) -> DeploymentOutcome:
    (outcome,) = deploy_to(bundle, [(place(target), sides)])
    return outcome


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def other_release(bundle: Bundle, path: Path) -> Bundle:
    """The same files under a manifest of another digest."""
    shutil.copytree(bundle.path, path)
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["digest"]
    manifest["model"] = {"name": "another"}
    whole = {"digest": manifest_digest(manifest), **manifest}
    (path / MANIFEST).write_text(json.dumps(whole))
    return open_bundle(path, Side)


def test_each_side_gets_its_own_half_at_once(bundle: Bundle, tmp_path: Path) -> None:
    seen: list[DeploymentProgress] = []
    outcomes = deploy_to(
        bundle,
        [
            (place(tmp_path / "pi"), (Side.DEVICE,)),
            (place(tmp_path / "big"), (Side.SERVER,)),
            (place(tmp_path / "all"), BOTH),
        ],
        seen.append,
    )
    assert [outcome.stage for outcome in outcomes] == [Stage.COMMITTED] * 3
    for outcome, side in zip(outcomes, ("device", "server", ""), strict=True):
        wanted = {file.name for file in bundle.files if not side or Side(side) in file.sides}
        target = Path(outcome.target)
        assert names(target / "current") == {MANIFEST, *wanted} == set(outcome.sent)
        assert open_bundle(target / "current").digest == bundle.digest
        assert outcome.verdict is not None
        assert outcome.verdict.worst <= outcome.verdict.allowed
        last = [step for step in seen if step.target == outcome.target][-1]
        assert (last.stage, last.sent_bytes) == (Stage.COMMITTED, outcome.sent_bytes)


def test_each_side_gets_its_parts_of_every_plan(tmp_path: Path) -> None:
    bundle = swept(tmp_path)
    places = [(place(tmp_path / side), (side,)) for side in Side]
    for (target, (side,)), outcome in zip(places, deploy_to(bundle, places), strict=True):
        here = open_bundle(Path(target.name) / "current", (side,))
        assert here.plans == bundle.plans
        parts = {path.stem for path in here.path.glob("*.onnx")}
        assert parts == {segment.part for segment in bundle.parts(side)}
        assert outcome.verdict is not None
        assert outcome.verdict.segments == len(parts) == 2


def test_what_the_target_has_does_not_travel_again(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "all"
    assert deploy(bundle, target).ok
    assert deploy(bundle, target).sent == ()
    newer = other_release(bundle, tmp_path / "newer.bundle")
    outcome = deploy(newer, target)
    assert outcome.sent == (MANIFEST,)
    assert outcome.previous == bundle.digest[:16]
    assert open_bundle(target / "current", Side).digest == newer.digest


def test_other_numbers_never_become_current(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "pi"
    assert deploy(bundle, target).ok
    true_proof = proof.proof_of

    def other(made: Bundle) -> proof.Proof:
        first, *rest = true_proof(made).segments
        outputs = {name: array + np.float32(1) for name, array in first.outputs.items()}
        return proof.Proof((replace(first, outputs=outputs), *rest))

    monkeypatch.setattr(deployment, "proof_of", other)
    newer = other_release(bundle, tmp_path / "newer.bundle")
    outcome = deploy(newer, target, (Side.DEVICE,))
    assert outcome.stage is Stage.REFUSED
    assert "gives other numbers" in str(outcome.why)
    assert open_bundle(target / "current", Side).digest == bundle.digest


def test_a_release_that_takes_no_sample_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: Bundle) -> proof.Proof:
        raise InputError("no sample fits")

    monkeypatch.setattr(deployment, "proof_of", none)
    outcome = deploy(bundle, tmp_path / "pi")
    assert outcome.ok
    assert (outcome.verdict, outcome.unproved) == (
        None,
        "no sample of the model's inputs was found",
    )


def test_source_changed_under_our_hands_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "all"
    (bundle.path / "device-0.onnx").write_bytes(
        bytes(len((bundle.path / "device-0.onnx").read_bytes()))
    )

    async def run() -> DeploymentOutcome:
        async with connect(place(target)) as channel:
            return await deployment.Deployment(channel, bundle, BOTH, None).run()

    outcome = asyncio.run(run())
    assert outcome.stage is Stage.REFUSED
    assert "does not arrive as the bundle says" in str(outcome.why)
    assert not (target / "current").exists()


def test_a_file_as_target_is_refused_and_the_others_go_on(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bad, good = deploy_to(
        bundle, [(place(tmp_path / "file"), BOTH), (place(tmp_path / "dir"), BOTH)]
    )
    assert "not a directory" in str(bad.why)
    assert good.ok


def test_half_a_bundle_cannot_be_deployed(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "server-0.onnx").unlink()
    with pytest.raises(BundleError, match="lacks its server half"):
        deploy(bundle, tmp_path / "pi", (Side.DEVICE,))


def test_second_deployer_waits_its_turn(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "all"

    async def run() -> str:
        async with connect(place(target)) as one, connect(place(target)) as two:
            await one.call("lock")
            with pytest.raises(InputError, match="being changed by another process") as seen:
                await two.call("lock")
            return str(seen.value)

    assert "\n" not in asyncio.run(run())
    assert deploy(bundle, target).ok  # the lock went with its holder
