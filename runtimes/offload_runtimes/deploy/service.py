"""The server as a systemd user unit on a target: install, restart, stop, logs."""

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
    await _find_manager(agent, unit)
    await agent.call("write", name=f"~/{_UNITS}/{unit.name}", text=unit.text())
    await _systemctl(agent, "daemon-reload")
    await _systemctl(agent, "enable", unit.name)
    await agent.call("write", name=_RECORD, text=unit.name)
    if (await agent.call("state"))["current"]:
        await restart(agent, unit.name)
    await _run(agent, "loginctl", "enable-linger")  # else it ends with this login


async def _find_manager(agent: AgentClient, unit: Unit) -> None:
    """Check that the account's systemd runs; enabling lingering starts it without a login.

    Raises:
        InputError: it does not run.
    """
    name = agent.target.name
    show = ("systemctl", "--user", "show-environment")
    done = await _run(agent, *show)
    if done["code"] == 0:
        return
    without = f"; without it, this serves: {shlex.join(unit.command)}"
    if done["code"] == _NOT_FOUND:
        raise InputError(f"{name} has no systemd to run a service{without}")
    lingering = await _run(agent, "loginctl", "enable-linger")
    give_up_s = time.monotonic() + _START_S
    while lingering["code"] == 0 and time.monotonic() < give_up_s:
        if (await _run(agent, *show))["code"] == 0:
            return
        await asyncio.sleep(0.5)
    lines = (lingering["err"] or done["err"]).strip().splitlines()
    reason = f" ({lines[-1]})" if lines else ""
    raise InputError(
        f"{name} runs no systemd manager for this account{reason}: an administrator can allow it"
        f" there with `loginctl enable-linger ACCOUNT` (lingering){without}"
    )


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
