"""Box plots on one logarithmic time axis: how seconds of several kinds are distributed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from offload.report.svg import document, legend, text
from offload.units import format_s

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
