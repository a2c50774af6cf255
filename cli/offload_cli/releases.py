"""`offload releases` and `offload rollback`: what was deployed, and the way back."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from offload.records import to_json
from offload_runtimes.deploy.releases import Release
from offload_runtimes.deploy.releases import releases as read_releases
from offload_runtimes.deploy.releases import rollback as roll_back

from offload_cli.deploy import outcome_json, proved, report_failures, warn_versions
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
    (place,) = find_targets([target], devices)
    found = read_releases(place)
    if output.is_json:
        output.result([release_json(release) for release in found])
    elif not found:
        output.text(f"{target}: nothing was deployed yet")
    else:
        rows = [
            (
                "*" if release.is_current else "",
                release.id,
                "+".join(release.sides),
                when(release.time_s),
                probe_text(release),
            )
            for release in found
        ]
        output.table(["", "release", "sides", "deployed", "probe"], rows, title=place.name)


def rollback(
    target: TargetArgument,
    release: Annotated[
        str, typer.Argument(help="Beginning of a release; default: the one before.")
    ] = "",
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Make an older release current again; it is verified and proved as a new one is.

    Example: `offload rollback pi`
    """
    output = Output(form)
    (place,) = find_targets([target], devices)
    outcome = roll_back(place, release or None)
    done = f"{target}: {outcome.release} is current again; {proved(outcome)}" if outcome.ok else ""
    output.result(outcome_json(outcome), done)
    warn_versions(output, [outcome])
    report_failures(output, [outcome])


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
    """What a release's last probe said, in a few words."""
    if release.probe is None:
        return "not run"
    return f"off by {release.probe.worst:.1g}, {release.probe.ran_on}"


def when(time_s: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
