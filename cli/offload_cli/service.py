"""`offload service`: the server as a systemd user service on targets."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

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
    on_each,
    report_each,
)
from offload_cli.output import Format, Output

app = typer.Typer(help="Run the server as a systemd user service on targets.", no_args_is_help=True)

Result = TypeVar("Result")


@app.command()
def install(
    targets: TargetsArgument,
    memory_limit_mb: Annotated[
        int, typer.Option(min=64, metavar="MB", help="Stop the service if it takes more than MB.")
    ] = 2000,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Install a unit that serves the current release, and start it.

    systemd restarts it on failure and when it hangs (watchdog); each `offload deploy` restarts it
    too. devices.toml sets its address, threads and other options. It logs JSON lines.

    Example: `offload service install server`
    """

    async def install_on(target: AgentClient) -> str:
        config = target.target
        root = (await target.call("facts"))["root"]
        python = await find_runtime(target, root)
        if python is None:
            raise InputError(
                f"{config.name} has no runtime to serve with:"
                f" `offload device init {config.name}` first"
            )
        options = (*config.options, *config.serving)
        unit = service.Unit(root, python, config.listen, options, memory_limit_mb * 1_000_000)
        await service.install(target, unit)
        return unit.name

    report_each(
        Output(form),
        _on_agents(targets, devices, install_on),
        lambda name, unit: {"target": name, "unit": unit},
        lambda name, unit: f"{name}: {unit} is installed",
    )


@app.command()
def uninstall(targets: TargetsArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Stop the service and remove its unit; releases stay.

    Example: `offload service uninstall server`
    """
    _run_on_units(targets, devices, service.uninstall, "the service is removed")


@app.command()
def start(targets: TargetsArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Start or restart the service and wait until it serves.

    Example: `offload service start server`
    """
    _run_on_units(targets, devices, service.restart, "serving")


@app.command()
def stop(targets: TargetsArgument, devices: DevicesOption = DEFAULT_DEVICES) -> None:
    """Stop the service after running work is finished.

    Example: `offload service stop server`
    """
    _run_on_units(targets, devices, service.stop, "stopped")


@app.command()
def status(
    targets: TargetsArgument,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show whether the service runs; exit with 1 if it does not.

    Example: `offload service status server`
    """
    running = _on_units(targets, devices, service.is_running)
    report_each(
        Output(form),
        running,
        lambda name, is_running: {"target": name, "running": is_running},
        lambda name, is_running: f"{name}: {'running' if is_running else 'stopped'}",
    )
    if not all(running.values()):
        raise typer.Exit(1)


@app.command()
def logs(
    targets: TargetsArgument,
    lines: Annotated[int, typer.Option(min=1, metavar="N", help="Print the last N lines.")] = 50,
    devices: DevicesOption = DEFAULT_DEVICES,
) -> None:
    """Print the last lines of the service's log.

    Example: `offload service logs server --lines 100`
    """
    texts = _on_units(targets, devices, lambda target, unit: service.logs(target, unit, lines))

    def text(name: str, log: str) -> str:
        if len(texts) == 1:
            return log.rstrip()
        return "\n".join(f"{name}: {line}" for line in log.rstrip().splitlines())

    report_each(Output(), texts, lambda _name, _log: None, text)


def _run_on_units(
    targets: Sequence[str],
    devices: Path,
    action: Callable[[AgentClient, str], Awaitable[object]],
    done: str,
) -> None:
    results = _on_units(targets, devices, action)
    report_each(Output(), results, lambda _name, _: None, lambda name, _: f"{name}: {done}")


def _on_units(
    targets: Sequence[str],
    devices: Path,
    action: Callable[[AgentClient, str], Awaitable[Result]],
) -> dict[str, Result | OffloadError]:
    """Call an action with the agent and the installed unit of each target."""

    async def with_unit(target: AgentClient) -> Result:
        unit = await service.installed_unit(target)
        if unit is None:
            name = target.target.name
            raise InputError(f"{name} has no service: `offload service install {name}` first")
        return await action(target, unit)

    return _on_agents(targets, devices, with_unit)


def _on_agents(
    targets: Sequence[str], devices: Path, action: Callable[[AgentClient], Awaitable[Result]]
) -> dict[str, Result | OffloadError]:
    """Call an action with the agent of each target, in parallel; results by target name."""

    async def connect_and_run(config: TargetConfig) -> Result:
        async with connect(config) as target:
            return await action(target)

    return on_each(targets, devices, lambda config: asyncio.run(connect_and_run(config)))
