"""Charts as SVG: bars, box plots, amounts, and latency over bandwidth."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

import numpy as np

from offload.planning.sweep import SweepPoint, WinningInterval, winning_intervals
from offload.report.svg import COLOURS, NAMES, Axis, LogAxis, document, legend, text
from offload.units import format_bps, format_s

_WIDTH, _COLUMNS = 980, 3
_PLOT, _HEAD, _FOOT, _LEFT, _GAP = 180, 44, 16, 44, 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its series' name and colour, its seconds, and how high its whisker goes.

    Attributes:
        mark: stands behind its value.
    """

    name: str
    colour: str
    seconds_s: float
    high_s: float
    mark: str = ""


@dataclass(frozen=True)
class Panel:
    """Bars that share an axis."""

    title: str
    bars: Sequence[Bar]


def bars_svg(title: str, panels: Sequence[Panel], note: str = "") -> str:
    """The chart: a legend, then up to three panels a row; every bar carries its value.

    Axes begin at 0; whiskers end at the 95th percentile.
    """
    fullest = sorted(panels, key=lambda panel: -len(panel.bars))
    names = {bar.name: bar.colour for panel in fullest for bar in panel.bars}
    parts, top = legend([(colour, name) for name, colour in names.items()], _WIDTH, 40)
    columns = max(min(_COLUMNS, len(panels)), 1)
    wide, high = _WIDTH // columns, _HEAD + _PLOT + _FOOT
    for number, panel in enumerate(panels):
        left, row = number % columns * wide, number // columns
        parts += _panel(panel, left, top + row * high, wide)
    rows = -(-len(panels) // columns)
    said = "latency of one inference: median, whisker to the 95th percentile; one axis a panel"
    line = text("; ".join([said, *([note] if note else [])]))
    parts.append(f'<text x="16" y="{top + rows * high + 16}" class="small">{line}</text>')
    return document(_WIDTH, top + rows * high + 28, title, parts)


def _panel(panel: Panel, left: int, top: int, wide: int) -> Iterable[str]:
    end_s = max((bar.high_s for bar in panel.bars), default=0.0) * 1.12
    axis = Axis.over(end_s, most_ticks=5)
    x, width, floor = left + _LEFT, wide - _LEFT - 12, top + _HEAD + _PLOT
    yield f'<text x="{x}" y="{top + 20}" class="name">{text(panel.title)}</text>'
    yield f'<text x="{x - 6}" y="{top + 36}" class="end small">{axis.unit}</text>'
    for tick in axis.ticks_s:
        y = floor - tick / axis.end_s * _PLOT
        yield f'<path d="M{x} {y:.1f}h{width}" class="grid"/>'
        yield f'<text x="{x - 6}" y="{y + 4:.1f}" class="end small">{axis.label(tick)}</text>'
    step = width / max(len(panel.bars), 1)
    for number, bar in enumerate(panel.bars):
        yield from _bar(bar, x + number * step, step, floor, axis)
    yield f'<path d="M{x} {floor}h{width}" class="axis"/>'


def _bar(bar: Bar, left: float, step: float, floor: float, axis: Axis) -> Iterable[str]:
    high = bar.seconds_s / axis.end_s * _PLOT
    width, middle = max(step - _GAP, 3.0), left + step / 2
    hover = f"{bar.name}: {format_s(bar.seconds_s)}, 95 %: {format_s(bar.high_s)}"
    yield (
        f'<rect x="{middle - width / 2:.1f}" y="{floor - high:.1f}" width="{width:.1f}"'
        f' height="{high:.1f}" fill="{bar.colour}"><title>{text(hover)}</title></rect>'
    )
    top = floor - bar.high_s / axis.end_s * _PLOT
    yield f'<path d="M{middle:.1f} {floor - high:.1f}V{top:.1f}m-2 0h4" class="whisker"/>'
    label = _three(bar.seconds_s / axis.unit_s) + text(bar.mark)
    yield f'<text x="{middle:.1f}" y="{top - 4:.1f}" class="mid tiny">{label}</text>'


def _three(value: float) -> str:
    """Three digits at most, so that labels of neighbours don't meet."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2f}"


_WIDTH, _LEFT, _RIGHT = 980, 190, 24
_ROW, _HEAD = 17, 8
_NARROWEST = 8  # a narrower box would not show its colour
_UNIT = "time (logarithmic); box: quartiles or a mark, line: median, whiskers: smallest and largest"


@dataclass(frozen=True)
class Box:
    """Measured seconds of one series in one group; one value is drawn as a mark."""

    group: str
    name: str
    colour: str
    seconds_s: Sequence[float]


def boxes_svg(title: str, boxes: Sequence[Box]) -> str:
    """One row a box, grouped; box: quartiles, line: median, whiskers: smallest and largest."""
    boxes = [box for box in boxes if box.seconds_s and min(box.seconds_s) > 0]
    names = {box.name: box.colour for box in boxes}
    parts, top = legend([(colour, name) for name, colour in names.items()], _WIDTH, 40)
    low, high = _decades(boxes)
    groups = list(dict.fromkeys(box.group for box in boxes))
    y = top
    for group in groups:
        mine = [box for box in boxes if box.group == group]
        middle = y + _HEAD + len(mine) * _ROW / 2 + 4
        parts.append(f'<text x="{_LEFT - 10}" y="{middle:.0f}" class="end">{text(group)}</text>')
        for number, box in enumerate(mine):
            parts += _box(box, y + _HEAD + number * _ROW, low, high)
        y += 2 * _HEAD + len(mine) * _ROW
    return document(_WIDTH, y + 48, title, [*_grid(low, high, top, y), *parts])


def _decades(boxes: Sequence[Box]) -> tuple[int, int]:
    values = [value for box in boxes for value in box.seconds_s] or [1e-3, 1.0]
    low = math.floor(math.log10(min(values)))
    return low, max(math.ceil(math.log10(max(values))), low + 1)


def _x(seconds_s: float, low: int, high: int) -> float:
    share = (math.log10(seconds_s) - low) / (high - low)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _grid(low: int, high: int, top: int, bottom: int) -> Iterable[str]:
    for power in range(low, high + 1):
        x = _x(10.0**power, low, high)
        yield f'<path d="M{x:.1f} {top}V{bottom}" class="grid"/>'
        label = format_s(10.0**power).replace(".00", "").replace(".0", "")
        yield f'<text x="{x:.1f}" y="{bottom + 18}" class="mid">{label}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<path d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}" class="axis"/>'
    yield f'<text x="{middle:.0f}" y="{bottom + 36}" class="mid">{_UNIT}</text>'


def _box(box: Box, y: float, low: int, high: int) -> Iterable[str]:
    quantiles = np.quantile(box.seconds_s, [0, 0.25, 0.5, 0.75, 1])
    a, b, c, d, e = (_x(float(value), low, high) for value in quantiles)
    middle, size = y + _ROW / 2, _ROW - 6
    hover = f"{box.group}, {box.name}: median {format_s(float(quantiles[2]))}"
    yield f'<path d="M{a:.1f} {middle:.1f}H{e:.1f}" class="whisker"/>'
    width = max(d - b, _NARROWEST)
    yield (
        f'<rect x="{(b + d - width) / 2:.1f}" y="{y + 3:.1f}" width="{width:.1f}" height="{size}"'
        f' fill="{box.colour}"><title>{text(hover)}</title></rect>'
    )
    yield f'<path d="M{c:.1f} {y + 3:.1f}v{size}" class="whisker"/>'


_LEFT, _PLOT, _RIGHT = 150, 520, 130
_BAR, _ROW, _HEAD, _TOP = 14, 18, 30, 44
_PLAIN, _MARKED = "#56b4e9", "#0072b2"  # told apart by lightness too


def sizes_svg(
    groups: Mapping[str, Sequence[tuple[str, float, str]]],
    marked: Mapping[str, str],
    title: str,
) -> str:
    """Bars from 0 on one scale for all groups, 800 units wide.

    Args:
        groups: by heading, bars of (name, amount, amount in words).
        marked: by heading, the name of the bar that is drawn dark.
        title: above all.
    """
    most = max((amount for bars in groups.values() for _, amount, _ in bars), default=0.0) or 1.0
    parts, y = [f'<text x="16" y="26" class="title">{escape(title)}</text>'], _TOP
    for heading, bars in groups.items():
        parts.append(f'<text x="{_LEFT}" y="{y + 18}" class="name">{escape(heading)}</text>')
        y += _HEAD
        for name, amount, words in bars:
            width = amount / most * _PLOT
            colour = _MARKED if marked.get(heading) == name else _PLAIN
            parts += [
                f'<text x="{_LEFT - 8}" y="{y + 12}" class="end">{escape(name)}</text>',
                f'<rect x="{_LEFT}" y="{y}" width="{width:.2f}" height="{_BAR}" fill="{colour}"/>',
                f'<text x="{_LEFT + width + 6:.2f}" y="{y + 12}">{escape(words)}</text>',
            ]
            y += _ROW
    return _document(_LEFT + _PLOT + _RIGHT, y + 16, title, parts)


def _document(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    style = (
        "text{font:12px sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}"
        ".name{font-weight:bold}.end{text-anchor:end}"
    )
    label = escape(title, {'"': "&quot;"})
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{label}">',
            f"<style>{style}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


_WIDTH, _LEFT, _RIGHT = 860, 78, 24
_TITLE, _LEGEND, _PLOT, _STRIP, _FOOT = 58, 68, 300, 26, 52
_SAME = 1.005
_NOTHING_S = 1e-9  # what a model without arithmetic is drawn at
_NOTE = (
    "Where a scheme has no line it takes as long as a simpler one; dashed: the plan changes"
    " (faint: only its cut)."
)
_PANEL = 34 + _PLOT + _STRIP + _FOOT


def what_if_svg(cells: Sequence[SweepPoint], title: str, under: str = "") -> str:
    """A self-contained SVG document, 860 units wide: one panel for each slow-down.

    A scheme's line is drawn where it differs from all simpler schemes. The strip under each
    panel has the colour of the scheme that wins; dashed lines are where the winning plan changes,
    faint ones to another cut of the same scheme.

    Args:
        cells: of a sweep.
        title: the heading.
        under: stands small below it: the machines, say.
    """
    panels = [list(group) for _, group in groupby(cells, lambda cell: cell.slowdown)]
    height = _TITLE + _LEGEND + _PANEL * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif"'
        ' font-size="13" fill="#222">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="27" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="46" font-size="11" fill="#666">{escape(under)}</text>',
        *_legend(_schemes(cells)),
        f'<text x="{_LEFT}" y="{_TITLE + 64}" font-size="11" fill="#666">{_NOTE}</text>',
    ]
    for number, panel in enumerate(panels):
        heading = f"device slowed down {panel[0].slowdown:g}x" if len(panels) > 1 else ""
        parts += _Panel(panel, _TITLE + _LEGEND + number * _PANEL, heading).draw()
    return "\n".join([*parts, "</svg>\n"])


def _schemes(cells: Sequence[SweepPoint]) -> list[str]:
    used = {a.scheme for cell in cells for a in cell.alternatives}
    return [scheme for scheme in COLOURS if scheme in used]


def _legend(schemes: Sequence[str]) -> Iterator[str]:
    for number, scheme in enumerate(schemes):
        x, y = _LEFT + number % 3 * 252, _TITLE + 16 + number // 3 * 22
        yield (
            f'<line x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}" stroke="{COLOURS[scheme]}"'
            ' stroke-width="4"/>'
        )
        yield f'<text x="{x + 34}" y="{y + 4}">{escape(NAMES[scheme])}</text>'


@dataclass(frozen=True)
class _Panel:
    cells: Sequence[SweepPoint]
    top: float
    heading: str

    @property
    def bottom(self) -> float:
        return self.top + 34 + _PLOT

    @property
    def x(self) -> LogAxis:
        rates = [cell.rate_bps for cell in self.cells]
        around = 2.0 if len(rates) == 1 else 1.0  # one link has no range of its own
        return LogAxis(min(rates) / around, max(rates) * around, _LEFT, _WIDTH - _RIGHT)

    @property
    def y(self) -> LogAxis:
        seconds = [a.latency_s for cell in self.cells for a in cell.alternatives]
        known = [s for s in seconds if s > 0] or [_NOTHING_S]
        return LogAxis(min(known) / 1.15, max(known) * 1.15, self.bottom, self.top + 34)

    def draw(self) -> Iterator[str]:
        if self.heading:
            yield (
                f'<text x="{_LEFT}" y="{self.top + 22}" font-weight="bold">'
                f"{escape(self.heading)}</text>"
            )
        yield from self._grid()
        schemes = _schemes(self.cells)
        for number, scheme in enumerate(schemes):
            yield from self._line(scheme, schemes[:number])
        yield from self._borders(winning_intervals(self.cells))

    def _grid(self) -> Iterator[str]:
        x, y, end = self.x, self.y, _WIDTH - _RIGHT
        for value in y.ticks:
            at = y.at(value)
            yield f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{end}" y2="{at:.1f}" stroke="#ddd"/>'
            yield (
                f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">'
                f"{escape(_short(value))}</text>"
            )
        foot = self.bottom + _STRIP
        for value in x.ticks:
            at = x.at(value)
            yield (
                f'<line x1="{at:.1f}" y1="{self.top + 34}" x2="{at:.1f}" y2="{self.bottom}"'
                ' stroke="#eee"/>'
            )
            yield (
                f'<text x="{at:.1f}" y="{foot + 18}" text-anchor="middle">{value / 1e6:g}</text>'
            )
        middle = (_LEFT + end) / 2
        yield (
            f'<text x="{middle}" y="{foot + 38}" text-anchor="middle">uplink bandwidth'
            " (Mbit/s)</text>"
        )
        centre = self.bottom - _PLOT / 2
        yield (
            f'<text x="18" y="{centre}" text-anchor="middle" transform="rotate(-90 18 {centre})">'
            "predicted latency</text>"
        )

    def _line(self, scheme: str, simpler: Sequence[str]) -> Iterator[str]:
        """The stretches where a scheme differs, each with the point before and after."""
        differs = [_differs(cell, scheme, simpler) for cell in self.cells]
        near = [any(differs[max(i - 1, 0) : i + 2]) for i in range(len(differs))]
        for shown, group in groupby(zip(near, self.cells, strict=True), lambda pair: pair[0]):
            known = [(cell.rate_bps, cell.latency_s(scheme)) for _, cell in group]
            places = [
                f"{self.x.at(rate):.1f},{self.y.at(max(s, _NOTHING_S)):.1f}"
                for rate, s in known
                if s is not None
            ]
            points = " ".join(places * 2 if len(places) == 1 else places)  # a dot for one link
            if shown:
                yield (
                    f'<polyline points="{points}" fill="none" stroke="{COLOURS[scheme]}"'
                    ' stroke-width="3" stroke-linejoin="round" stroke-linecap="round">'
                    f"<title>{escape(NAMES[scheme])}</title></polyline>"
                )

    def _borders(self, found: Sequence[WinningInterval]) -> Iterator[str]:
        yield f'<text x="{_LEFT - 8}" y="{self.bottom + 18}" text-anchor="end">wins</text>'
        for index, reign in enumerate(found):
            alone = len(self.cells) == 1
            start = self.x.start if alone else self.x.at(reign.from_bps)
            end = self.x.end if alone else self.x.at(reign.to_bps)
            first, last = reign.cells[0], reign.cells[-1]
            note = (
                f"{first.winner}: {format_bps(reign.from_bps)} to {format_bps(reign.to_bps)},"
                f" {format_s(first.chosen.latency_s)} to {format_s(last.chosen.latency_s)},"
                f" {first.chosen.device_layers} layers on the device"
            )
            yield (
                f'<rect x="{start:.1f}" y="{self.bottom + 4}" width="{end - start:.1f}"'
                f' height="{_STRIP - 6}" fill="{COLOURS[first.winner]}" stroke="#fff">'
                f"<title>{escape(note)}</title></rect>"
            )
            if end - start > 8 * len(first.winner) + 6:
                yield (
                    f'<text x="{(start + end) / 2:.1f}" y="{self.bottom + 18}" fill="#fff"'
                    f' text-anchor="middle" font-weight="bold">{first.winner}</text>'
                )
            if index:
                faint = found[index - 1].cells[0].winner == first.winner
                stroke = "#bbb" if faint else "#333"
                yield (
                    f'<line x1="{start:.1f}" y1="{self.top + 34}" x2="{start:.1f}"'
                    f' y2="{self.bottom + _STRIP - 2}" stroke="{stroke}"'
                    ' stroke-dasharray="5 4"/>'
                )


def _differs(cell: SweepPoint, scheme: str, simpler: Sequence[str]) -> bool:
    seconds = cell.latency_s(scheme)
    others = [s for name in simpler if (s := cell.latency_s(name)) is not None]
    if seconds is None:
        return False
    return all(max(s, seconds) > _SAME * min(s, seconds) for s in others)


def _short(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1e3:g} ms"


def what_if_html(svg: str, title: str, rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """A self-contained page: the chart and the table of where each plan wins."""
    cells = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>\n'
        "<style>body{font:15px Helvetica,Arial,sans-serif;margin:2em auto;max-width:900px;"
        "color:#222}table{border-collapse:collapse;margin:1em 0 2em 78px}"
        "td,th{padding:4px 12px;text-align:left;border-bottom:1px solid #ddd}</style>\n"
        f"{svg}<table><tr>{heads}</tr>\n{cells}\n</table></html>\n"
    )
