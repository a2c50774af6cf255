"""`offload releases` and `offload rollback`: list releases on a target, go back to one."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from offload.records import to_json
from offload_runtimes.deploy.releases import Release
from offload_runtimes.deploy.releases import releases as read_releases
from offload_runtimes.deploy.releases import rollback as roll_back

from offload_cli.deploy import outcome_json, proof_text, report_outcomes
from offload_cli.options import (
    DEFAULT_DEVICES,
    DevicesOption,
    FormatOption,
    TargetArgument,
    find_targets,
)
from offload_cli.output import Format, Output


def releases(
    target: TargetArgument,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """List the releases on a target, newest first.

    Example: `offload releases pi`
    """
    output = Output(form)
    (config,) = find_targets([target], devices)
    stored = read_releases(config)
    if output.is_json:
        output.result([release_json(release) for release in stored])
    elif not stored:
        output.text(f"{target}: nothing was deployed yet")
    else:
        rows = [
            (
                "*" if release.is_current else "",
                release.id,
                "+".join(release.sides),
                format_time(release.time_s),
                probe_text(release),
            )
            for release in stored
        ]
        output.table(["", "release", "sides", "deployed", "probe"], rows, title=config.name)


def rollback(
    target: TargetArgument,
    release: Annotated[
        str, typer.Argument(help="The first characters of a release; default: the previous one.")
    ] = "",
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Make an older release on a target current again.

    Its files and its proof are checked first, as for a new release.

    Example: `offload rollback pi`
    """
    output = Output(form)
    (config,) = find_targets([target], devices)
    outcome = roll_back(config, release or None)
    text = f"{target}: {outcome.release} is current again; {proof_text(outcome)}"
    output.result(outcome_json(outcome), text if outcome.ok else "")
    report_outcomes(output, [outcome])


def release_json(release: Release) -> dict[str, Any]:
    """A release as one JSON object."""
    return {
        "release": release.id,
        "digest": release.digest,
        "sides": list(release.sides),
        "time_s": release.time_s,
        "probe": to_json(release.probe),
        "current": release.is_current,
    }


def probe_text(release: Release) -> str:
    """The result of a release's last probe, in a few words."""
    if release.probe is None:
        return "not run"
    return f"off by {release.probe.worst:.1g}, {release.probe.ran_on}"


def format_time(time_s: float) -> str:
    """Date and time in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
