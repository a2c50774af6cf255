"""`offload status`: how the devices and servers are."""

from typing import Any

from offload.errors import InputError
from offload_runtimes.deploy.history import Status, statuses
from offload_runtimes.deploy.place import read_devices

from offload_cli.options import FormatOption
from offload_cli.output import Format, Output
from offload_cli.releases import probe_text, release_json, when
from offload_cli.targets import DEFAULT_DEVICES, DevicesOption


def status(
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show every target of devices.toml: its release, service, last probe, onnxruntime.

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
    columns = ["target", "role", "release", "deployed", "service", "probe"]
    output.table(columns, [_row(one) for one in found])
    for one in found:
        if one.error:
            output.warning(one.error)
        if one.damaged:
            output.warning(f"{one.place.name}: changed since deployed: {', '.join(one.damaged)}")


def _row(one: Status) -> tuple[str, ...]:
    role = one.place.role.value if one.place.role else "both"
    if one.error:
        return one.place.name, role, "?", "?", "?", "?"
    service = "none" if one.unit is None else "running" if one.running else "stopped"
    if one.current is None:
        return one.place.name, role, "none", "", service, ""
    current = one.current
    return (
        one.place.name,
        role,
        current.id,
        when(current.time_s),
        service,
        probe_text(current),
    )


def _json(one: Status) -> dict[str, Any]:
    return {
        "target": one.place.name,
        "role": one.place.role.value if one.place.role else None,
        "current": release_json(one.current) if one.current else None,
        "damaged": list(one.damaged),
        "service": one.unit,
        "running": one.running,
        "error": one.error or None,
    }
