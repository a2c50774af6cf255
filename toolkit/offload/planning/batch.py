"""Share the rows of one batch among plans, so that device, link and server work at once.

The plans compute micro-batches of the batch: the frames of a stream that is over soon, so the
shares are those with the shortest makespan, not with the highest rate. The seconds of a micro-batch
follow from the forecasts for a whole batch: compute and bytes are proportional to the rows, and
what the link takes for each message is exact.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeAlias

from offload.costs.link import Link
from offload.planning.plan import (
    PLANNED_SPEEDS,
    PREDICTION_ERROR,
    SEGMENT_ERROR,
    SERVER_CALL_S,
    Forecast,
    Plan,
    Speeds,
)

# Micro-batches that use the server. A server takes 8 frames of a session at once.
_COUNTS = (1, 2, 3, 4, 6, 8)
# More micro-batches must shorten the makespan by this share.
_WORTH = 0.01


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Consecutive rows of a batch that one plan computes in one inference."""

    plan: int
    rows: int


@dataclass(frozen=True, slots=True)
class BatchShares:
    """How plans share the rows of a batch.

    Attributes:
        micro_batches: in the order of the rows, and in the order in which the device begins them:
            those that use the server, then at most one that does not.
        latency_s: predicted seconds from the batch to the last output.
        single: index of the plan that is fastest alone.
        single_s: predicted seconds of that plan with the whole batch.
        is_certain: whether sharing gains more than the prediction may be wrong.
    """

    micro_batches: tuple[MicroBatch, ...]
    latency_s: float
    single: int
    single_s: float
    is_certain: bool

    @property
    def ratio(self) -> float:
        """How many times faster the shared batch is than the best plan alone."""
        return self.single_s / self.latency_s if self.latency_s else 1.0

    def rows_by_plan(self, plans: int) -> tuple[int, ...]:
        """The rows that each of `plans` plans computes."""
        rows = [0] * plans
        for each in self.micro_batches:
            rows[each.plan] += each.rows
        return tuple(rows)


@dataclass(frozen=True, slots=True)
class _Times:
    """The seconds that a micro-batch takes of each resource.

    Attributes:
        steps: seconds on the device, then of the upload of what they computed.
        server_s, download_s: all seconds of the server and of the downlink.
        uses_server: whether its plan does.
    """

    steps: tuple[tuple[float, float], ...]
    server_s: float
    download_s: float
    uses_server: bool

    @classmethod
    def of(
        cls, forecast: Forecast, uses_server: bool, share: float, link: Link, speeds: Speeds
    ) -> "_Times":
        """As `forecast.scaled(share).on(link, speeds)`, without making the instances."""
        work = forecast.work
        steps = (
            (
                share * speeds.device * job.compute_s,
                0.0 if size is None else link.upload_s(math.ceil(share * size)),
            )
            for job, size in zip(work.jobs, forecast.upload_bytes, strict=True)
        )
        server_s = work.server_s + sum(job.compute_s for job in work.server_jobs)
        downloads = (link.download_s(math.ceil(share * size)) for size in forecast.download_bytes)
        return cls(
            tuple(steps),
            share * speeds.server * server_s + (speeds.server_wait_s if server_s else 0.0),
            share * forecast.download_codec_s + sum(downloads),
            uses_server,
        )

    @property
    def seconds(self) -> tuple[float, float, float, float]:
        """Of device, uplink, server and downlink."""
        device_s = sum(compute_s for compute_s, _ in self.steps)
        uplink_s = sum(upload_s for _, upload_s in self.steps)
        return device_s, uplink_s, self.server_s, self.download_s


_TimesOf: TypeAlias = Callable[[int, int], _Times]  # of a plan with a number of rows

# When device, uplink, server and downlink are free again.
_Clock: TypeAlias = tuple[float, float, float, float]
_START: _Clock = (0.0, 0.0, 0.0, 0.0)


def _run(clock: _Clock, times: _Times) -> tuple[_Clock, float]:
    """The clock after a micro-batch, and when that one is done.

    Each resource takes micro-batches one after the other. The server begins when all uploads of
    one have arrived.
    """
    device_s, uplink_s, served_s, downlink_s = clock
    for compute_s, upload_s in times.steps:
        device_s += compute_s
        if upload_s:
            uplink_s = max(uplink_s, device_s) + upload_s
    if not times.uses_server:
        return (device_s, uplink_s, served_s, downlink_s), device_s
    served_s = max(served_s, uplink_s) + times.server_s
    downlink_s = max(downlink_s, served_s) + times.download_s
    return (device_s, uplink_s, served_s, downlink_s), max(device_s, downlink_s)


def share_batch(
    plans: Sequence[Plan],
    rows: int,
    planned_rows: int,
    link: Link,
    speeds: Speeds = PLANNED_SPEEDS,
) -> BatchShares:
    """As `share_rows`, of plans; one with a lossy encoding computes the whole batch or nothing.

    Sharing then changes no result, and must also gain more than the prediction may be wrong
    against the fastest lossy plan.
    """
    whole = [plan.forecast.scaled(rows / planned_rows) for plan in plans]
    alone_s = [forecast.latency_s(link, speeds) for forecast in whole]
    single = min(range(len(plans)), key=lambda plan: (alone_s[plan], plan))
    single_s = alone_s[single]
    lossless = [number for number, plan in enumerate(plans) if plan.is_lossless]
    if not lossless:
        return BatchShares((MicroBatch(single, rows),), single_s, single, single_s, False)
    members = [plans[number] for number in lossless]
    forecasts = [plan.forecast for plan in members]
    needs_server = [not plan.is_local for plan in members]
    shared = share_rows(forecasts, needs_server, rows, planned_rows, link, speeds)
    micro_batches = tuple(replace(m, plan=lossless[m.plan]) for m in shared.micro_batches)
    margin_s = PREDICTION_ERROR * (single_s + shared.latency_s) + SERVER_CALL_S
    is_faster = single in lossless or single_s - shared.latency_s > margin_s
    is_certain = shared.is_certain and is_faster
    return BatchShares(micro_batches, shared.latency_s, single, single_s, is_certain)


def share_rows(
    forecasts: Sequence[Forecast],
    needs_server: Sequence[bool],
    rows: int,
    planned_rows: int,
    link: Link,
    speeds: Speeds = PLANNED_SPEEDS,
) -> BatchShares:
    """The shares of a batch's rows with the shortest makespan that is found.

    Rows that use the server go in 1 to 8 micro-batches of nearly equal size, as in lot streaming
    with equal sublots (Trietsch & Baker 1993): each by the plan that answers it first (list
    scheduling, Graham 1969), or all by one plan; then the plan of one micro-batch at a time is
    changed if that helps. The device computes the other rows in one micro-batch after its work for
    those. The more rows use the server, the later they end and the sooner the device ends, so the
    best number is found by bisection. Further micro-batches must gain 1 %.
    O(plans^2 log rows) timelines of at most 9 micro-batches.

    Args:
        forecasts: of the plans that may take part, each for `planned_rows` rows; at least one.
        needs_server: whether each plan uses the server.
        rows: of the batch, at least 1.
        planned_rows: of the forecasts.
        link: the link now.
        speeds: of both sides now.
    """

    @cache
    def times_of(plan: int, count: int) -> _Times:
        share = count / planned_rows
        return _Times.of(forecasts[plan], needs_server[plan], share, link, speeds)

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
    best: tuple[MicroBatch, ...] = (MicroBatch(single, rows),)
    best_s = alone_s[single]
    for count in (number for number in _COUNTS if number <= rows):
        for plans in groups:
            divide = partial(_divide, rows, count, plans, local, times_of)
            for divided in _around_best(divide, times_of, rows if local is None else 1, rows):
                tried, end_s = _improved(divided, plans, times_of)
                if end_s < best_s * (1 - _WORTH if len(tried) > len(best) else 1):
                    best, best_s = tried, end_s
    margin_s = _margin_s([times_of(each.plan, each.rows) for each in best], times_of(single, rows))
    return BatchShares(best, best_s, single, alone_s[single], alone_s[single] - best_s > margin_s)


def _makespan_s(micro_batches: Iterable[MicroBatch], times_of: _TimesOf) -> float:
    """Seconds until all micro-batches are done, begun in this order."""
    clock, end_s = _START, 0.0
    for each in micro_batches:
        clock, done_s = _run(clock, times_of(each.plan, each.rows))
        end_s = max(end_s, done_s)
    return end_s


def _divide(
    rows: int,
    count: int,
    plans: Sequence[int],
    local: int | None,
    times_of: _TimesOf,
    sent: int,
) -> tuple[MicroBatch, ...]:
    """Send rows in some micro-batches, each by the plan that answers it first; keep the others.

    Args:
        rows: of the batch.
        count: micro-batches that are sent; fewer if there are fewer rows.
        plans: those that use the server.
        local: the plan of the other rows; None: there is none.
        times_of: the times of a plan with a number of rows.
        sent: rows that are sent.
    """
    clock, micro_batches = _START, []
    for size in filter(None, _even(sent, count)):
        after = {plan: _run(clock, times_of(plan, size)) for plan in plans}
        plan, (clock, _) = min(after.items(), key=lambda item: item[1][1])
        micro_batches.append(MicroBatch(plan, size))
    if local is not None and sent < rows:
        micro_batches.append(MicroBatch(local, rows - sent))
    return tuple(micro_batches)


def _improved(
    micro_batches: tuple[MicroBatch, ...], plans: Sequence[int], times_of: _TimesOf
) -> tuple[tuple[MicroBatch, ...], float]:
    """Change the plan of each micro-batch that is sent, one after the other, if that helps.

    Returns:
        The micro-batches and their makespan.
    """
    best, best_s = micro_batches, _makespan_s(micro_batches, times_of)
    for number, each in enumerate(micro_batches):
        for plan in plans if each.plan in plans else ():
            tried = (*best[:number], replace(each, plan=plan), *best[number + 1 :])
            end_s = _makespan_s(tried, times_of) if plan != best[number].plan else best_s
            if end_s < best_s:
                best, best_s = tried, end_s
    return best, best_s


def _even(rows: int, count: int) -> list[int]:
    """Sizes that differ by at most 1, the last one the smallest: less is left to do after it."""
    size, larger = divmod(rows, count)
    return [size + (number < larger) for number in range(count)]


def _around_best(
    divide: Callable[[int], tuple[MicroBatch, ...]], times_of: _TimesOf, least: int, most: int
) -> Iterable[tuple[MicroBatch, ...]]:
    """The neighbouring divisions between which the device stops being the last to end.

    `least`, `most`: rows that are sent.
    """

    def sent_end_last(sent: int) -> bool:
        tried = divide(sent)
        return sent == most or _makespan_s(tried[:-1], times_of) >= _makespan_s(tried, times_of)

    first = least + bisect_left(range(least, most + 1), True, key=sent_end_last)
    return map(divide, range(max(first - 1, least), min(first, most) + 1))


def _margin_s(shared: Sequence[_Times], single: _Times) -> float:
    """How wrong the predicted difference between a shared batch and one plan may be.

    The planner's rule (`planner.error_margin_s`) on the seconds of each resource: the seconds in
    which they differ, calls of the server that only one of them makes, and each further call.
    """
    margin_s = 0.0
    for resource, alone_s in enumerate(single.seconds):
        together_s = sum(times.seconds[resource] for times in shared)
        margin_s += PREDICTION_ERROR * abs(together_s - alone_s)
    calls = sum(times.uses_server for times in shared)
    if bool(calls) != single.uses_server:
        margin_s += SERVER_CALL_S
    server_s = sum(times.server_s for times in shared)
    return margin_s + SEGMENT_ERROR * server_s * max(calls - 1, 0)
