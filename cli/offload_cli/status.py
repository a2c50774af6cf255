"""`offload status`: release, runtime, service and servers of every target."""

from typing import Any

import offload
from offload.errors import InputError
from offload_runtimes.deploy.releases import Status, statuses
from offload_runtimes.deploy.targets import read_devices

from offload_cli.deploy import other_version
from offload_cli.options import DEFAULT_DEVICES, DevicesOption, FormatOption
from offload_cli.output import Format, Output
from offload_cli.releases import format_time, probe_text, release_json

COLUMNS = ("target", "role", "release", "deployed", "runtime", "service", "servers", "probe")


def status(
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show release, runtime, service and servers of every target.

    Reads the targets from devices.toml. Servers are all that the account runs on a release of the
    target, with or without systemd.

    Example: `offload status`
    """
    output = Output(form)
    known = read_devices(devices)
    if not known:
        raise InputError(f"{devices} names no devices: write one like [pi] with host and role")
    targets = statuses(known.values())
    if output.is_json:
        output.result([_json(target) for target in targets])
        return
    output.table(COLUMNS, map(_row, targets))
    for target in targets:
        name = target.target.name
        if target.error:
            output.warning(target.error)
        if target.damaged:
            output.warning(f"{name}: changed since deployed: {', '.join(target.damaged)}")
        version = (target.runtime or {}).get("version", offload.__version__)
        if version != offload.__version__:
            output.warning(other_version(name, version))


def _row(target: Status) -> tuple[str, ...]:
    role = target.target.role.value if target.target.role else "both"
    if target.error:
        return (target.target.name, role, *["?"] * 6)
    service = "none" if target.unit is None else "running" if target.running else "stopped"
    runtime = "none"
    if target.runtime:
        runtime = f"{target.runtime['version']}, onnxruntime {target.runtime['onnxruntime']}"
    servers = []
    for server in target.servers:
        sessions = server["sessions"]
        plural = "" if sessions == 1 else "s"
        providers = ", ".join(server["providers"])
        servers.append(f"{server['listening']} on {providers}, {sessions} session{plural}")
    current = target.current
    return (
        target.target.name,
        role,
        current.id if current else "none",
        format_time(current.time_s) if current else "",
        runtime,
        service,
        "\n".join(servers) or "none",
        probe_text(current) if current else "",
    )


def _json(target: Status) -> dict[str, Any]:
    return {
        "target": target.target.name,
        "role": target.target.role.value if target.target.role else None,
        "current": release_json(target.current) if target.current else None,
        "damaged": list(target.damaged),
        "service": target.unit,
        "running": target.running,
        "runtime": target.runtime,
        "servers": list(target.servers),
        "error": target.error or None,
    }
