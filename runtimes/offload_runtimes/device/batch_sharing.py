"""Share the rows of one batch among the plans of a bundle."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from offload.costs.link import Link
from offload.errors import BundleError, ServerError
from offload.planning.batch import MicroBatch, share_batch
from offload.planning.plan import PLANNED_SPEEDS, Plan, Speeds
from offload.scheduling.timeline import Timeline

from offload_runtimes.device.inference_runner import FramePlan, PendingInference
from offload_runtimes.engine import Array

_CHANGED = 1.1  # shares are computed again if a rate or a speed changes by this factor
_LEAST_S = 1e-3  # shorter waits for the server are alike
_REMEMBERED = 64  # numbers of rows


class BatchSharing:
    """Divides batches into micro-batches, on the link as it is now."""

    def __init__(self, plans: Sequence[Plan], planned_rows: int) -> None:
        """`planned_rows`: rows of the batch that the plans' forecasts are for."""
        self._plans = tuple(plans)
        self._planned_rows = planned_rows
        self._link = plans[0].link
        self._speeds = PLANNED_SPEEDS
        self._by_rows: dict[int, tuple[MicroBatch, ...]] = {}
        self._lock = threading.Lock()

    def micro_batches(
        self, rows: int, link: Link | None, speeds: Speeds = PLANNED_SPEEDS
    ) -> tuple[MicroBatch, ...]:
        """The micro-batches of a batch, in the order of its rows.

        Args:
            rows: of the batch.
            link: as measured; None: as planned.
            speeds: of both sides, as measured.

        Returns:
            Nothing if sharing is not certain to gain more than the prediction may be wrong.
        """
        with self._lock:
            known = self._link
            link = link or known
            if link is None:
                return ()
            if known is None or _differ(link, known) or _speeds_differ(speeds, self._speeds):
                self._link, self._speeds = link, speeds
                self._by_rows.clear()
            if rows < 2:
                return ()
            if rows not in self._by_rows:
                if len(self._by_rows) >= _REMEMBERED:
                    self._by_rows.clear()
                self._by_rows[rows] = self._share(rows, link)
            return self._by_rows[rows]

    def _share(self, rows: int, link: Link) -> tuple[MicroBatch, ...]:
        shared = share_batch(self._plans, rows, self._planned_rows, link, self._speeds)
        return shared.micro_batches if shared.is_certain else ()


def _differ(link: Link, other: Link) -> bool:
    return _change(link.up_bps, other.up_bps) or _change(link.down_bps, other.down_bps)


def _speeds_differ(speeds: Speeds, other: Speeds) -> bool:
    waits = speeds.server_wait_s + _LEAST_S, other.server_wait_s + _LEAST_S
    pairs = ((speeds.device, other.device), (speeds.server, other.server), waits)
    return any(_change(*pair) for pair in pairs)


def _change(value: float, other: float) -> bool:
    return not other / _CHANGED < value < other * _CHANGED


MakeInference: TypeAlias = Callable[[Mapping[str, Any], FramePlan], PendingInference]


class SharedBatch:
    """One batch in micro-batches, each an inference of its own; used like PendingInference."""

    def __init__(
        self,
        micro_batches: Sequence[MicroBatch],
        feeds: Mapping[str, Array],
        make: MakeInference,
        spare_plan: int | None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            micro_batches: in the order of the rows; those that use the server first.
            feeds: the inputs, each with a row for each row of the batch.
            make: makes an inference of inputs.
            spare_plan: a plan that needs no server, for rows whose server is lost; None: none.
        """
        self._make = make
        self._spare_plan = spare_plan
        ends = list(accumulate(each.rows for each in micro_batches))
        self._rows = [
            slice(end - each.rows, end) for each, end in zip(micro_batches, ends, strict=True)
        ]
        self._feeds = feeds
        self._inferences = [self._inference(n, each.plan) for n, each in enumerate(micro_batches)]

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
            for number, each in enumerate(self._inferences):
                each.reserved_s = self._usual_s(number + 1)
                each.start()
        except BaseException:
            self.cancel("another micro-batch of the batch failed")
            raise

    def finish(self) -> list[Any]:
        """Wait for all rows of each output, in order; errors as `OffloadSession.run`."""
        try:
            outputs = [self._finish(number) for number in range(len(self._inferences))]
        except BaseException:
            self.cancel("another micro-batch of the batch failed")
            raise
        return [np.concatenate(values) for values in zip(*outputs, strict=True)]

    def _finish(self, number: int) -> list[Any]:
        each = self._inferences[number]
        each.reserved_s = self._usual_s(number + 1)
        try:
            return each.finish()
        except (ServerError, BundleError):
            if self._spare_plan is None:
                raise
        here = self._inferences[number] = self._inference(number, self._spare_plan)
        here.until_s = each.until_s
        here.start()
        return here.finish()

    def _usual_s(self, first: int) -> float:
        """Usual seconds to compute here what is missing of the micro-batches from this one on."""
        return sum(each.usual_s or 0.0 for each in self._inferences[first:])

    @property
    def timeline(self) -> Timeline:
        """What was measured so far of all micro-batches, in seconds after the batch began."""
        begun_s = self._inferences[0].frame.started_s
        return Timeline.of(
            replace(span, start_s=span.start_s + later_s, end_s=span.end_s + later_s)
            for each in self._inferences
            for later_s in (each.frame.started_s - begun_s,)
            for span in each.timeline.spans
        )

    def cancel(self, why: str) -> None:
        """Stop it, here and on the server; `start` and `finish` then raise InputError."""
        for each in self._inferences:
            each.cancel(why)
