"""`offload service`: the server as a systemd user unit on a target."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from offload.errors import InputError
from offload_runtimes.deploy import service
from offload_runtimes.deploy.channel import Target
from offload_runtimes.deploy.connect import connect
from offload_runtimes.deploy.trial import find_runtime

from offload_cli.options import FormatOption
from offload_cli.output import Format, Output
from offload_cli.targets import DEFAULT_DEVICES, DevicesOption, TargetArgument, find_places

app = typer.Typer(help="Run the server as a systemd user service.", no_args_is_help=True)

Found = TypeVar("Found")
_MB = 1_000_000


@app.command()
def install(
    target: TargetArgument,
    memory_limit_mb: Annotated[
        int, typer.Option(min=64, help="The service is stopped when it takes more.")
    ] = 2000,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Install a unit that serves whatever release is current, and start it.

    It is restarted on failure, when it hangs (watchdog), and by each `offload deploy`. Where it
    listens and with how many threads is said in devices.toml.

    Example: `offload service install server`
    """

    async def do(channel: Target) -> str:
        place = channel.place
        root = (await channel.call("facts"))["root"]
        python = await find_runtime(channel, root)
        if python is None:
            raise InputError(
                f"{target} has no runtime to serve with: `offload device init {target}` first"
            )
        limit_bytes = memory_limit_mb * _MB
        unit = service.Unit(
            root, python, place.listen, (*place.options, *place.serving), limit_bytes
        )
        await service.install(channel, unit)
        return unit.name

    unit = _at(target, devices, do)
    value = {"target": target, "unit": unit}
    Output(form).result(value, f"{target}: {unit} is installed")


@app.command()
def uninstall(target: TargetArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Stop the service and remove its unit; releases stay.

    Example: `offload service uninstall server`
    """
    _with_unit(target, devices, service.uninstall)
    Output().text(f"{target}: the service is removed")


@app.command()
def start(target: TargetArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Start the service (or restart it) and wait until it serves.

    Example: `offload service start server`
    """
    _with_unit(target, devices, service.restart)
    Output().text(f"{target}: serving")


@app.command()
def stop(target: TargetArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Stop the service; running work is finished first.

    Example: `offload service stop server`
    """
    _with_unit(target, devices, service.stop)
    Output().text(f"{target}: stopped")


@app.command()
def status(
    target: TargetArgument,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Say whether the service runs; exit 1 if it doesn't.

    Example: `offload service status server`
    """
    running = _with_unit(target, devices, service.is_running)
    value = {"target": target, "running": running}
    Output(form).result(value, f"{target}: {'running' if running else 'stopped'}")
    if not running:
        raise typer.Exit(1)


@app.command()
def logs(
    target: TargetArgument,
    lines: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    devices: DevicesOption = DEFAULT_DEVICES,
) -> None:
    """Print the last lines the service logged.

    Example: `offload service logs server --lines 100`
    """

    async def read(channel: Target, unit: str) -> str:
        return await service.logs(channel, unit, lines)

    Output().text(_with_unit(target, devices, read).rstrip())


def _with_unit(target: str, devices: Path, do: Callable[[Target, str], Awaitable[Found]]) -> Found:
    async def with_unit(channel: Target) -> Found:
        unit = await service.installed_unit(channel)
        if unit is None:
            raise InputError(f"{target} has no service: `offload service install {target}` first")
        return await do(channel, unit)

    return _at(target, devices, with_unit)


def _at(target: str, devices: Path, do: Callable[[Target], Awaitable[Found]]) -> Found:
    """Do something with the agent on a target."""
    (place,) = find_places([target], devices)

    async def run() -> Found:
        async with connect(place) as channel:
            return await do(channel)

    return asyncio.run(run())
