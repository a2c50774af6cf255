"""`offload deploy`: send a bundle to targets and make it current there."""

from collections.abc import Sequence
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
    TargetsArgument,
    find_targets,
)
from offload_cli.output import Format, Output


class TargetRole(StrEnum):
    """The sides whose files go to a target."""

    DEVICE = "device"
    SERVER = "server"
    BOTH = "both"


def deploy(
    bundle: BundleArgument,
    targets: TargetsArgument,
    side: Annotated[
        TargetRole | None,
        typer.Option(
            help="Send the files of this side; default: its role in devices.toml, or both."
        ),
    ] = None,
    fallback: Annotated[
        bool,
        typer.Option(
            "--fallback",
            help="Send devices the server's half, too, so that they can run without a server.",
        ),
    ] = False,
    keep: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep N releases on a target.")
    ] = KEEP,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Send a bundle to targets, test it there and make it current.

    Sends only the files that a target lacks, to `releases/<digest>`, and sets the link `current`
    to it atomically. A release that fails its proof on the target does not become current; if the
    service does not start with it, the previous release is current again.

    Example: `offload deploy net.bundle pi server`
    """
    output = Output(form)
    configs = [
        (config, _sides(config, side, fallback)) for config in find_targets(targets, devices)
    ]
    source = open_bundle(bundle, Side)
    shown: dict[str, tuple[Stage, int]] = {}
    with output.steps() as step:

        def show_progress(progress: DeploymentProgress) -> None:
            """Print each new stage, and each tenth of the bytes."""
            tenth = 10 * progress.sent_bytes // max(progress.total_bytes, 1)
            if shown.get(progress.target) == (progress.stage, tenth):
                return
            shown[progress.target] = (progress.stage, tenth)
            sent = ""
            if progress.stage is Stage.SEND and progress.total_bytes:
                total = format_bytes(progress.total_bytes)
                sent = f" {format_bytes(progress.sent_bytes)} of {total}"
            step(f"{progress.target}: {progress.stage}{sent}")

        outcomes = deploy_to(source, configs, show_progress, keep)
    lines = []
    for outcome in outcomes:
        if outcome.ok:
            files = "file" if len(outcome.sent) == 1 else "files"
            sent = f"{len(outcome.sent)} {files}, {format_bytes(outcome.sent_bytes)} sent"
            line = f"{outcome.target}: {outcome.release} is current; {sent}; {proof_text(outcome)}"
            lines.append(line)
    output.result([outcome_json(outcome) for outcome in outcomes], "\n".join(lines))
    report_outcomes(output, outcomes)


def _sides(config: TargetConfig, side: TargetRole | None, fallback: bool) -> tuple[Side, ...]:
    if side is TargetRole.BOTH or (side is None and config.role is None):
        return tuple(Side)
    chosen = Side(side.value) if side else config.role
    assert chosen is not None
    return tuple(Side) if fallback and chosen is Side.DEVICE else (chosen,)


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


def proof_text(outcome: DeploymentOutcome) -> str:
    """The result of the release's proof on the target, in a few words."""
    if outcome.verdict is None:
        return f"not probed ({outcome.unproved})"
    worst = f"off by {outcome.verdict.worst:.2g} at most" if outcome.verdict.worst else "bit-equal"
    return f"probe passed ({worst}, {outcome.verdict.ran_on})"


def other_version(target: str, version: str) -> str:
    """A warning that a target's runtime has another version than this command."""
    return (
        f"{target}: its runtime is onnx-offload {version}, this is {offload.__version__}:"
        f" install this version with `offload device init {target}`"
    )


def report_outcomes(output: Output, outcomes: Sequence[DeploymentOutcome]) -> None:
    """Warn of runtimes of other versions, print why targets failed; exit with 1 if any did."""
    for outcome in outcomes:
        version = (outcome.runtime or {}).get("version", offload.__version__)
        if version != offload.__version__:
            output.warning(other_version(outcome.target, version))
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        match outcome.stage:
            case Stage.LOST:
                state = f"see what is current now with `offload releases {outcome.target}`"
            case Stage.UNDONE:
                state = f"put back: {outcome.previous or 'nothing was deployed before'}"
            case _:
                state = "nothing in use was changed"
        output.error(f"{outcome.why}; {state}")
    if failed:
        raise typer.Exit(1)
