"""A run for several frames at once, which ends early only when none of them wants it any more."""

from collections.abc import Mapping, Sequence

from offload_runtimes.engine import Array, Call
from offload_runtimes.serving.batching import joined, parted


class Share:
    """One frame's run of a segment: alone, or a share of a run for several.

    Attributes:
        stopped: nobody wants it any more.
    """

    def __init__(self, alone: Call) -> None:
        self._alone = alone
        self._joint: Joint | None = None
        self.stopped = False

    def stop(self) -> None:
        """Keep it from beginning, or end it; with others, only when it was the last one wanted."""
        self.stopped = True
        self._alone.stop()
        joint = self._joint
        if joint is not None:
            joint.check()

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run it alone; as `Call.run`."""
        return self._alone.run(outputs, feeds)

    def join(self, joint: "Joint | None") -> None:
        """Tell it which run it is a share of; None: of none any more."""
        self._joint = joint


class Joint:
    """One run for several shares."""

    def __init__(self, call: Call, shares: Sequence[Share]) -> None:
        self._call = call
        self._shares = shares
        for share in shares:
            share.join(self)
        self.check()

    def check(self) -> None:
        """End the run when no share is wanted any more."""
        if all(share.stopped for share in self._shares):
            self._call.stop()

    def run(
        self, outputs: Sequence[str], several: Sequence[Mapping[str, Array]], rows: Sequence[int]
    ) -> list[list[Array]]:
        """Each share's outputs; errors as `Call.run`, for all of them."""
        try:
            return parted(self._call.run(outputs, joined(several)), rows)
        finally:
            for share in self._shares:
                share.join(None)
