"""How a deployment goes and how it ended."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offload.errors import OffloadError

from offload_runtimes.deploy.transaction import Stage, following
from offload_runtimes.deploy.trial import Verdict


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a deployment to one target is."""

    target: str
    stage: Stage
    sent_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a deployment or rollback ended.

    Attributes:
        target: the target's name.
        release: the release that was to be current.
        stage: `committed`, `refused` (what was current is untouched), `undone` (put back) or
            `lost` (the connection went; the target's agent puts back what isn't committed).
        previous: the release that was current before; None: none.
        verdict: what the proof said; None: it was not run.
        unproved: why it was not run.
        runtime: what runs there, as `Versions.to_json` says it; None: unknown.
        sent: names of the files that travelled.
        sent_bytes: their bytes that travelled.
        why: what failed; None: nothing.
    """

    target: str
    release: str
    stage: Stage
    previous: str | None = None
    verdict: Verdict | None = None
    sent: tuple[str, ...] = ()
    sent_bytes: int = 0
    why: OffloadError | None = None
    unproved: str = ""
    runtime: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the release is in use."""
        return self.stage is Stage.COMMITTED


async def run_stages(
    work: Mapping[Stage, Callable[[], Awaitable[None]]],
    order: tuple[Stage, ...],
    report: Callable[[Stage], None],
) -> tuple[Stage, OffloadError | None]:
    """Take the stages in order; the last one, and what failed first on the way (None: nothing)."""
    stage, why = order[0], None
    while not stage.is_last:
        report(stage)
        try:
            await work[stage]()
        except OffloadError as error:
            why = why or error
            stage = following(stage, failed=True, order=order)
        else:
            stage = following(stage, failed=False, order=order)
    report(stage)
    return stage, why
