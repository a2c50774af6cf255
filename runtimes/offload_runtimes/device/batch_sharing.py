"""Share the rows of one batch among the plans of a bundle."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from offload.costs.link import Link
from offload.errors import ServerError
from offload.planning.batch import BatchPart, share_rows
from offload.planning.plan import Plan
from offload.scheduling.timeline import Timeline

from offload_runtimes.device.inference_runner import FramePlan, PendingInference
from offload_runtimes.engine import Array

_CHANGED = 1.1  # shares are computed again if the rate of the link changes by this factor
_REMEMBERED = 64  # numbers of rows


class BatchSharing:
    """Chooses the parts of each batch on the link as it is now.

    Only plans without lossy encodings take part, so that sharing changes no result.
    """

    def __init__(self, plans: Sequence[Plan], planned_rows: int) -> None:
        """`planned_rows`: rows of the batch that the plans' forecasts are for."""
        self._numbers = [number for number, plan in enumerate(plans) if plan.is_lossless]
        self._plans = [plans[number] for number in self._numbers]
        self._planned_rows = planned_rows
        self._link = plans[0].link
        self._parts: dict[int, tuple[BatchPart, ...]] = {}
        self._lock = threading.Lock()

    def parts(self, rows: int, link: Link | None) -> tuple[BatchPart, ...]:
        """The parts of a batch, in the order of its rows.

        Args:
            rows: of the batch.
            link: as measured; None: as planned.

        Returns:
            Nothing if sharing is not certain to gain more than the prediction may be wrong.
        """
        with self._lock:
            if link is not None and (self._link is None or _differs(link, self._link)):
                self._link = link
                self._parts.clear()
            if self._link is None or not self._plans or rows < 2:
                return ()
            if rows not in self._parts:
                if len(self._parts) >= _REMEMBERED:
                    self._parts.clear()
                self._parts[rows] = self._share(rows, self._link)
            return self._parts[rows]

    def _share(self, rows: int, link: Link) -> tuple[BatchPart, ...]:
        shared = share_rows(
            [plan.forecast for plan in self._plans],
            [not plan.is_local for plan in self._plans],
            rows,
            self._planned_rows,
            link,
        )
        if not shared.is_certain:
            return ()
        return tuple(replace(part, plan=self._numbers[part.plan]) for part in shared.parts)


def _differs(link: Link, other: Link) -> bool:
    ratios = (link.up_bps / other.up_bps, link.down_bps / other.down_bps)
    return not all(1 / _CHANGED < ratio < _CHANGED for ratio in ratios)


MakeInference: TypeAlias = Callable[[Mapping[str, Any], FramePlan], PendingInference]


class SharedBatch:
    """One batch in parts, each an inference of its own; used like PendingInference."""

    def __init__(
        self,
        parts: Sequence[BatchPart],
        feeds: Mapping[str, Array],
        make: MakeInference,
        spare_plan: int | None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            parts: in the order of the rows; those that use the server first.
            feeds: the inputs, each with a row for each row of the batch.
            make: makes an inference of inputs.
            spare_plan: a plan that needs no server, for parts whose server is lost; None: none.
        """
        self._make = make
        self._spare_plan = spare_plan
        ends = list(accumulate(part.rows for part in parts))
        self._rows = [slice(end - part.rows, end) for part, end in zip(parts, ends, strict=True)]
        self._feeds = feeds
        self._parts = [self._inference(n, part.plan) for n, part in enumerate(parts)]

    def _inference(self, number: int, plan: int) -> PendingInference:
        rows = self._rows[number]
        feeds = {name: array[rows] for name, array in self._feeds.items()}
        mark = f"rows {rows.start} to {rows.stop - 1}: plan {plan}"
        return self._make(feeds, FramePlan(plan, mark, rows=rows.stop - rows.start))

    def start(self) -> None:
        """Do the device's part of all plans; errors as `OffloadSession.run`.

        The link has something to send before the device computes its own rows.
        """
        try:
            for number, part in enumerate(self._parts):
                part.reserved_s = self._usual_s(number + 1)
                part.start()
        except BaseException:
            self.cancel("another part of the batch failed")
            raise

    def finish(self) -> list[Any]:
        """Wait for all parts; each output has its rows in order. Errors as `OffloadSession.run`."""
        try:
            outputs = [self._finish(number) for number in range(len(self._parts))]
        except BaseException:
            self.cancel("another part of the batch failed")
            raise
        return [np.concatenate(values) for values in zip(*outputs, strict=True)]

    def _finish(self, number: int) -> list[Any]:
        part = self._parts[number]
        part.reserved_s = self._usual_s(number + 1)
        try:
            return part.finish()
        except ServerError:
            if self._spare_plan is None:
                raise
        here = self._parts[number] = self._inference(number, self._spare_plan)
        here.until_s = part.until_s
        here.start()
        return here.finish()

    def _usual_s(self, first: int) -> float:
        """Usual seconds to compute here what is missing of the parts from this one on."""
        return sum(part.usual_s or 0.0 for part in self._parts[first:])

    @property
    def timeline(self) -> Timeline:
        """What was measured so far of all parts, in seconds after the batch began."""
        begun_s = self._parts[0].frame.started_s
        return Timeline.of(
            replace(span, start_s=span.start_s + later_s, end_s=span.end_s + later_s)
            for part in self._parts
            for later_s in (part.frame.started_s - begun_s,)
            for span in part.timeline.spans
        )

    def cancel(self, why: str) -> None:
        """Stop all parts, here and on the server; `start` and `finish` then raise InputError."""
        for part in self._parts:
            part.cancel(why)
