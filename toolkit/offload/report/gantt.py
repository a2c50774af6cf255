"""Timelines as Gantt charts (text, SVG) and as Chrome traces."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape

from offload.report.svg import Axis
from offload.scheduling.timeline import Lane, Span, Timeline
from offload.units import format_s

COLOURS: Mapping[Lane, str] = {
    Lane.DEVICE: "#0072b2",
    Lane.UPLINK: "#e69f00",
    Lane.SERVER: "#009e73",
    Lane.DOWNLINK: "#cc79a7",
}
"""Fixed colour of each lane, told apart by colour-blind readers too (Okabe and Ito 2008)."""

_FILLS = "█▓"
_LABEL = max(len(lane) for lane in Lane) + 1
_LEFT, _RIGHT, _PLOT = 84, 24, 692
_ROW, _BAR, _HEAD = 30, 22, 28


def gantt_text(timelines: Mapping[str, Timeline], width: int = 80) -> str:
    """A chart of at most `width` columns: a heading and one row a lane for each timeline.

    Neighbours on a lane alternate between two fills; a span shows its name where that fits.
    """
    cells = max(width - _LABEL, 10)
    axis = Axis.over(_end_s(timelines), most_ticks=max(cells // 12, 1))
    lines: list[str] = []
    for name, timeline in timelines.items():
        lines.append(_heading(name, timeline))
        for lane in _lanes(timelines):
            row = _text_row(_drawn(timeline, lane), axis, cells)
            lines.append(f"{lane.value:<{_LABEL}}{row}".rstrip())
    return "\n".join([*lines, " " * _LABEL + _text_axis(axis, cells)])


def _heading(name: str, timeline: Timeline) -> str:
    marks = "".join(f"; {mark.name}" for mark in timeline.marks)
    return f"{name}: {format_s(timeline.makespan_s)}{marks}"


def _drawn(timeline: Timeline, lane: Lane) -> tuple[Span, ...]:
    marks = timeline.marks
    return tuple(span for span in timeline.lane(lane) if span not in marks)


def _lanes(timelines: Mapping[str, Timeline]) -> tuple[Lane, ...]:
    used = {span.lane for timeline in timelines.values() for span in timeline.spans}
    return tuple(lane for lane in Lane if lane in used or lane in (Lane.DEVICE, Lane.UPLINK))


def _end_s(timelines: Mapping[str, Timeline]) -> float:
    return max((timeline.makespan_s for timeline in timelines.values()), default=0.0)


def _text_row(spans: Iterable[Span], axis: Axis, cells: int) -> str:
    row = [" "] * cells
    for number, span in enumerate(spans):
        start = min(round(span.start_s / axis.end_s * cells), cells - 1)
        stop = max(round(span.end_s / axis.end_s * cells), start + 1)
        size = stop - start
        name = span.name if len(span.name) <= size - 2 else ""
        row[start:stop] = name.center(size, _FILLS[number % 2])
    return "".join(row)


def _text_axis(axis: Axis, cells: int) -> str:
    line = ""
    for tick in axis.ticks_s:
        start = round(tick / axis.end_s * cells)
        label = axis.label(tick)
        if start >= len(line) and start + len(label) < cells - len(axis.unit):
            line = line.ljust(start) + label + " "
    return line.rstrip() + f" {axis.unit}"


def gantt_svg(timelines: Mapping[str, Timeline], title: str) -> str:
    """A self-contained SVG document, 800 units wide: title, legend, one panel a timeline, axis.

    Hovering a bar shows its layer and times; bars are labelled where the name fits.
    """
    lanes = _lanes(timelines)
    axis = Axis.over(_end_s(timelines), most_ticks=10)
    panel = _HEAD + len(lanes) * _ROW + 10
    bottom = 60 + panel * len(timelines)
    parts = [f'<text x="16" y="26" class="title">{_escaped(title)}</text>', *_legend(lanes)]
    for number, (name, timeline) in enumerate(timelines.items()):
        parts += _panel(60 + number * panel, name, timeline, lanes, axis)
    parts += _svg_axis(axis, bottom)
    return _document(_LEFT + _PLOT + _RIGHT, bottom + 48, title, parts)


def _document(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    style = (
        "text{font:12px sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}"
        ".name{font-weight:bold}.end{text-anchor:end}.mid{text-anchor:middle}"
        ".bar{stroke:#fff;stroke-width:1}.in{fill:#fff;text-anchor:middle}"
        ".grid{stroke:#ddd}.axis{stroke:#222}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{_escaped(title)}">',
            f"<style>{style}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _legend(lanes: Iterable[Lane]) -> Iterable[str]:
    for number, lane in enumerate(lanes):
        x = _LEFT + number * 110
        yield f'<rect x="{x}" y="38" width="12" height="12" fill="{COLOURS[lane]}"/>'
        yield f'<text x="{x + 18}" y="48">{lane.value}</text>'


def _panel(
    top: int, name: str, timeline: Timeline, lanes: Iterable[Lane], axis: Axis
) -> Iterable[str]:
    heading = _escaped(_heading(name, timeline))
    yield f'<text x="{_LEFT}" y="{top + 20}" class="name">{heading}</text>'
    for number, lane in enumerate(lanes):
        y = top + _HEAD + number * _ROW
        yield f'<text x="{_LEFT - 8}" y="{y + 15}" class="end">{lane.value}</text>'
        for span in _drawn(timeline, lane):
            yield from _bar(span, y, axis)


def _bar(span: Span, y: int, axis: Axis) -> Iterable[str]:
    x = _LEFT + span.start_s / axis.end_s * _PLOT
    width = span.duration_s / axis.end_s * _PLOT
    hover = f"{span.name}: {format_s(span.start_s)} to {format_s(span.end_s)}"
    yield (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" class="bar" '
        f'fill="{COLOURS[span.lane]}"><title>{_escaped(hover)}</title></rect>'
    )
    if len(span.name) * 7 + 4 <= width:
        middle = x + width / 2
        yield f'<text x="{middle:.2f}" y="{y + 15}" class="in">{_escaped(span.name)}</text>'


def _svg_axis(axis: Axis, y: int) -> Iterable[str]:
    yield f'<path d="M{_LEFT} {y}H{_LEFT + _PLOT}" class="axis"/>'
    for tick in axis.ticks_s:
        x = _LEFT + tick / axis.end_s * _PLOT
        yield f'<path d="M{x:.2f} {y}v5" class="axis"/>'
        yield f'<text x="{x:.2f}" y="{y + 18}" class="mid">{axis.label(tick)}</text>'
    middle = _LEFT + _PLOT / 2
    yield f'<text x="{middle:.0f}" y="{y + 36}" class="mid">time ({axis.unit})</text>'


def _escaped(text: str) -> str:
    """Text that may stand in XML, in an attribute too; control characters become spaces."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return escape(printable, {'"': "&quot;"})


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
