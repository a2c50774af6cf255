"""What was deployed to a target, and the way back to it."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from offload.errors import InputError, OffloadError

from offload_runtimes.deploy.agent_client import Target
from offload_runtimes.deploy.connect import connect
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
        probe: what its proof said; None: it was not run.
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
    """How one target is.

    Attributes:
        place: the target.
        current: the release in use; None: none.
        damaged: names of its files that are missing or changed.
        unit: the service that serves it; None: none was installed.
        running: whether that runs.
        runtime: what runs models there, as `Versions.to_json` says it; None: nothing, or too old.
        servers: what each running server of the target says of itself, also without a service.
        error: why nothing is known, else empty.
    """

    place: TargetConfig
    current: Release | None = None
    damaged: tuple[str, ...] = ()
    unit: str | None = None
    running: bool = False
    runtime: Mapping[str, Any] | None = None
    servers: tuple[Mapping[str, Any], ...] = ()
    error: str = ""


def releases(place: TargetConfig) -> tuple[Release, ...]:
    """The releases on a target, newest first.

    Raises:
        OffloadError: the target can't be reached or refuses.
    """

    async def ask() -> tuple[Release, ...]:
        async with connect(place) as target:
            return _releases(await target.call("state"))

    return asyncio.run(ask())


def rollback(place: TargetConfig, release: str | None = None) -> DeploymentOutcome:
    """Make an older release current again: the one before the current, or one by its id.

    It is proved and checked as a new one is; a failure leaves in use what was in use.

    Raises:
        OffloadError: the target can't be reached, or has no such release.
    """

    async def do() -> DeploymentOutcome:
        async with connect(place) as target:
            return await _rollback(target, release)

    return asyncio.run(do())


def statuses(places: Iterable[TargetConfig]) -> list[Status]:
    """How targets are, asked all at once; one that doesn't answer says why."""

    async def ask() -> list[Status]:
        return list(await asyncio.gather(*(_status(place) for place in places)))

    return asyncio.run(ask())


async def _rollback(target: Target, wanted: str | None) -> DeploymentOutcome:
    journal = await target.call("state")
    entry = choose(target.place.name, journal, wanted)
    activation = Activation(target, entry["id"])

    async def lock() -> None:
        await activation.lock()
        await _check_whole(target, entry)

    async def commit() -> None:
        await activation.commit({**entry, "time_s": time.time()}, _KEEP_ALL)

    work = {**activation.work(), Stage.LOCK: lock, Stage.COMMIT: commit}
    stage, why = await run_stages(work, ROLLBACK, lambda _: None)
    before = activation.journal.get("current")
    return DeploymentOutcome(
        target.place.name,
        entry["id"],
        stage,
        before,
        activation.verdict,
        why=why,
        unproved=activation.unproved,
        runtime=activation.runtime,
    )


def choose(name: str, journal: Mapping[str, Any], wanted: str | None) -> Mapping[str, Any]:
    """The journal's entry to go back to.

    Args:
        name: the target, for messages.
        journal: the target's journal.
        wanted: the beginning of a release's id; None: the newest that isn't current.

    Raises:
        InputError: there is none, or more than one begins so.
    """
    entries: list[Mapping[str, Any]] = journal["releases"]
    if wanted is None:
        older = [entry for entry in entries if entry["id"] != journal["current"]]
        if not older:
            raise InputError(f"{name} has no other release to go back to: deploy one")
        return older[0]
    found = [entry for entry in entries if wanted and entry["id"].startswith(wanted)]
    if len(found) != 1:
        known = ", ".join(entry["id"] for entry in entries) or "none"
        raise InputError(f"{name} has not one release {wanted!r}: its releases are {known}")
    return found[0]


async def _check_whole(target: Target, entry: Mapping[str, Any]) -> None:
    damaged = await _damaged(target, entry)
    if damaged:
        raise InputError(
            f"release {entry['id']} on {target.place.name} was changed ({', '.join(damaged)}):"
            " deploy its bundle again"
        )


async def _damaged(target: Target, entry: Mapping[str, Any]) -> tuple[str, ...]:
    folder = f"releases/{entry['id']}"
    found = await target.call("damaged", folder=folder, files=entry["files"])
    return tuple(found["names"])


async def _status(place: TargetConfig) -> Status:
    try:
        async with connect(place) as target:
            journal = await target.call("state")
            current = next((r for r in _releases(journal) if r.is_current), None)
            entries = [e for e in journal["releases"] if e["id"] == journal["current"]]
            damaged = await _damaged(target, entries[0]) if entries else ()
            unit = await installed_unit(target)
            running = unit is not None and await is_running(target, unit)
            root = (await target.call("facts"))["root"]
            python = await find_runtime(target, root)
            runtime = await runtime_versions(target, python) if python else None
            servers = tuple((await target.call("servers"))["servers"])
            return Status(place, current, damaged, unit, running, runtime, servers)
    except OffloadError as error:
        return Status(place, error=str(error))


def _releases(journal: Mapping[str, Any]) -> tuple[Release, ...]:
    return tuple(
        Release(
            entry["id"],
            entry["digest"],
            tuple(entry["sides"]),
            entry["time_s"],
            ProofResult.from_json(entry["probe"]) if entry["probe"] else None,
            entry["id"] == journal["current"],
        )
        for entry in journal["releases"]
    )
