"""`offload status`: how the devices and servers are."""

from collections.abc import Mapping
from typing import Any

import offload
from offload.errors import InputError
from offload_runtimes.deploy.releases import Status, statuses
from offload_runtimes.deploy.targets import read_devices

from offload_cli.deploy import other_version
from offload_cli.options import DEFAULT_DEVICES, DevicesOption, FormatOption
from offload_cli.output import Format, Output
from offload_cli.releases import probe_text, release_json, when


def status(
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show every target of devices.toml: its release, runtime, service, servers, last probe.

    A server is shown whether systemd runs it or not: any of the account's that serves a release of
    the target.

    Example: `offload status`
    """
    output = Output(form)
    known = read_devices(devices)
    if not known:
        raise InputError(f"{devices} names no devices: write one like [pi] with host and role")
    found = statuses(known.values())
    if output.is_json:
        output.result([_json(one) for one in found])
        return
    columns = ["target", "role", "release", "deployed", "runtime", "service", "servers", "probe"]
    output.table(columns, [_row(one) for one in found])
    for one in found:
        if one.error:
            output.warning(one.error)
        if one.damaged:
            output.warning(f"{one.target.name}: changed since deployed: {', '.join(one.damaged)}")
        version = (one.runtime or {}).get("version", offload.__version__)
        if version != offload.__version__:
            output.warning(other_version(one.target.name, version))


def _row(one: Status) -> tuple[str, ...]:
    role = one.target.role.value if one.target.role else "both"
    if one.error:
        return (one.target.name, role, *["?"] * 6)
    service = "none" if one.unit is None else "running" if one.running else "stopped"
    runtime = "none"
    if one.runtime:
        runtime = f"{one.runtime['version']}, onnxruntime {one.runtime['onnxruntime']}"
    current = one.current
    return (
        one.target.name,
        role,
        current.id if current else "none",
        when(current.time_s) if current else "",
        runtime,
        service,
        "\n".join(_server(server) for server in one.servers) or "none",
        probe_text(current) if current else "",
    )


def _server(server: Mapping[str, Any]) -> str:
    sessions = server["sessions"]
    providers = ", ".join(server["providers"])
    plural = "" if sessions == 1 else "s"
    return f"{server['listening']} on {providers}, {sessions} session{plural}"


def _json(one: Status) -> dict[str, Any]:
    return {
        "target": one.target.name,
        "role": one.target.role.value if one.target.role else None,
        "current": release_json(one.current) if one.current else None,
        "damaged": list(one.damaged),
        "service": one.unit,
        "running": one.running,
        "runtime": one.runtime,
        "servers": list(one.servers),
        "error": one.error or None,
    }
