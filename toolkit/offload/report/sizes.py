"""Amounts as horizontal bars in groups, as a self-contained SVG document."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

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
