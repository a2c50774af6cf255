"""Share the rows of one batch among plans, so that device, link and server work at once.

Rows are the frames of a small stream that is over soon: the plans compute parts of the batch, and
the shares have the shortest makespan, not the highest rate. The figures of a part follow from the
forecasts, which were made for a batch of some rows: compute and bytes are proportional to the
rows, and the link's time for each message is exact.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

from offload.costs.link import Link
from offload.planning.plan import (
    PLANNED_SPEEDS,
    PREDICTION_ERROR,
    SEGMENT_ERROR,
    SERVER_CALL_S,
    Forecast,
    ResourceUse,
    Speeds,
)
from offload.scheduling.instance import Instance

# Parts that use the server. A server takes 8 frames of a session at once.
_MESSAGES = (1, 2, 3, 4, 6, 8)
# More parts must shorten the makespan by this share.
_WORTH = 0.01


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Consecutive rows of a batch that one plan computes in one inference."""

    plan: int
    rows: int


@dataclass(frozen=True, slots=True)
class BatchShares:
    """How plans share the rows of a batch.

    Attributes:
        parts: in the order of the rows, and in the order in which the device begins them: those
            that use the link, then at most one that needs the device only.
        latency_s: predicted seconds from the batch to the last output.
        single: index of the plan that is fastest alone.
        single_s: predicted seconds of that plan with the whole batch.
        is_certain: whether the parts gain more than the prediction may be wrong.
    """

    parts: tuple[BatchPart, ...]
    latency_s: float
    single: int
    single_s: float
    is_certain: bool

    @property
    def ratio(self) -> float:
        """How many times faster the parts are than the best plan alone."""
        return self.single_s / self.latency_s if self.latency_s else 1.0

    def rows_by_plan(self, plans: int) -> tuple[int, ...]:
        """The rows that each of `plans` plans computes."""
        return tuple(
            sum(part.rows for part in self.parts if part.plan == plan) for plan in range(plans)
        )


# When device, uplink, server and downlink are free again.
_Clock: TypeAlias = tuple[float, float, float, float]
_START: _Clock = (0.0, 0.0, 0.0, 0.0)


def _run(clock: _Clock, work: Instance, *, uses_server: bool) -> tuple[_Clock, float]:
    """The clock after a part, which each resource takes behind the parts before it, and its end.

    The server begins when all uploads of the part have arrived; parts overlap, not their layers.
    """
    device_s, uplink_s, served_s, downlink_s = clock
    for job in work.jobs:
        device_s += job.compute_s
        if job.upload_s:
            uplink_s = max(uplink_s, device_s) + job.upload_s
    if not uses_server:
        return (device_s, uplink_s, served_s, downlink_s), device_s
    server_s = work.server_s + sum(job.compute_s for job in work.server_jobs)
    served_s = max(served_s, uplink_s) + server_s
    downlink_s = max(downlink_s, served_s) + work.download_s
    return (device_s, uplink_s, served_s, downlink_s), max(device_s, downlink_s)


def batch_makespan_s(works: Iterable[tuple[Instance, bool]]) -> float:
    """Seconds until all parts are done, begun in this order.

    `works`: each part's jobs, and whether it uses the server. O(jobs).
    """
    clock, end_s = _START, 0.0
    for work, uses_server in works:
        clock, done_s = _run(clock, work, uses_server=uses_server)
        end_s = max(end_s, done_s)
    return end_s


def share_rows(
    forecasts: Sequence[Forecast],
    needs_server: Sequence[bool],
    rows: int,
    planned_rows: int,
    link: Link,
    speeds: Speeds = PLANNED_SPEEDS,
) -> BatchShares:
    """The shares of a batch's rows with the shortest makespan that is found.

    Rows that use the server go in 1 to 8 parts of nearly equal size, as in lot streaming with
    equal sublots (Trietsch & Baker 1993); each part to the plan that answers it first (list
    scheduling, Graham 1969), or all to one plan. The device computes the other rows in one part
    behind its work for those. The more rows use the server, the later these end and the sooner
    the device ends, so the best number is found by bisection. Fewer parts are taken if more gain
    less than 1 %. O(plans^2 log rows) timelines of at most 9 parts.

    Args:
        forecasts: of the plans that may take part, each for `planned_rows` rows; at least one.
        needs_server: whether each plan uses the server.
        rows: of the batch, at least 1.
        planned_rows: of the forecasts.
        link: the link now.
        speeds: of both sides now.
    """

    @cache
    def work(plan: int, count: int) -> Instance:
        return forecasts[plan].scaled(count / planned_rows).on(link, speeds)

    def makespan_s(parts: Sequence[BatchPart]) -> float:
        return batch_makespan_s((work(p.plan, p.rows), needs_server[p.plan]) for p in parts)

    whole = [forecast.scaled(rows / planned_rows) for forecast in forecasts]
    alone_s = [forecast.latency_s(link, speeds) for forecast in whole]
    single = min(range(len(forecasts)), key=lambda plan: (alone_s[plan], plan))
    remote = tuple(plan for plan, needs in enumerate(needs_server) if needs)
    local = min(
        (plan for plan, needs in enumerate(needs_server) if not needs),
        key=alone_s.__getitem__,
        default=None,
    )
    groups = dict.fromkeys([*((plan,) for plan in remote), remote]) if remote else {}
    best: tuple[BatchPart, ...] = (BatchPart(single, rows),)
    best_s = alone_s[single]
    for count in (number for number in _MESSAGES if number <= rows):
        for plans in groups:
            divide = partial(_divide, rows, count, plans, local, work)
            least = rows if local is None else 1
            for sent in _around_best(divide, makespan_s, least, rows):
                parts = divide(sent)
                end_s = makespan_s(parts)
                if end_s < best_s * (1 - _WORTH if len(parts) > len(best) else 1):
                    best, best_s = parts, end_s
    used = [(work(part.plan, part.rows), needs_server[part.plan]) for part in best]
    margin_s = _margin_s(used, work(single, rows), uses_server=needs_server[single])
    return BatchShares(best, best_s, single, alone_s[single], alone_s[single] - best_s > margin_s)


def _even(rows: int, parts: int) -> list[int]:
    """Sizes of parts that differ by at most 1, the last one the smallest: less is left to do."""
    size, larger = divmod(rows, parts)
    return [size + (number < larger) for number in range(parts)]


def _divide(
    rows: int,
    count: int,
    plans: Sequence[int],
    local: int | None,
    work: Callable[[int, int], Instance],
    sent: int,
) -> tuple[BatchPart, ...]:
    """Send rows in `count` parts, each by the plan that answers it first; keep the others.

    Args:
        rows: of the batch.
        count: parts that are sent; fewer if there are fewer rows.
        plans: those that use the server.
        local: the plan of the other rows; None: there is none.
        work: the jobs of a plan with a number of rows.
        sent: rows that are sent.
    """
    clock, parts = _START, []
    for size in filter(None, _even(sent, count)):
        after = {plan: _run(clock, work(plan, size), uses_server=True) for plan in plans}
        plan = min(plans, key=lambda plan: after[plan][1])
        clock = after[plan][0]
        parts.append(BatchPart(plan, size))
    if local is not None and sent < rows:
        parts.append(BatchPart(local, rows - sent))
    return tuple(parts)


def _around_best(
    divide: Callable[[int], Sequence[BatchPart]],
    makespan_s: Callable[[Sequence[BatchPart]], float],
    least: int,
    most: int,
) -> Iterable[int]:
    """The numbers of rows to send before and after which the parts that are sent end last."""

    def sent_ends_last(sent: int) -> bool:
        tried = divide(sent)
        return sent == most or makespan_s(tried[:-1]) >= makespan_s(tried)

    first = least + bisect_left(range(least, most + 1), True, key=sent_ends_last)
    return range(max(first - 1, least), min(first, most) + 1)


def _margin_s(
    parts: Sequence[tuple[Instance, bool]], single: Instance, *, uses_server: bool
) -> float:
    """How wrong the predicted difference between the parts and one plan may be.

    The planner's rule (`planner.error_margin_s`) on the seconds of each resource: the seconds in
    which they differ, a call of the server that only one of them makes, and each further part.
    """
    uses = [ResourceUse.of(work).seconds for work, _ in parts]
    together_s: list[float] = [sum(column) for column in zip(*uses, strict=True)]
    pairs = zip(together_s, ResourceUse.of(single).seconds, strict=True)
    margin_s = PREDICTION_ERROR * sum(abs(shared - alone) for shared, alone in pairs)
    calls = sum(needs for _, needs in parts)
    if bool(calls) != uses_server:
        margin_s += SERVER_CALL_S
    server_s = sum(seconds[2] for seconds in uses)
    return margin_s + SEGMENT_ERROR * server_s * max(calls - 1, 0)
