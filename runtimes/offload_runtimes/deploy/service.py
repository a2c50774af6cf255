"""The server as a systemd user unit on a target."""

import asyncio
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from offload.errors import InputError

from offload_runtimes.deploy.agent_client import Target

_RECORD = "service"  # in the root: the name of the unit that serves it
_COMMAND_S = 150.0
_START_S = 5.0  # for the manager, after lingering was enabled
_NOT_FOUND = 127
_UNITS = ".config/systemd/user"


@dataclass(frozen=True, slots=True)
class Unit:
    """What a unit serves, with what, and within which limits."""

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
        """The command that serves whatever release is current when it starts."""
        return (
            *(self.python, "-m", "offload_runtimes", "serve", f"{self.root}/current"),
            *("--listen", self.listen, "--log", *self.options),
        )

    def text(self) -> str:
        """The unit: it serves whatever release is current when it starts.

        Its hardening needs no privileges: filters of system calls and address families, no new
        privileges. The server feeds the watchdog only while it answers itself.
        """
        return _TEMPLATE.format(
            root=_escaped(self.root),
            command=" ".join(_quoted(word) for word in self.command),
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


def _escaped(text: str) -> str:
    """Text in a unit, where a percent sign begins a specifier."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of a unit's command line."""
    kept = _escaped(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{kept}"' if shlex.quote(word) != word else kept


def restart_command(unit: str) -> tuple[str, ...]:
    """The command that restarts a unit and waits until it serves; a stopped one starts too.

    Earlier failures are forgotten first: they would count against the limit of starts.
    """
    words = f"systemctl --user reset-failed {unit} 2>&-; exec systemctl --user restart {unit}"
    return ("sh", "-c", words)


async def installed_unit(target: Target) -> str | None:
    """Name of the unit that serves a target's root; None: none was installed."""
    found: str | None = (await target.call("read", name=_RECORD))["text"]
    return found.strip() if found else None


async def restart(target: Target, unit: str) -> None:
    """Restart a target's service on what is current.

    Raises:
        InputError: it doesn't come up; with the last line it logged.
    """
    done = await _run(target, *restart_command(unit))
    if done["code"] != 0:
        said = await logs(target, unit, lines=1)
        raise InputError(
            f"the service {unit} on {target.place.name} does not come up:"
            f" {said.strip() or done['err'].strip()}"
        )


async def install(target: Target, unit: Unit) -> None:
    """Install a unit, enable it, and start it if there is a release to serve.

    Raises:
        InputError: the target has no systemd for users (the text says why, and what serves without
            it), or the service doesn't come up.
    """
    await _find_manager(target, unit)
    await target.call("write", name=f"~/{_UNITS}/{unit.name}", text=unit.text())
    await _systemctl(target, "daemon-reload")
    await _systemctl(target, "enable", unit.name)
    await target.call("write", name=_RECORD, text=unit.name)
    if (await target.call("state"))["current"]:
        await restart(target, unit.name)
    await _run(target, "loginctl", "enable-linger")  # else it ends with our login


async def _find_manager(target: Target, unit: Unit) -> None:
    """Reach the account's systemd; enabling lingering starts it where nobody is logged in.

    Raises:
        InputError: it can't be had.
    """
    name = target.place.name
    asked = ("systemctl", "--user", "show-environment")
    done = await _run(target, *asked)
    if done["code"] == 0:
        return
    without = f"; without it, this serves: {shlex.join(unit.command)}"
    if done["code"] == _NOT_FOUND:
        raise InputError(f"{name} has no systemd to run a service{without}")
    lingering = await _run(target, "loginctl", "enable-linger")
    give_up_s = time.monotonic() + _START_S
    while lingering["code"] == 0 and time.monotonic() < give_up_s:
        if (await _run(target, *asked))["code"] == 0:
            return
        await asyncio.sleep(0.5)
    said = (lingering["err"] or done["err"]).strip().splitlines()
    account = f" ({said[-1]})" if said else ""
    raise InputError(
        f"{name} runs no systemd manager for this account{account}: an administrator can allow it"
        f" there with `loginctl enable-linger ACCOUNT` (lingering){without}"
    )


async def uninstall(target: Target, unit: str) -> None:
    """Stop a unit and remove it."""
    await _run(target, "systemctl", "--user", "disable", "--now", unit)
    await target.call("remove", name=f"~/{_UNITS}/{unit}")
    await target.call("remove", name=_RECORD)
    await _systemctl(target, "daemon-reload")


async def stop(target: Target, unit: str) -> None:
    """Stop a unit; it finishes what it was asked for.

    Raises:
        InputError: systemd says no; the text says why.
    """
    await _systemctl(target, "stop", unit)


async def is_running(target: Target, unit: str) -> bool:
    """Whether a unit serves now."""
    done = await _run(target, "systemctl", "--user", "is-active", "--quiet", unit)
    return bool(done["code"] == 0)


async def logs(target: Target, unit: str, lines: int) -> str:
    """The last lines a unit logged."""
    command = ("journalctl", "--user", "--unit", unit, "--output", "cat", "--no-pager")
    done = await _run(target, *command, "--lines", str(lines))
    return str(done["out"])


async def _systemctl(target: Target, *words: str) -> None:
    done = await _run(target, "systemctl", "--user", *words)
    if done["code"] != 0:
        said = done["err"].strip().splitlines()
        raise InputError(
            f"systemd on {target.place.name} refuses `systemctl --user {' '.join(words)}`:"
            f" {said[-1] if said else 'no reason given'}"
        )


async def _run(target: Target, *command: str) -> Mapping[str, Any]:
    return await target.call("run", command=list(command), timeout_s=_COMMAND_S)
