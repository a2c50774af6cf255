"""The chart of a sweep: latency of each scheme over bandwidth, and where each plan wins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from offload.plan.sweep import Cell, Reign, reigns
from offload.report.log_axis import LogAxis
from offload.report.schemes import COLOURS, NAMES
from offload.units import format_bps, format_s

_WIDTH, _LEFT, _RIGHT = 860, 78, 24
_TITLE, _LEGEND, _PLOT, _STRIP, _FOOT = 58, 68, 300, 26, 52
_SAME = 1.005
_NOTHING_S = 1e-9  # what a model without arithmetic is drawn at
_NOTE = (
    "Where a scheme has no line it takes as long as a simpler one; dashed: the plan changes"
    " (faint: only its cut)."
)
_PANEL = 34 + _PLOT + _STRIP + _FOOT


def what_if_svg(cells: Sequence[Cell], title: str, under: str = "") -> str:
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


def _schemes(cells: Sequence[Cell]) -> list[str]:
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
    cells: Sequence[Cell]
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
        yield from self._borders(reigns(self.cells))

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

    def _borders(self, found: Sequence[Reign]) -> Iterator[str]:
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


def _differs(cell: Cell, scheme: str, simpler: Sequence[str]) -> bool:
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
