"""One self-contained HTML page: headings, sentences, tables and inline charts."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fff; --line: #d6dbe4; --soft: #f4f6fa;
        --good: #eef6ee; --accent: #3a7d44 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde3ec; --paper: #12161d; --line: #333c4a; --soft: #1b212b; --good: #1c2f21;
          --accent: #6fbf7b } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper) }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left;
         font-variant-numeric: tabular-nums }
.number { text-align: right; white-space: nowrap }
tr.best td { font-weight: 600; background: var(--good) }
svg { max-width: 100%; height: auto } a { color: inherit }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0 }
p.verdict { font-size: 1.1rem; border-left: .25rem solid var(--accent); padding-left: .8rem }
figure.cut-figure { position: relative; margin: 1rem 0 }
.cut-figure .picture { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem }
.cut-figure .picture svg { display: block; margin: auto; max-width: none }
.cut-figure .block { cursor: pointer }
.cut-legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .5rem 0; font-size: .9rem }
.cut-legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
.bandwidth { display: flex; gap: .8rem; align-items: center; font-weight: 600; padding: .4rem 0;
             position: sticky; top: 0; z-index: 2; background: var(--paper) }
.bandwidth input { flex: 1 }
.bandwidth output { min-width: 7.5rem; text-align: right }
.cut-card { position: absolute; z-index: 1; box-sizing: border-box; max-width: min(40rem, 100%);
            max-height: 22rem; overflow: auto; padding: .2rem .6rem; font-size: .85rem;
            background: var(--paper); border: 1px solid var(--line); border-radius: .4rem;
            box-shadow: 0 4px 16px #0004 }
.cut-card table { margin: .3rem 0 } .cut-card caption { text-align: left }
.cut-card th, .cut-card td { padding: .1rem .5rem; white-space: nowrap }
.cut-card td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem }
@media (max-width: 40rem) {
  body { font-size: 15px } .cut-card { font-size: .75rem } th, td { padding: .3rem .45rem } }
"""


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes:
        heading: its title; none if empty.
        verdict: the main result in one sentence.
        columns: column headings of the table.
        rows: rows of the table as text.
        best: index of the row to highlight, or None.
        charts: SVG documents and figures in HTML, shown above the table.
        folded: more of them, one below the other, which a reader opens.
        summary: what is folded.
        links: files beside the page, by name.
    """

    heading: str
    verdict: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    best: int | None = None
    charts: Sequence[str] = ()
    folded: Sequence[str] = ()
    summary: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def page(title: str, introduction: str, sections: Iterable[Section]) -> str:
    """The page as one HTML document that loads nothing from the network."""
    body = "\n".join(_section(section) for section in sections)
    if introduction:
        body = f"<p>{html.escape(introduction)}</p>\n{body}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def _section(section: Section) -> str:
    parts: list[str] = []
    if section.heading:
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
    if section.verdict:
        parts.append(f'<p class="verdict">{html.escape(section.verdict)}</p>')
    parts += section.charts
    if section.rows:
        kinds = [_kind(cells) for cells in zip(*section.rows, strict=True)]
        parts.append('<div class="wide"><table><thead>')
        parts += [_row(section.columns, kinds, "th"), "</thead><tbody>"]
        for index, row in enumerate(section.rows):
            parts.append(_row(row, kinds, "td", "best" if index == section.best else ""))
        parts.append("</tbody></table></div>")
    if section.folded:
        summary = html.escape(section.summary)
        parts += [f"<details><summary>{summary}</summary>", *section.folded, "</details>"]
    if section.links:
        links = (
            f'<a href="{html.escape(file)}">{html.escape(name)}</a>'
            for name, file in section.links.items()
        )
        parts.append(f"<p>{' · '.join(links)}</p>")
    return "\n".join(parts)


def _row(cells: Iterable[str], kinds: Iterable[str], tag: str, kind: str = "") -> str:
    """A row of a table; `kinds` are the classes of its cells, `kind` is its own."""
    inside = "".join(
        f'<{tag} class="{each}">{html.escape(cell)}</{tag}>'
        for cell, each in zip(cells, kinds, strict=True)
    )
    return f'<tr class="{kind}">{inside}</tr>'


def _kind(cells: Iterable[str]) -> str:
    """The class of a column: `number` where each cell that is not empty begins with a digit."""
    known = [cell.lstrip("+-") for cell in cells if cell]
    return "number" if known and all(cell[:1].isdigit() for cell in known) else ""
