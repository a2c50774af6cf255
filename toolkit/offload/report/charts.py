"""Charts as SVG: latency bars, box plots, sizes, and latency over bandwidth."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from offload.planning.sweep import SweepPoint, winning_intervals
from offload.report.svg import COLOURS, NAMES, Axis, document, label, legend, rect, text, time_unit
from offload.units import format_bps, format_s


@dataclass(frozen=True)
class Measurement:
    """Measured seconds of one series in one group.

    Attributes:
        group: a panel of a bar chart, a block of rows of a box plot.
        name: of the series, for the legend.
        colour: of the series.
        seconds_s: one entry a run.
        mark: text after the value.
    """

    group: str
    name: str
    colour: str
    seconds_s: Sequence[float]
    mark: str = ""


_PREDICTED, _MEASURED, _BEST = "#8fc3e8", "#0072b2", "#00785a"


def _by_group(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.group, []).append(measurement)
    return groups


@dataclass(frozen=True, slots=True)
class SchemeTimes:
    """The seconds of one scheme, predicted and measured.

    Attributes:
        name: of the scheme.
        predicted_s: predicted latency; None: not predicted.
        seconds_s: measured, one entry a run.
        is_best: whether it is marked.
    """

    name: str
    predicted_s: float | None
    seconds_s: Sequence[float]
    is_best: bool = False


def pairs_svg(title: str, schemes: Sequence[SchemeTimes]) -> str:
    """Draw bars of all schemes on one axis from 0, predicted above measured, 860 units wide.

    The measured bar ends at the median; a line goes from the smallest to the largest.
    """
    left, right, high = 270, 770, 15
    ends = [max(s.predicted_s or 0.0, *s.seconds_s) for s in schemes]
    axis = Axis.from_zero(max(ends, default=0.0), left, right)
    entries = [(_PREDICTED, "predicted"), (_MEASURED, "measured (median of the runs)")]
    entries += [(_BEST, "measured, the chosen scheme")] if any(s.is_best for s in schemes) else []
    legends, top = legend(entries, 860, 40)
    bars, y = [], float(top + 8)
    for scheme in schemes:
        lines = textwrap.wrap(scheme.name, 36) or [""]
        tall = max(2 * high, 15 * len(lines))
        kind = "name end" if scheme.is_best else "end"
        first = y + tall / 2 - 7.5 * (len(lines) - 1) + 4
        bars += [label(left - 8, first + 15 * row, line, kind) for row, line in enumerate(lines)]
        y += (tall - 2 * high) / 2
        if scheme.predicted_s is not None:
            end, words = axis.at(scheme.predicted_s), format_s(scheme.predicted_s)
            bars += [
                rect(
                    left, y, end - left, high - 2, _PREDICTED, f"{scheme.name}, predicted: {words}"
                ),
                label(end + 5, y + 11, words, "note"),
            ]
        middle_s, least_s, most_s = (
            float(v) for v in np.quantile(list(scheme.seconds_s), [0.5, 0.0, 1.0])
        )
        words, end, spread = format_s(middle_s), axis.at(middle_s), axis.at(most_s)
        hover = f"{scheme.name}, measured: {words} ({format_s(least_s)} to {format_s(most_s)})"
        colour = _BEST if scheme.is_best else _MEASURED
        centre = y + high + (high - 2) / 2
        bars += [
            rect(left, y + high, end - left, high - 2, colour, hover),
            f'<path d="M{axis.at(least_s):.1f} {centre:.1f}H{spread:.1f}m0 -3v6" class="whisker"/>',
            label(max(end, spread) + 5, centre + 4, words, "name"),
        ]
        y += (tall + 2 * high) / 2 + 14
    unit, unit_s = time_unit(axis.high)
    grid = []
    for tick in axis.ticks(8):
        x = axis.at(tick)
        grid.append(f'<path d="M{x:.1f} {top}V{y:.1f}" class="grid"/>')
        grid.append(label(x, y + 16, f"{tick / unit_s:.6g}", "mid"))
    grid.append(label(right + 14, y + 16, unit))
    return document(860, round(y) + 30, title, [*grid, *legends, *bars])


def bars_svg(title: str, measurements: Sequence[Measurement], note: str = "") -> str:
    """Latency relative to the first series: a legend, then up to three panels a row.

    The axis is logarithmic, so that a slow series does not flatten the others: bars go down from
    1 where a series is faster than the first, and up where it is slower. Every bar carries its
    median in seconds; whiskers end at the 95th percentile.
    """
    chart_width, panel_height = 980, 240
    panels = _by_group(measurements)
    fullest = sorted(panels.values(), key=lambda bars: -len(bars))
    names = {bar.name: bar.colour for bars in fullest for bar in bars}
    parts, top = legend([(colour, name) for name, colour in names.items()], chart_width, 40)
    columns = max(min(3, len(panels)), 1)
    width = chart_width // columns
    ratios = [
        float(np.quantile(bar.seconds_s, share)) / float(np.median(bars[0].seconds_s))
        for bars in panels.values()
        for bar in bars
        for share in (0.5, 0.95)
    ]
    low, high = min([0.5, *ratios]) / 1.35, max([2.0, *ratios]) * 1.35
    for number, (heading, bars) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        floor = top + row * panel_height + 224
        axis = Axis(low, high, floor, floor - 190, log=True)
        parts += _bar_panel(heading, bars, column * width, axis, width)
    bottom = top + -(-len(panels) // columns) * panel_height
    first = next(iter(names), "")
    line = (
        f"latency of one inference relative to {first} ({first} = 1, logarithmic): median, whisker"
        " to the 95th percentile; the figures are the medians"
    )
    parts.append(label(16, bottom + 16, line, "small"))
    parts += [label(16, bottom + 30, note, "small")] if note else []
    return document(chart_width, bottom + 42, title, parts)


def _bar_panel(
    heading: str, bars: Sequence[Measurement], left: int, axis: Axis, panel_width: int
) -> Iterator[str]:
    x, width, base = left + 44, panel_width - 56, axis.at(1.0)
    base_s = float(np.median(bars[0].seconds_s))
    values = [[float(v) for v in np.quantile(bar.seconds_s, [0.5, 0.95])] for bar in bars]
    unit, unit_s = time_unit(max(median_s for median_s, _ in values))
    yield label(x, axis.end - 16, f"{heading} ({unit})", "name")
    for power in range(math.ceil(math.log2(axis.low)), math.floor(math.log2(axis.high)) + 1):
        y = axis.at(2.0**power)
        yield f'<path d="M{x} {y:.1f}h{width}" class="grid"/>'
        tick = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        yield label(x - 6, y + 4, tick, "end small")
    step = width / len(bars)
    bar_width = max(step - 6, 3.0)
    for number, (bar, (median_s, high_s)) in enumerate(zip(bars, values, strict=True)):
        middle = x + (number + 0.5) * step
        y, whisker = axis.at(median_s / base_s), axis.at(high_s / base_s)
        hover = f"{bar.name}: {format_s(median_s)}, 95 %: {format_s(high_s)}"
        height = max(abs(base - y), 1.5)
        yield rect(middle - bar_width / 2, min(base, y), bar_width, height, bar.colour, hover)
        yield f'<path d="M{middle:.1f} {y:.1f}V{whisker:.1f}m-2 0h4" class="whisker"/>'
        value = median_s / unit_s  # at most three digits, so that labels do not overlap
        digits = ".0f" if value >= 99.5 else ".3g" if value >= 1 else ".2f"
        place = y + 11 if y > base + 1 else whisker - 4
        yield label(middle, place, f"{value:{digits}}{bar.mark}", "mid tiny")
    yield f'<path d="M{x} {base:.1f}h{width}" class="axis"/>'


def boxes_svg(title: str, measurements: Sequence[Measurement]) -> str:
    """Box plot, one row a box, grouped: quartiles, median, and whiskers to smallest and largest.

    A single value is drawn as a mark.
    """
    width, left, right, row_height, margin = 980, 190, 956, 17, 8
    boxes = [box for box in measurements if box.seconds_s and min(box.seconds_s) > 0]
    values = [value for box in boxes for value in box.seconds_s] or [1e-3, 1.0]
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    axis = Axis(10.0**low, 10.0**high, left, right, log=True)
    names = {box.name: box.colour for box in boxes}
    rows, top = legend([(colour, name) for name, colour in names.items()], width, 40)
    y = top
    for group, members in _by_group(boxes).items():
        middle = y + margin + len(members) * row_height / 2 + 4
        rows.append(label(left - 10, middle, group, "end"))
        for number, box in enumerate(members):
            rows += _box(box, y + margin + number * row_height, row_height, axis)
        y += 2 * margin + len(members) * row_height
    grid: list[str] = []
    for power in range(low, high + 1):
        x = axis.at(10.0**power)
        grid.append(f'<path d="M{x:.1f} {top}V{y}" class="grid"/>')
        seconds = format_s(10.0**power).replace(".00", "").replace(".0", "")
        grid.append(label(x, y + 18, seconds, "mid"))
    note = (
        "time (logarithmic); box: quartiles or a mark, line: median, whiskers: smallest and largest"
    )
    grid.append(f'<path d="M{left} {y}H{right}" class="axis"/>')
    grid.append(label((left + right) // 2, y + 36, note, "mid"))
    return document(width, y + 48, title, [*grid, *rows])


def _box(box: Measurement, y: float, row_height: int, axis: Axis) -> Iterator[str]:
    quantiles = np.quantile(box.seconds_s, [0, 0.25, 0.5, 0.75, 1])
    a, b, c, d, e = (axis.at(float(value)) for value in quantiles)
    middle, height = y + row_height / 2, row_height - 6
    hover = f"{box.group}, {box.name}: median {format_s(float(quantiles[2]))}"
    width = max(d - b, 8)  # a narrower box would not show its colour
    yield f'<path d="M{a:.1f} {middle:.1f}H{e:.1f}" class="whisker"/>'
    yield rect((b + d - width) / 2, y + 3, width, height, box.colour, hover)
    yield f'<path d="M{c:.1f} {y + 3:.1f}v{height}" class="whisker"/>'


def sizes_svg(
    groups: Mapping[str, Sequence[tuple[str, float, str]]],
    marked: Mapping[str, str],
    title: str,
) -> str:
    """Horizontal bars from 0 on one scale for all groups, 800 units wide.

    Args:
        groups: by heading, bars of (name, amount, amount in words).
        marked: by heading, the name of the bar that is drawn dark.
        title: the title of the chart.
    """
    left, plot, plain, dark = 150, 520, "#56b4e9", "#0072b2"  # the colours differ in lightness too
    most = max((amount for bars in groups.values() for _, amount, _ in bars), default=0.0)
    axis = Axis.from_zero(most, left, left + plot)
    parts, y = [], 44
    for heading, bars in groups.items():
        parts.append(label(left, y + 18, heading, "name"))
        y += 30
        for name, amount, words in bars:
            x = axis.at(amount)
            colour = dark if marked.get(heading) == name else plain
            parts += [
                label(left - 8, y + 12, name, "end"),
                rect(left, y, x - left, 14, colour),
                label(x + 6, y + 12, words),
            ]
            y += 18
    return document(left + plot + 130, y + 16, title, parts)


_WIDTH, _LEFT, _RIGHT = 860, 78, 836
_PLOT, _STRIP, _PANEL = 300, 26, 412
_SAME = 1.005
_ZERO_S = 1e-9  # drawn for a model without arithmetic


def what_if_svg(cells: Sequence[SweepPoint], title: str, under: str = "") -> str:
    """Latency of each scheme over bandwidth as SVG, 860 units wide: one panel per slow-down.

    A scheme's line is drawn where it differs from all simpler schemes. The strip under each
    panel has the colour of the scheme that wins; dashed lines mark a change of the winning plan,
    faint ones a change of cut within the same scheme.

    Args:
        cells: the points of a sweep.
        title: the title of the chart.
        under: a note below the title, such as the machines.
    """
    panels = [list(group) for _, group in groupby(cells, lambda cell: cell.slowdown)]
    notes = (
        "A scheme that takes as long as a simpler one has no line. Dashed: the winning plan changes"
        " (faint: only its cut).",
        "A line bends where another cut or another encoding becomes the best one of its scheme.",
    )
    drawn = {scheme for panel in panels for scheme in _drawn(panel)}
    entries = [(COLOURS[scheme], NAMES[scheme]) for scheme in COLOURS if scheme in drawn]
    parts, y = legend(entries, _WIDTH, 60)
    parts.append(label(16, 46, under, "note"))
    parts += [label(16, y + 10 + 15 * row, line, "note") for row, line in enumerate(notes)]
    y += 29
    for panel in panels:
        if len(panels) > 1:
            heading = f"device slowed down {panel[0].slowdown:g}x"
            parts.append(label(_LEFT, y + 22, heading, "name"))
        parts += _what_if_panel(panel, y + 34)
        y += _PANEL
    return document(_WIDTH, y, title, parts)


def _schemes(cells: Sequence[SweepPoint]) -> list[str]:
    used = {a.scheme for cell in cells for a in cell.alternatives}
    return [scheme for scheme in COLOURS if scheme in used]


def _drawn(cells: Sequence[SweepPoint]) -> set[str]:
    """The schemes that have a line in a panel, or win somewhere in it."""
    schemes = _schemes(cells)
    lines = {s for n, s in enumerate(schemes) if any(_differs(cells, s, schemes[:n]))}
    return lines | {cell.winner for cell in cells}


def _differs(cells: Sequence[SweepPoint], scheme: str, simpler: Sequence[str]) -> list[bool]:
    """By cell: whether a scheme takes another time than all simpler ones."""

    def differs(cell: SweepPoint) -> bool:
        seconds = cell.latency_s(scheme)
        others = [s for name in simpler if (s := cell.latency_s(name)) is not None]
        return seconds is not None and all(
            max(s, seconds) > _SAME * min(s, seconds) for s in others
        )

    return [differs(cell) for cell in cells]


def _what_if_panel(cells: Sequence[SweepPoint], top: int) -> Iterator[str]:
    bottom, foot = top + _PLOT, top + _PLOT + _STRIP
    rates = [cell.rate_bps for cell in cells]
    margin = 2.0 if len(cells) == 1 else 1.0  # a single link has no range of its own
    x = Axis(min(rates) / margin, max(rates) * margin, _LEFT, _RIGHT, log=True)
    seconds = [a.latency_s for cell in cells for a in cell.alternatives if a.latency_s > 0]
    seconds = seconds or [_ZERO_S]
    y = Axis(min(seconds) / 1.15, max(seconds) * 1.15, bottom, top, log=True)
    for value in y.ticks():
        at, latency = y.at(value), f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
        yield f'<path d="M{_LEFT} {at:.1f}H{_RIGHT}" class="grid"/>'
        yield label(_LEFT - 8, at + 4, latency, "end")
    for value in x.ticks():
        at = x.at(value)
        yield f'<path d="M{at:.1f} {top}V{bottom}" class="grid"/>'
        yield label(at, foot + 18, f"{value / 1e6:g}", "mid")
    centre, middle = (_LEFT + _RIGHT) // 2, bottom - _PLOT // 2
    yield label(centre, foot + 38, "uplink bandwidth (Mbit/s)", "mid")
    yield label(18, middle, "predicted latency", "mid", turned=True)
    schemes = _schemes(cells)
    for number, scheme in enumerate(schemes):
        yield from _scheme_lines(cells, scheme, schemes[:number], x, y)
    yield from _winner_strip(cells, x, top, bottom)


def _scheme_lines(
    cells: Sequence[SweepPoint], scheme: str, simpler: Sequence[str], x: Axis, y: Axis
) -> Iterator[str]:
    """A scheme's line where it differs from simpler ones, with the point before and after."""
    flags = _differs(cells, scheme, simpler)
    near = [any(flags[max(i - 1, 0) : i + 2]) for i in range(len(flags))]
    for shown, group in groupby(zip(near, cells, strict=True), lambda pair: pair[0]):
        points = [
            f"{x.at(cell.rate_bps):.1f},{y.at(max(seconds, _ZERO_S)):.1f}"
            for _, cell in group
            if (seconds := cell.latency_s(scheme)) is not None
        ]
        if shown:
            line = " ".join(points * 2 if len(points) == 1 else points)  # a dot for one link
            yield (
                f'<polyline points="{line}" fill="none" stroke="{COLOURS[scheme]}"'
                ' stroke-width="3" stroke-linejoin="round" stroke-linecap="round">'
                f"<title>{text(NAMES[scheme])}</title></polyline>"
            )


def _winner_strip(cells: Sequence[SweepPoint], x: Axis, top: int, bottom: int) -> Iterator[str]:
    """The strip with the winning scheme under a panel, and lines where the plan changes."""
    yield label(_LEFT - 8, bottom + 18, "wins", "end")
    before = ""
    for interval in winning_intervals(cells):
        alone = len(cells) == 1
        start = x.start if alone else x.at(interval.from_bps)
        end = x.end if alone else x.at(interval.to_bps)
        first, last = interval.cells[0], interval.cells[-1]
        note = (
            f"{first.winner}: {format_bps(interval.from_bps)} to {format_bps(interval.to_bps)},"
            f" {format_s(first.chosen.latency_s)} to {format_s(last.chosen.latency_s)},"
            f" {first.chosen.device_layers} layers on the device"
        )
        yield rect(start, bottom + 4, end - start, _STRIP - 6, COLOURS[first.winner], note, "bar")
        if end - start > 8 * len(first.winner) + 6:
            middle = (start + end) / 2
            yield label(middle, bottom + 18, first.winner, "in")
        if before:
            stroke = "#bbb" if before == first.winner else "#333"
            line = f"M{start:.1f} {top}V{bottom + _STRIP - 2}"
            yield f'<path d="{line}" stroke="{stroke}" stroke-dasharray="5 4"/>'
        before = first.winner
