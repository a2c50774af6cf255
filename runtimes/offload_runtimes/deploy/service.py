"""The server on a target: a systemd user unit where there is systemd, otherwise a process."""

import asyncio
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from offload.errors import InputError

from offload_runtimes.deploy.agent_client import AgentClient

_RECORD = "service"  # in the root: the name of the unit that serves it
_COMMAND_S = 150.0
_START_S = 5.0  # for the manager to start, after lingering was enabled
_NOT_FOUND = 127
_UNITS = ".config/systemd/user"
_SERVE_S = 60.0  # until a server has loaded its bundles
_DRAIN_S = 45.0  # until one has answered its frames in flight
SERVER_LOG = "server.log"


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit: the root that it serves, the command and the memory limit."""

    root: str
    python: str
    listen: str
    options: tuple[str, ...] = ()
    memory_max_bytes: int = 1 << 30

    @property
    def name(self) -> str:
        """The unit's name: one for each root of an account."""
        folder = re.sub(r"[^A-Za-z0-9_.-]", "-", PurePosixPath(self.root).name)
        return f"onnx-offload-{folder}.service"

    @property
    def command(self) -> tuple[str, ...]:
        """The command that serves the release that is current when it starts."""
        return (
            *(self.python, "-m", "offload_runtimes", "serve", f"{self.root}/current"),
            *("--listen", self.listen, "--log", *self.options),
        )

    def text(self) -> str:
        """Text of the unit file.

        Its hardening needs no privileges: filters of system calls and address families, no new
        privileges. The server feeds the watchdog only while its port accepts connections.
        """
        words = []
        for word in self.command:
            text = _escape(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
            words.append(f'"{text}"' if shlex.quote(word) != word else text)
        return _TEMPLATE.format(
            root=_escape(self.root),
            command=" ".join(words),
            memory_max_bytes=self.memory_max_bytes,
        )


_TEMPLATE = """\
[Unit]
Description=onnx-offload server of {root}
ConditionPathExists={root}/current/manifest.json
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=40
WatchdogSec=30
MemoryMax={memory_max_bytes}
TasksMax=256
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=default.target
"""


def _escape(text: str) -> str:
    """Escape the percent sign, which begins a specifier in a unit."""
    return text.replace("%", "%%")


def restart_command(unit: str) -> tuple[str, ...]:
    """The command that starts or restarts a unit and waits until it serves.

    It first resets earlier failures, which would count against the limit of starts.
    """
    words = f"systemctl --user reset-failed {unit} 2>&-; exec systemctl --user restart {unit}"
    return ("sh", "-c", words)


async def installed_unit(agent: AgentClient) -> str | None:
    """Name of the unit that serves a target's root; None: none was installed."""
    text: str | None = (await agent.call("read", name=_RECORD))["text"]
    return text.strip() if text else None


async def restart(agent: AgentClient, unit: str) -> None:
    """Restart a target's service on the current release.

    Raises:
        InputError: it does not start; the text holds the last line of its log.
    """
    done = await _run(agent, *restart_command(unit))
    if done["code"] != 0:
        log = await logs(agent, unit, lines=1)
        raise InputError(
            f"the service {unit} on {agent.target.name} does not come up:"
            f" {log.strip() or done['err'].strip()}"
        )


async def install(agent: AgentClient, unit: Unit) -> None:
    """Install a unit, enable it, and start it if there is a release to serve.

    Raises:
        InputError: the target has no systemd for users (the text has the reason, and the command
            that serves without it), or the service does not start.
    """
    reason = await _missing_manager(agent)
    if reason:
        raise InputError(
            f"{agent.target.name} {reason}; without it, this serves: {shlex.join(unit.command)}"
        )
    await agent.call("write", name=f"~/{_UNITS}/{unit.name}", text=unit.text())
    await _systemctl(agent, "daemon-reload")
    await _systemctl(agent, "enable", unit.name)
    await agent.call("write", name=_RECORD, text=unit.name)
    if (await agent.call("state"))["current"]:
        await restart(agent, unit.name)
    await _run(agent, "loginctl", "enable-linger")  # else it ends with this login


async def _missing_manager(agent: AgentClient) -> str:
    """The reason why the account cannot run systemd units; empty if it can.

    Enabling lingering starts the manager of an account without a login.
    """
    show = ("systemctl", "--user", "show-environment")
    done = await _run(agent, *show)
    if done["code"] == 0:
        return ""
    if done["code"] == _NOT_FOUND:
        return "has no systemd to run a service"
    lingering = await _run(agent, "loginctl", "enable-linger")
    give_up_s = time.monotonic() + _START_S
    while lingering["code"] == 0 and time.monotonic() < give_up_s:
        if (await _run(agent, *show))["code"] == 0:
            return ""
        await asyncio.sleep(0.5)
    lines = (lingering["err"] or done["err"]).strip().splitlines()
    reason = f" ({lines[-1]})" if lines else ""
    return (
        f"runs no systemd manager for this account{reason}: an administrator can allow it there"
        " with `loginctl enable-linger ACCOUNT` (lingering)"
    )


async def start_server(agent: AgentClient, unit: Unit) -> str:
    """Start a server of the current release, in place of the former server of this root.

    A systemd unit is installed where the account has a systemd manager; otherwise a process is
    started that outlives the connection, but not a restart of the machine.

    Returns:
        The reason for a plain process; empty if a unit was installed.

    Raises:
        InputError: the server does not start; the text has the last line of its log.
    """
    reason = await _missing_manager(agent)
    if not reason:
        await stop_processes(agent)
        await install(agent, unit)
        return ""
    await stop_processes(agent)
    started = await agent.call("spawn", command=list(unit.command), log=SERVER_LOG)
    give_up_s = time.monotonic() + _SERVE_S
    while time.monotonic() < give_up_s:
        serving = (await agent.call("servers"))["servers"]
        if any(status["pid"] == started["pid"] for status in serving):
            return reason
        if not (await agent.call("runs", pid=started["pid"]))["runs"]:
            break
        await asyncio.sleep(0.1)
    else:
        await _run(agent, "kill", "-KILL", str(started["pid"]))
    log = ((await agent.call("read", name=SERVER_LOG))["text"] or "").strip().splitlines()
    raise InputError(
        f"the server on {agent.target.name} does not start:"
        f" {log[-1].removeprefix('error: ') if log else 'it printed nothing'}"
    )


async def stop_processes(agent: AgentClient) -> int:
    """Stop the server processes of a root that systemd does not run; returns their number.

    Raises:
        InputError: one does not end.
    """
    unit = await installed_unit(agent)
    if unit and await is_running(agent, unit):
        return 0
    serving = (await agent.call("servers"))["servers"]
    for status in serving:
        pid = str(status["pid"])
        await _run(agent, "kill", "-TERM", pid)
        give_up_s = time.monotonic() + _DRAIN_S
        while (await agent.call("runs", pid=status["pid"]))["runs"]:
            if time.monotonic() > give_up_s:
                raise InputError(f"process {pid} on {agent.target.name} does not end: end it there")
            await asyncio.sleep(0.1)
    return len(serving)


async def uninstall(agent: AgentClient, unit: str) -> None:
    """Stop a unit and remove it."""
    await _run(agent, "systemctl", "--user", "disable", "--now", unit)
    await agent.call("remove", name=f"~/{_UNITS}/{unit}")
    await agent.call("remove", name=_RECORD)
    await _systemctl(agent, "daemon-reload")


async def stop(agent: AgentClient, unit: str) -> None:
    """Stop a unit after the work in flight.

    Raises:
        InputError: systemd refuses; the text has its reason.
    """
    await _systemctl(agent, "stop", unit)


async def is_running(agent: AgentClient, unit: str) -> bool:
    """Whether a unit is active."""
    done = await _run(agent, "systemctl", "--user", "is-active", "--quiet", unit)
    return bool(done["code"] == 0)


async def logs(agent: AgentClient, unit: str, lines: int) -> str:
    """The last lines of a unit's log."""
    command = ("journalctl", "--user", "--unit", unit, "--output", "cat", "--no-pager")
    done = await _run(agent, *command, "--lines", str(lines))
    return str(done["out"])


async def _systemctl(agent: AgentClient, *words: str) -> None:
    done = await _run(agent, "systemctl", "--user", *words)
    if done["code"] != 0:
        lines = done["err"].strip().splitlines()
        raise InputError(
            f"systemd on {agent.target.name} refuses `systemctl --user {' '.join(words)}`:"
            f" {lines[-1] if lines else 'no reason given'}"
        )


async def _run(agent: AgentClient, *command: str) -> Mapping[str, Any]:
    return await agent.call("run", command=list(command), timeout_s=_COMMAND_S)
