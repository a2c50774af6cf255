"""Timelines as a Chrome trace, to be opened in chrome://tracing or ui.perfetto.dev."""

from collections.abc import Iterator, Mapping
from typing import Any

from offload.schedule.timeline import Lane, Timeline

_MICROSECONDS = 1e6


def chrome_trace(timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    """The JSON object of the Trace Event Format: a process per timeline, a thread per lane."""
    events: list[dict[str, Any]] = []
    for pid, (name, timeline) in enumerate(timelines.items(), start=1):
        events += _names(pid, name)
        events += _spans(pid, timeline)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(pid: int, name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    for tid, lane in enumerate(Lane, start=1):
        thread = {"ph": "M", "pid": pid, "tid": tid}
        yield {**thread, "name": "thread_name", "args": {"name": lane.value}}
        yield {**thread, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _spans(pid: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    tids = {lane: tid for tid, lane in enumerate(Lane, start=1)}
    marks = timeline.marks
    for mark in marks:
        where = {"ts": mark.start_s * _MICROSECONDS, "pid": pid, "tid": tids[mark.lane]}
        yield {"ph": "i", "s": "p", "name": mark.name, "cat": "plan", **where}
    for span in timeline.spans:
        if span in marks:
            continue
        yield {
            "ph": "X",
            "name": span.name,
            "cat": span.lane.value,
            "ts": span.start_s * _MICROSECONDS,
            "dur": span.duration_s * _MICROSECONDS,
            "pid": pid,
            "tid": tids[span.lane],
        }
