"""Bars side by side: one panel a model, one bar a scheme, each panel with its own time axis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offload.report.axis import Axis
from offload.report.svg import document, legend, text
from offload.units import format_s

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
