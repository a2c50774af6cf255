"""Shares of a batch's rows against every way to share them."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from offload.costs.link import Link
from offload.planning.batch import MicroBatch, share_rows
from offload.planning.plan import Forecast, Speeds
from offload.scheduling.instance import Instance, Job

LINK = Link(8e6, 8e6, 0.001, 0.001)
ROWS = 4  # of the forecasts


def local(device_s: float) -> Forecast:
    return Forecast(Instance((Job("all", device_s),)), (None,), ())


def remote(device_s: float, up_bytes: int, server_s: float, down_bytes: int) -> Forecast:
    """Some seconds on the device, one upload, some on the server, one download."""
    work = Instance((Job("first", device_s, 1.0),), server_s=server_s, download_s=1.0)
    return Forecast(work, (up_bytes,), (down_bytes,))


def ends_s(micro_batches: Sequence[MicroBatch], forecasts: Sequence[Forecast]) -> float:
    """When all micro-batches are done: each of four machines takes them in turn (a flow shop)."""
    ends = [[0.0] * 4]
    for each in micro_batches:
        factor, forecast = each.rows / ROWS, forecasts[each.plan]
        (job,), (size,) = forecast.work.jobs, forecast.upload_bytes
        stages = [factor * job.compute_s, 0.0, 0.0, 0.0]
        if size is not None:
            (answer,) = forecast.download_bytes
            stages[1] = LINK.upload_s(-(-size * each.rows // ROWS))
            stages[2] = factor * forecast.work.server_s
            stages[3] = LINK.download_s(-(-answer * each.rows // ROWS))
        ready, row = 0.0, []
        for free, seconds in zip(ends[-1], stages, strict=True):
            ready = max(ready, free) + seconds if seconds else ready
            row.append(ready if seconds else free)
        ends.append(row)
    return max(ends[-1])


def ways(rows: int, plans: int, keep_last: int | None) -> Iterator[tuple[MicroBatch, ...]]:
    """Every way to divide rows; plan `keep_last` gets one micro-batch, at the end."""
    if keep_last is not None and rows:
        yield (MicroBatch(keep_last, rows),)
    if not rows:
        yield ()
    for size in range(1, rows + 1):
        for plan in range(plans):
            if plan != keep_last:
                for rest in ways(rows - size, plans, keep_last):
                    yield (MicroBatch(plan, size), *rest)


bytes_ = st.integers(1, 40).map(lambda number: 1000 * number)
seconds = st.integers(0, 40).map(lambda number: number / 1000)
remotes = st.builds(remote, seconds, bytes_, seconds, bytes_)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.lists(remotes, min_size=1, max_size=2))
@example(3, 18, [remote(0.0, 1000, 0.0, 9000), remote(0.005, 1000, 0.0, 2000)])
def test_shares_are_nearly_the_best_of_all(rows: int, ms: int, others: list[Forecast]) -> None:
    forecasts = [local(ms / 1000), *others]
    needs = [False, *(True for _ in others)]
    shared = share_rows(forecasts, needs, rows, ROWS, LINK)
    assert sum(each.rows for each in shared.micro_batches) == rows
    assert all(each.rows > 0 for each in shared.micro_batches)
    assert all(each.plan != 0 for each in shared.micro_batches[:-1]), "the device's rows come last"
    assert shared.latency_s == pytest.approx(ends_s(shared.micro_batches, forecasts))
    every = [ends_s(way, forecasts) for way in ways(rows, len(forecasts), 0)]
    best_s = min(every)
    assert shared.latency_s >= best_s - 1e-9
    assert shared.latency_s <= 1.15 * best_s
    alone_s = [ends_s([MicroBatch(plan, rows)], forecasts) for plan in range(len(forecasts))]
    assert shared.single_s == pytest.approx(min(alone_s))
    assert shared.latency_s <= shared.single_s + 1e-9


@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 40))
def test_one_plan_for_the_server_gets_the_best_number_of_rows(
    rows: int, ms: int, kilobytes: int
) -> None:
    forecasts = [local(ms / 1000), remote(0.0, 1000 * kilobytes, 0.001, 100)]
    shared = share_rows(forecasts, [False, True], rows, ROWS, LINK)
    every = []
    for sent in range(rows + 1):
        for count in range(1, min(sent, 8) + 1) or (0,):
            sizes = [len(range(first, sent, count)) for first in range(count)]
            kept = [MicroBatch(0, rows - sent)] if sent < rows else []
            every.append(ends_s([*(MicroBatch(1, size) for size in sizes), *kept], forecasts))
    assert shared.latency_s <= 1.02 * min(every) + 1e-9


def test_a_batch_of_lines() -> None:
    """93 ms on the device, 208 ms of upload: the bound is 64 ms."""
    forecasts = [local(0.093), remote(0.0, 208_000, 0.01, 100)]
    shared = share_rows(forecasts, [False, True], 16, 16, Link(8e6, 8e6))
    assert shared.rows_by_plan(2) == (11, 5)
    assert shared.single == 0
    assert shared.latency_s == pytest.approx(0.065, rel=0.05)
    assert shared.ratio > 1.35
    assert shared.is_certain


def test_a_small_gain_is_not_certain() -> None:
    forecasts = [local(0.093), remote(0.0, 4_000_000, 0.01, 100)]
    shared = share_rows(forecasts, [False, True], 16, 16, Link(8e6, 8e6))
    assert not shared.is_certain


def test_one_plan_alone_sends_a_batch_in_parts() -> None:
    shared = share_rows([remote(0.0, 100_000, 0.1, 100)], [True], 8, 8, Link(8e6, 8e6))
    assert len(shared.micro_batches) > 1
    assert shared.ratio > 1.5
    assert shared.is_certain


def test_the_row_that_cannot_be_shared() -> None:
    shared = share_rows([local(0.01), remote(0.0, 10_000, 0.0, 10)], [False, True], 1, ROWS, LINK)
    assert shared.micro_batches == (MicroBatch(0, 1),)
    assert shared.ratio == 1
    assert not shared.is_certain


def test_speeds_change_the_shares() -> None:
    forecasts = [local(0.1), remote(0.0, 100_000, 0.01, 100)]
    link = Link(8e6, 8e6)
    planned = share_rows(forecasts, [False, True], 16, 16, link)
    hot = share_rows(forecasts, [False, True], 16, 16, link, Speeds(device=3.0))
    assert hot.rows_by_plan(2)[0] < planned.rows_by_plan(2)[0]


def test_a_forecast_for_half_the_rows() -> None:
    half = remote(0.2, 10_001, 0.1, 50).scaled(0.5)
    assert half.upload_bytes == (5001,)
    assert half.use(LINK).seconds == pytest.approx(
        (0.1, LINK.upload_s(5001), 0.05, LINK.download_s(25))
    )
