"""`offload deploy`: bring a bundle to where it runs."""

from enum import StrEnum
from typing import Annotated, Any

import offload
import typer
from offload.bundle.bundle import open_bundle
from offload.planning.plan import Side
from offload.records import to_json
from offload.units import format_bytes
from offload_runtimes.deploy.deployment import deploy_to
from offload_runtimes.deploy.stages import KEEP, DeploymentOutcome, DeploymentProgress, Stage
from offload_runtimes.deploy.targets import TargetConfig

from offload_cli.options import (
    DEFAULT_DEVICES,
    BundleArgument,
    DevicesOption,
    FormatOption,
    find_targets,
)
from offload_cli.output import Format, Output


class TargetRole(StrEnum):
    """Which files go to the target."""

    DEVICE = "device"
    SERVER = "server"
    BOTH = "both"


def deploy(
    bundle: BundleArgument,
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Names from devices.toml, `user@host[:port][/directory]`, or directories.",
            show_default=False,
        ),
    ],
    side: Annotated[
        TargetRole | None,
        typer.Option(help="Files of one side only; default: those of the target's role, or both."),
    ] = None,
    fallback: Annotated[
        bool,
        typer.Option("--fallback", help="Devices get the server's half too, to go on alone."),
    ] = False,
    keep: Annotated[int, typer.Option(min=1, help="Releases that a target keeps.")] = KEEP,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Bring a bundle to targets: send what they lack, prove it there, make it current.

    Each target gets `releases/<digest>` and a link `current` to it; whoever runs `current` sees
    the old release or the new one, never a mixture. A release that doesn't pass its proof on the
    target never becomes current; one whose service doesn't come up is taken back.

    Example: `offload deploy net.bundle pi server`
    """
    output = Output(form)
    places = [(place, _sides(place, side, fallback)) for place in find_targets(targets, devices)]
    source = open_bundle(bundle, Side)
    with output.steps() as step:
        outcomes = deploy_to(source, places, _teller(step), keep)
    output.result([outcome_json(outcome) for outcome in outcomes], _lines(outcomes))
    warn_versions(output, outcomes)
    report_failures(output, outcomes)


def _sides(place: TargetConfig, side: TargetRole | None, fallback: bool) -> tuple[Side, ...]:
    if side is TargetRole.BOTH or (side is None and place.role is None):
        return tuple(Side)
    chosen = Side(side.value) if side else place.role
    assert chosen is not None
    return tuple(Side) if fallback and chosen is Side.DEVICE else (chosen,)


def _teller(step: Any) -> Any:
    """Tell of a new stage or another tenth of the bytes."""
    told: dict[str, tuple[Stage, int]] = {}

    def tell(progress: DeploymentProgress) -> None:
        tenth = 10 * progress.sent_bytes // max(progress.total_bytes, 1)
        if told.get(progress.target) == (progress.stage, tenth):
            return
        told[progress.target] = (progress.stage, tenth)
        sent = ""
        if progress.stage is Stage.SEND and progress.total_bytes:
            total = format_bytes(progress.total_bytes)
            sent = f" {format_bytes(progress.sent_bytes)} of {total}"
        step(f"{progress.target}: {progress.stage}{sent}")

    return tell


def outcome_json(outcome: DeploymentOutcome) -> dict[str, Any]:
    """An outcome as one JSON object."""
    return {
        "target": outcome.target,
        "release": outcome.release,
        "result": outcome.stage.value,
        "previous": outcome.previous,
        "sent": list(outcome.sent),
        "sent_bytes": outcome.sent_bytes,
        "probe": to_json(outcome.verdict),
        "runtime": outcome.runtime,
        "error": str(outcome.why) if outcome.why else None,
    }


def _lines(outcomes: list[DeploymentOutcome]) -> str:
    return "\n".join(_line(outcome) for outcome in outcomes if outcome.ok)


def _line(outcome: DeploymentOutcome) -> str:
    files = "file" if len(outcome.sent) == 1 else "files"
    sent = f"{len(outcome.sent)} {files}, {format_bytes(outcome.sent_bytes)} sent"
    return f"{outcome.target}: {outcome.release} is current; {sent}; {proved(outcome)}"


def proved(outcome: DeploymentOutcome) -> str:
    """What is known of the release's numbers on the target."""
    if outcome.verdict is None:
        return f"not probed ({outcome.unproved})"
    worst = f"off by {outcome.verdict.worst:.2g} at most" if outcome.verdict.worst else "bit-equal"
    return f"probe passed ({worst}, {outcome.verdict.ran_on})"


def other_version(target: str, version: str) -> str:
    """Say that a target's runtime is of another version than this one."""
    return (
        f"{target}: its runtime is onnx-offload {version}, this is {offload.__version__}:"
        f" `offload device init {target}` brings it to this version"
    )


def warn_versions(output: Output, outcomes: list[DeploymentOutcome]) -> None:
    """Warn of targets whose runtime is of another version."""
    for outcome in outcomes:
        version = (outcome.runtime or {}).get("version", offload.__version__)
        if version != offload.__version__:
            output.warning(other_version(outcome.target, version))


def report_failures(output: Output, outcomes: list[DeploymentOutcome]) -> None:
    """Say why targets failed; exits with 1 if any did."""
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        output.error(f"{outcome.why}; {_kept(outcome)}")
    if failed:
        raise typer.Exit(1)


def _kept(outcome: DeploymentOutcome) -> str:
    match outcome.stage:
        case Stage.LOST:
            return f"what is current now: `offload releases {outcome.target}`"
        case Stage.UNDONE:
            return f"put back: {outcome.previous or 'nothing was deployed before'}"
        case _:
            return "nothing in use was changed"
