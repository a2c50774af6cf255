"""`offload service`: the server as a systemd user unit on targets."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from offload.errors import InputError, OffloadError
from offload_runtimes.deploy import service
from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.stages import find_runtime
from offload_runtimes.deploy.targets import TargetConfig

from offload_cli.options import (
    DEFAULT_DEVICES,
    DevicesOption,
    FormatOption,
    TargetsArgument,
    find_targets,
    on_each,
    report_errors,
)
from offload_cli.output import Format, Output

app = typer.Typer(help="Run the server as a systemd user service.", no_args_is_help=True)

Found = TypeVar("Found")
_MB = 1_000_000


@app.command()
def install(
    targets: TargetsArgument,
    memory_limit_mb: Annotated[
        int, typer.Option(min=64, help="The service is stopped when it takes more.")
    ] = 2000,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Install a unit that serves whatever release is current, and start it.

    It is restarted on failure, when it hangs (watchdog), and by each `offload deploy`. Where it
    listens and with how many threads is said in devices.toml. It writes its log as JSON lines.

    Example: `offload service install server`
    """

    async def do(channel: AgentClient) -> str:
        place = channel.target
        root = (await channel.call("facts"))["root"]
        python = await find_runtime(channel, root)
        if python is None:
            raise InputError(
                f"{place.name} has no runtime to serve with:"
                f" `offload device init {place.name}` first"
            )
        limit_bytes = memory_limit_mb * _MB
        unit = service.Unit(
            root, python, place.listen, (*place.options, *place.serving), limit_bytes
        )
        await service.install(channel, unit)
        return unit.name

    found = _each(targets, devices, do)
    _report(
        Output(form),
        found,
        lambda name, unit: {"target": name, "unit": unit},
        lambda name, unit: f"{name}: {unit} is installed",
    )


@app.command()
def uninstall(targets: TargetsArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Stop the service and remove its unit; releases stay.

    Example: `offload service uninstall server`
    """
    found = _each(targets, devices, _with_unit(service.uninstall))
    _report(Output(), found, _nothing, lambda name, _: f"{name}: the service is removed")


@app.command()
def start(targets: TargetsArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Start the service (or restart it) and wait until it serves.

    Example: `offload service start server`
    """
    found = _each(targets, devices, _with_unit(service.restart))
    _report(Output(), found, _nothing, lambda name, _: f"{name}: serving")


@app.command()
def stop(targets: TargetsArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Stop the service; running work is finished first.

    Example: `offload service stop server`
    """
    found = _each(targets, devices, _with_unit(service.stop))
    _report(Output(), found, _nothing, lambda name, _: f"{name}: stopped")


@app.command()
def status(
    targets: TargetsArgument,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Say whether the service runs; exit 1 if it doesn't.

    Example: `offload service status server`
    """
    found = _each(targets, devices, _with_unit(service.is_running))
    _report(
        Output(form),
        found,
        lambda name, running: {"target": name, "running": running},
        lambda name, running: f"{name}: {'running' if running else 'stopped'}",
    )
    if not all(found.values()):
        raise typer.Exit(1)


@app.command()
def logs(
    targets: TargetsArgument,
    lines: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    devices: DevicesOption = DEFAULT_DEVICES,
) -> None:
    """Print the last lines the service logged.

    Example: `offload service logs server --lines 100`
    """

    async def read(channel: AgentClient, unit: str) -> str:
        return await service.logs(channel, unit, lines)

    found = _each(targets, devices, _with_unit(read))
    many = len(found) > 1

    def text(name: str, said: str) -> str:
        kept = said.rstrip()
        return "\n".join(f"{name}: {line}" for line in kept.splitlines()) if many else kept

    _report(Output(), found, _nothing, text)


def _with_unit(
    do: Callable[[AgentClient, str], Awaitable[Found]],
) -> Callable[[AgentClient], Awaitable[Found]]:
    """Do something with the unit that was installed on a target."""

    async def with_unit(channel: AgentClient) -> Found:
        unit = await service.installed_unit(channel)
        if unit is None:
            name = channel.target.name
            raise InputError(f"{name} has no service: `offload service install {name}` first")
        return await do(channel, unit)

    return with_unit


def _each(
    targets: Sequence[str], devices: Path, do: Callable[[AgentClient], Awaitable[Found]]
) -> dict[str, Found | OffloadError]:
    """Do something with the agent on each target; results or errors by the targets' names."""

    def one(place: TargetConfig) -> Found:
        async def run() -> Found:
            async with connect(place) as channel:
                return await do(channel)

        return asyncio.run(run())

    places = find_targets(targets, devices)
    names = [place.name for place in places]
    return dict(zip(names, on_each(places, one), strict=True))


def _report(
    output: Output,
    found: Mapping[str, Found | OffloadError],
    value: Callable[[str, Found], Any],
    text: Callable[[str, Found], str],
) -> None:
    """Print what was done: one object for one target, a list for several; exit 1 on errors."""
    done = {name: one for name, one in found.items() if not isinstance(one, OffloadError)}
    if done:
        values = [value(name, one) for name, one in done.items()]
        lines = "\n".join(text(name, one) for name, one in done.items())
        output.result(values[0] if len(found) == 1 else values, lines)
    report_errors(output, [one for one in found.values() if isinstance(one, OffloadError)])


def _nothing(_name: str, _found: object) -> None:
    return None
