"""Timelines as Gantt charts (text, SVG) and as Chrome traces."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from offload.planning.plan import Plan, Side
from offload.report.svg import Axis, document, label, legend, rect, time_unit
from offload.scheduling.timeline import Lane, Span, Timeline
from offload.units import format_s

COLOURS: Mapping[Lane, str] = {
    Lane.DEVICE: "#0072b2",
    Lane.UPLINK: "#e69f00",
    Lane.SERVER: "#009e73",
    Lane.DOWNLINK: "#cc79a7",
}
"""Colour of each lane; distinguishable for colour-blind readers (Okabe and Ito 2008)."""

ENCODE = "encode "
"""The names of spans in which the device encodes a tensor begin with this."""
_ENCODING = "#56b4e9"

_FILLS = "█▓"
_LABEL = max(len(lane) for lane in Lane) + 1
_LEFT, _RIGHT, _PLOT = 84, 24, 692
_ROW, _BAR, _HEAD = 30, 22, 28
_MICROSECONDS = 1e6


def gantt_text(timelines: Mapping[str, Timeline], width: int = 80) -> str:
    """A text chart of at most `width` columns: a heading and one row a lane for each timeline.

    Adjacent spans of a lane alternate between two fills; a span shows its name if it fits.
    """
    cells = max(width - _LABEL, 10)
    end_s = max((timeline.makespan_s for timeline in timelines.values()), default=0.0)
    axis = Axis.from_zero(end_s, 0, cells)
    lines: list[str] = []
    for name, timeline in timelines.items():
        lines.append(_heading(name, timeline))
        for lane in _lanes(timelines):
            row = [" "] * cells
            for number, span in enumerate(_spans(timeline, lane)):
                start = min(round(axis.at(span.start_s)), cells - 1)
                stop = max(round(axis.at(span.end_s)), start + 1)
                fitting = span.name if len(span.name) <= stop - start - 2 else ""
                row[start:stop] = fitting.center(stop - start, _FILLS[number % 2])
            lines.append(f"{lane.value:<{_LABEL}}{''.join(row)}".rstrip())
    unit, unit_s = time_unit(axis.high)
    ticks = ""
    for tick in axis.ticks(max(cells // 12, 1)):
        start, value = round(axis.at(tick)), f"{tick / unit_s:.6g}"
        if start >= len(ticks) and start + len(value) < cells - len(unit):
            ticks = ticks.ljust(start) + value + " "
    return "\n".join([*lines, f"{'':{_LABEL}}{ticks.rstrip()} {unit}"])


def _heading(name: str, timeline: Timeline) -> str:
    marks = "".join(f"; {mark.name}" for mark in timeline.marks)
    return f"{name}: {format_s(timeline.makespan_s)}{marks}"


def _spans(timeline: Timeline, lane: Lane) -> list[Span]:
    """The spans of a lane without marks."""
    marks = timeline.marks
    return [span for span in timeline.lane(lane) if span not in marks]


def _lanes(timelines: Mapping[str, Timeline]) -> list[Lane]:
    used = {span.lane for timeline in timelines.values() for span in timeline.spans}
    return [lane for lane in Lane if lane in used or lane in (Lane.DEVICE, Lane.UPLINK)]


def named(timeline: Timeline, plan: Plan) -> Timeline:
    """The timeline of a plan, predicted or measured, with encoding named `encode TENSOR`.

    A plan's own timeline calls the time to encode by the tensor's name, and the segment that only
    encodes by its number.
    """
    names = {send.wire: f"{ENCODE}{send.tensor}" for send in plan.uploads}
    for segment in plan.on(Side.DEVICE):
        if not segment.layers and segment.outputs and segment.outputs[0] in names:
            names[segment.id] = names[segment.outputs[0]]
    return Timeline.of(
        replace(span, name=names.get(span.name, span.name)) if span.lane is Lane.DEVICE else span
        for span in timeline.spans
    )


def gantt_svg(timelines: Mapping[str, Timeline], title: str, end_s: float = 0.0) -> str:
    """A self-contained SVG document, 800 units wide: title, legend, one panel a timeline, axis.

    Hovering over a bar shows its layer and times; a bar is labelled if the name fits.

    Args:
        timelines: by heading.
        title: of the chart.
        end_s: where the axis ends at least, for several charts with one axis.
    """
    lanes = _lanes(timelines)
    end_s = max([end_s, *(timeline.makespan_s for timeline in timelines.values())])
    axis = Axis.from_zero(end_s, _LEFT, _LEFT + _PLOT)
    width = _LEFT + _PLOT + _RIGHT
    entries = [(COLOURS[lane], lane.value) for lane in lanes]
    spans = [span for timeline in timelines.values() for span in timeline.spans]
    if any(_colour(span) == _ENCODING for span in spans):
        entries.insert(1, (_ENCODING, "encode"))
    parts, y = legend(entries, width, 38)
    for name, timeline in timelines.items():
        heading = _heading(name, timeline)
        parts.append(label(_LEFT, y + 20, heading, "name"))
        for number, lane in enumerate(lanes):
            top = y + _HEAD + number * _ROW
            parts.append(label(_LEFT - 8, top + 15, lane.value, "end"))
            for span in _spans(timeline, lane):
                parts += _svg_bar(span, top, axis)
        y += _HEAD + len(lanes) * _ROW + 10
    parts.append(f'<path d="M{_LEFT} {y}H{_LEFT + _PLOT}" class="axis"/>')
    unit, unit_s = time_unit(axis.high)
    for tick in axis.ticks():
        x_tick = axis.at(tick)
        parts.append(f'<path d="M{x_tick:.2f} {y}v5" class="axis"/>')
        parts.append(label(x_tick, y + 18, f"{tick / unit_s:.6g}", "mid"))
    middle = _LEFT + _PLOT // 2
    parts.append(label(middle, y + 36, f"time ({unit})", "mid"))
    return document(width, y + 48, title, parts)


def _colour(span: Span) -> str:
    return _ENCODING if span.name.startswith(ENCODE) else COLOURS[span.lane]


def _svg_bar(span: Span, y: int, axis: Axis) -> list[str]:
    x, width = axis.at(span.start_s), axis.at(span.end_s) - axis.at(span.start_s)
    hover = f"{span.name}: {format_s(span.start_s)} to {format_s(span.end_s)}"
    parts = [rect(x, y, width, _BAR, _colour(span), hover, "bar")]
    if len(span.name) * 7 + 4 <= width:
        middle = x + width / 2
        parts.append(label(middle, y + 15, span.name, "in"))
    return parts


def chrome_trace(timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    """The JSON object of the Trace Event Format: a process per timeline, a thread per lane."""
    events: list[dict[str, Any]] = []
    tids = {lane: tid for tid, lane in enumerate(Lane, start=1)}
    for pid, (name, timeline) in enumerate(timelines.items(), start=1):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        for lane, tid in tids.items():
            thread = {"ph": "M", "pid": pid, "tid": tid}
            events.append({**thread, "name": "thread_name", "args": {"name": lane.value}})
            events.append({**thread, "name": "thread_sort_index", "args": {"sort_index": tid}})
        for mark in timeline.marks:
            place = {"ts": mark.start_s * _MICROSECONDS, "pid": pid, "tid": tids[mark.lane]}
            events.append({"ph": "i", "s": "p", "name": mark.name, "cat": "plan", **place})
        for span in (span for lane in Lane for span in _spans(timeline, lane)):
            times = {"ts": span.start_s * _MICROSECONDS, "dur": span.duration_s * _MICROSECONDS}
            place = {"pid": pid, "tid": tids[span.lane]}
            events.append({"ph": "X", "name": span.name, "cat": span.lane.value, **times, **place})
    return {"traceEvents": events, "displayTimeUnit": "ms"}
