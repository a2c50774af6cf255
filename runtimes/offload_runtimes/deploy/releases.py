"""The releases of a target: list them, roll back to one, show the status."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from offload.errors import InputError, OffloadError
from offload.records import from_json

from offload_runtimes.deploy.agent_client import AgentClient, connect
from offload_runtimes.deploy.service import installed_unit, is_running
from offload_runtimes.deploy.stages import (
    ROLLBACK,
    Activation,
    DeploymentOutcome,
    ProofResult,
    Stage,
    find_runtime,
    run_stages,
    runtime_versions,
)
from offload_runtimes.deploy.targets import TargetConfig

_KEEP_ALL = 1 << 30


@dataclass(frozen=True, slots=True)
class Release:
    """A release that passed on a target.

    Attributes:
        id: its folder's name.
        digest: the bundle's digest.
        sides: whose files are there.
        time_s: when it became current, seconds since 1970.
        probe: result of its proof; None: it was not run.
        is_current: whether it is in use.
    """

    id: str
    digest: str
    sides: tuple[str, ...]
    time_s: float
    probe: ProofResult | None
    is_current: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Status of one target.

    Attributes:
        target: the target.
        current: the release in use; None: none.
        damaged: names of its files that are missing or changed.
        unit: the service that serves it; None: none was installed.
        running: whether the service runs.
        runtime: versions of the runtime there, as `Versions.to_json`; None: none, or too old.
        servers: status of each running server of the target, with or without a service.
        error: why the status is unknown, else empty.
    """

    target: TargetConfig
    current: Release | None = None
    damaged: tuple[str, ...] = ()
    unit: str | None = None
    running: bool = False
    runtime: Mapping[str, Any] | None = None
    servers: tuple[Mapping[str, Any], ...] = ()
    error: str = ""


def releases(target: TargetConfig) -> tuple[Release, ...]:
    """The releases on a target, newest first.

    Raises:
        OffloadError: the target cannot be reached or refuses.
    """

    async def ask() -> tuple[Release, ...]:
        async with connect(target) as agent:
            return _releases(await agent.call("state"))

    return asyncio.run(ask())


def rollback(target: TargetConfig, release: str | None = None) -> DeploymentOutcome:
    """Make an older release current again: the one before the current, or one by its id.

    It is proved and checked like a new one; if that fails, the current release stays.

    Raises:
        OffloadError: the target cannot be reached, or has no such release.
    """

    async def roll_back() -> DeploymentOutcome:
        async with connect(target) as agent:
            entry = choose(target.name, await agent.call("state"), release)
            activation = Activation(agent, entry["id"])

            async def lock() -> None:
                await activation.lock()
                damaged = await _damaged_files(agent, entry)
                if damaged:
                    raise InputError(
                        f"release {entry['id']} on {target.name} was changed"
                        f" ({', '.join(damaged)}): deploy its bundle again"
                    )

            async def commit() -> None:
                await activation.commit({**entry, "time_s": time.time()}, _KEEP_ALL)

            work = {**activation.work(), Stage.LOCK: lock, Stage.COMMIT: commit}
            stage, why = await run_stages(work, ROLLBACK, lambda _: None)
            return DeploymentOutcome(
                target.name,
                entry["id"],
                stage,
                activation.journal.get("current"),
                activation.verdict,
                why=why,
                unproved=activation.unproved,
                runtime=activation.runtime,
            )

    return asyncio.run(roll_back())


def statuses(targets: Iterable[TargetConfig]) -> list[Status]:
    """Read the status of targets, all at once; one that cannot be reached has an error."""

    async def read(target: TargetConfig) -> Status:
        try:
            async with connect(target) as agent:
                journal = await agent.call("state")
                current = next((r for r in _releases(journal) if r.is_current), None)
                entries = [e for e in journal["releases"] if e["id"] == journal["current"]]
                damaged = await _damaged_files(agent, entries[0]) if entries else ()
                unit = await installed_unit(agent)
                running = unit is not None and await is_running(agent, unit)
                root = (await agent.call("facts"))["root"]
                python = await find_runtime(agent, root)
                runtime = await runtime_versions(agent, python) if python else None
                servers = tuple((await agent.call("servers"))["servers"])
                return Status(target, current, damaged, unit, running, runtime, servers)
        except OffloadError as error:
            return Status(target, error=str(error))

    async def read_all() -> list[Status]:
        return list(await asyncio.gather(*map(read, targets)))

    return asyncio.run(read_all())


def choose(name: str, journal: Mapping[str, Any], prefix: str | None) -> Mapping[str, Any]:
    """The journal's entry to roll back to.

    Args:
        name: the target, for messages.
        journal: the target's journal.
        prefix: the beginning of a release's id; None: the newest that is not current.

    Raises:
        InputError: no release, or more than one, has this prefix.
    """
    entries: list[Mapping[str, Any]] = journal["releases"]
    if prefix is None:
        older = [entry for entry in entries if entry["id"] != journal["current"]]
        if not older:
            raise InputError(f"{name} has no other release to roll back to: deploy one")
        return older[0]
    matches = [entry for entry in entries if prefix and entry["id"].startswith(prefix)]
    if len(matches) != 1:
        known = ", ".join(entry["id"] for entry in entries) or "none"
        raise InputError(f"{name} has no single release {prefix!r}: its releases are {known}")
    return matches[0]


async def _damaged_files(agent: AgentClient, entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a release's files that are missing or changed."""
    folder = f"releases/{entry['id']}"
    reply = await agent.call("damaged", folder=folder, files=entry["files"])
    return tuple(reply["names"])


def _releases(journal: Mapping[str, Any]) -> tuple[Release, ...]:
    return tuple(
        Release(
            entry["id"],
            entry["digest"],
            tuple(entry["sides"]),
            entry["time_s"],
            from_json(ProofResult, entry["probe"]) if entry["probe"] else None,
            entry["id"] == journal["current"],
        )
        for entry in journal["releases"]
    )
