"""Make a release that lies on a target current: what a deployment and a rollback share."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from offload_runtimes.deploy.channel import Target
from offload_runtimes.deploy.service import installed_unit, restart, restart_command
from offload_runtimes.deploy.transaction import Stage
from offload_runtimes.deploy.trial import Verdict, find_runtime, runtime_versions, try_release

KEEP = 3


class Activation:
    """One release on its way to be current.

    Attributes:
        target: where.
        release: its id.
        journal: what the target's journal said when it was locked.
        verdict: what the proof said; None: it has not run.
        unproved: why it could not run.
        runtime: what runs there, as `Versions.to_json` says it; None: unknown.
    """

    def __init__(self, target: Target, release: str) -> None:
        self.target = target
        self.release = release
        self.journal: Mapping[str, Any] = {}
        self.verdict: Verdict | None = None
        self.unproved = ""
        self.runtime: Mapping[str, Any] | None = None
        self._root = ""
        self._python: str | None = None
        self._unit: str | None = None

    def work(self) -> dict[Stage, Callable[[], Awaitable[None]]]:
        """What to do in the stages that need nothing more than the release."""
        return {
            Stage.LOCK: self.lock,
            Stage.TRIAL: self._trial,
            Stage.SWAP: self._swap,
            Stage.CHECK: self._check,
            Stage.BACK: self._back,
        }

    async def lock(self) -> None:
        """Lock the target, and see what it is and has."""
        self.journal = await self.target.call("lock")
        self._root = (await self.target.call("facts"))["root"]
        self._python = await find_runtime(self.target, self._root)
        if self._python:
            self.runtime = await runtime_versions(self.target, self._python)
        self._unit = await installed_unit(self.target)

    async def commit(self, entry: Mapping[str, Any], keep: int) -> None:
        """Enter the release in the target's journal."""
        probe = self.verdict.to_json() if self.verdict else None
        await self.target.call("commit", entry={**entry, "probe": probe}, keep=keep)

    async def _trial(self) -> None:
        proofs = await self.target.call("listing", folder="proofs")
        if f"{self.release}.npz" not in proofs["names"]:
            self.unproved = "no sample of the model's inputs was found"
        elif not self._python:
            self.unproved = "no runtime there: `offload device init` installs one"
        else:
            self.verdict = await try_release(self.target, self._root, self._python, self.release)

    async def _swap(self) -> None:
        after = restart_command(self._unit) if self._unit else ()
        await self.target.call("swap", release=self.release, after=list(after))

    async def _check(self) -> None:
        if self._unit:
            await restart(self.target, self._unit)

    async def _back(self) -> None:
        await self.target.call("back")
