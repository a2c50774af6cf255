"""Write the results as JSON, CSV, Markdown and one HTML page with all charts."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from offload.files import write_text
from offload.records import to_json
from offload.report.charts import Measurement, bars_svg, boxes_svg
from offload.report.gantt import gantt_svg
from offload.report.page import Section, page
from offload.report.svg import COLOURS, SHORT
from offload.units import format_bytes, format_s

from offload_cli.bench.results import (
    PLANNING,
    Cell,
    Group,
    cut_file,
    facts,
    gain,
    goals,
    picks,
    planning,
)

_PAPER_FIGURES = {"3g": "Fig. 6(a)", "4g": "Fig. 6(b)", "wifi": "Fig. 7(a)"}
_SHOWN = tuple(key for key in SHORT if key != "auto-raw")
_OVERHEADS_ON = "wifi"

TITLE = "onnx-offload: the experiments"
GOALS = ("measure", "goal", "measured", "met")
GAINS = (
    "model", "network", "best of LO, CO, PO", "any order / PO", "paper's order / PO", "OPSS / PO",
    "predicted", "joint / best of LO, CO, PO", "predicted",
)  # fmt: skip
CELLS = ("model", "network", "scheme", "median", "95 %", "predicted", "off by", "sent", "energy")
MISSED = ("model", "network", "input", "picked", "took", "best", "took", "ratio", "why")


def figures(groups: Sequence[Group], networks: Mapping[str, str]) -> dict[str, str]:
    """SVG documents by file name: latency per network, planning times, two Gantt charts.

    Args:
        groups: what was measured.
        networks: name and description of each, in order.
    """
    whole = [group for group in groups if not group.model.endswith("_inside")]
    charts = {}
    for network, described in networks.items():
        bars = [
            Measurement(
                group.model,
                SHORT[key],
                COLOURS[key],
                cell.latencies_s,
                "*" if cell.picked else "",
            )
            for group in whole
            if group.network == network
            for key in _SHOWN
            if (cell := group.cell(key))
        ]
        if bars:
            figure = _PAPER_FIGURES.get(network)
            like = f", like the paper's {figure}" if figure else ""
            title = f"Latency on {network} ({described}){like}"
            charts[f"latency-{network}.svg"] = bars_svg(title, bars, "* the planner's pick")
    charts["overhead.svg"] = overhead_chart(whole)
    return {**charts, **gantts(groups)}


def overhead_chart(groups: Sequence[Group]) -> str:
    """Seconds of planning next to seconds of the planned inference, on one network."""
    networks = [group.network for group in groups]
    network = _OVERHEADS_ON if _OVERHEADS_ON in networks else next(iter(networks), "")
    boxes = []
    for group in (group for group in groups if group.network == network):
        for key, seconds in group.overheads.items():
            name = f"planning, {SHORT[key]}"
            boxes.append(Measurement(group.model, name, COLOURS[key], seconds))
        fastest = min(group.cells, key=lambda cell: cell.median_s)
        boxes.append(
            Measurement(group.model, "the fastest inference", "#222222", fastest.latencies_s)
        )
    return boxes_svg(f"Planning and inference on {network}, like the paper's Fig. 7(b)", boxes)


def gantts(groups: Sequence[Group]) -> dict[str, str]:
    """Predicted and measured timelines where the pick gains most over LO, CO, PO, and least."""
    ranked = sorted(picks(groups), key=lambda pick: pick.ratio)
    charts = {}
    for name, pick in (("best", ranked[0]), ("worst", ranked[-1])) if ranked else ():
        title = (
            f"{name.capitalize()} cell: {pick.picked.model}, {pick.picked.network},"
            f" {1 / pick.ratio:.2f}x against {SHORT[pick.best.scheme]}"
        )
        timelines = {}
        for cell in (pick.picked, pick.best):
            if cell is pick.picked or cell.runs_as != pick.picked.runs_as:
                timelines[f"{SHORT[cell.scheme]}, predicted"] = cell.predicted
                timelines[f"{SHORT[cell.scheme]}, measured"] = cell.measured
        charts[f"gantt-{name}.svg"] = gantt_svg(timelines, title)
    return charts


def caption(name: str) -> str:
    """The heading of a chart, by its file name."""
    kind, _, subject = name.removesuffix(".svg").partition("-")
    headings = {"latency": f"Latency on {subject}", "overhead": "Planning time"}
    return headings.get(kind, f"The {subject} cell")


def write_report(
    folder: Path, groups: Sequence[Group], networks: Mapping[str, str], about: str
) -> Path:
    """Write all files and return the path of the page.

    Args:
        folder: gets `results.json`, `results.csv`, `results.md`, `index.html` and the charts.
        groups: what was measured.
        networks: name and description of each, in order.
        about: how it was measured, in a few sentences.
    """
    charts = figures(groups, networks)
    for name, chart in charts.items():
        write_text(folder / name, chart)
    rows = goals(groups)
    results = {
        "about": about,
        "goals": [dict(zip(GOALS, row.row, strict=True)) for row in rows],
        "groups": [
            {
                "settings": to_json(group.settings),
                "cells": to_json(group.cells),
                "overheads_s": to_json(group.overheads),
            }
            for group in groups
        ],
    }
    write_text(folder / "results.json", json.dumps(results, indent=1))
    write_text(folder / "results.csv", _csv(groups))
    sections = _sections(groups, charts)
    picked = [cell for group in groups for cell in group.cells if cell.picked]
    paths = (cut_file(folder, cell.model, cell.network, cell.scheme) for cell in picked)
    cuts = [path for path in paths if path.is_file()]
    if cuts:
        sections.append(
            Section(
                "Where the planner cuts",
                "The picks that run layers on both sides.",
                folded=[path.read_text(encoding="utf-8") for path in cuts],
                summary=f"{len(cuts)} pictures",
                links={path.stem: f"cuts/{path.name}" for path in cuts},
            )
        )
    markdown = [f"# {TITLE}", about]
    for section in sections:
        if section.rows:
            markdown += [f"## {section.heading}", *filter(None, [section.verdict])]
            markdown.append(markdown_table(section.columns, section.rows))
    write_text(folder / "results.md", "\n\n".join(markdown) + "\n")
    target = folder / "index.html"
    write_text(target, page(TITLE, about, sections))
    return target


def _csv(groups: Sequence[Group]) -> str:
    keys = ("model", "network", "scheme", "runs_as", "picked")
    names = (*keys, "median_s", "p95_s", "predicted_s", "upload_bytes", "energy_j", "difference")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow((*names, "runs"))
    for cell in _cells(groups):
        writer.writerow((*(getattr(cell, name) for name in names), len(cell.latencies_s)))
    return lines.getvalue()


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sections(groups: Sequence[Group], charts: Mapping[str, str]) -> list[Section]:
    rows = goals(groups)
    missed = [
        (
            pick.picked.model,
            pick.picked.network,
            pick.kind,
            SHORT[pick.picked.scheme],
            format_s(pick.picked.median_s),
            SHORT[pick.best.scheme],
            format_s(pick.best.median_s),
            f"{pick.ratio:.2f}",
            pick.why,
        )
        for pick in picks(groups)
        if not pick.is_good
    ]
    met = sum(row.met for row in rows)
    sections = [
        Section("Goals", f"{met} of {len(rows)} met.", GOALS, [row.row for row in rows]),
        *(
            Section(caption(name), charts=[chart], links={"as SVG": name})
            for name, chart in charts.items()
        ),
        Section(
            "Gains of overlap, order and cut",
            "Measured factors; above 1 is faster. All but joint use PO's cut. Predicted: the"
            " predicted factor for the column to its left.",
            GAINS,
            _gains(groups),
        ),
        Section("Summary of all cells", "", ("measure", "measured"), facts(groups)),
        Section(
            "Planning time",
            "Least to most over all networks.",
            ("model", *(SHORT[key] for key in PLANNING)),
            planning(groups),
        ),
        Section(
            "All cells",
            "Schemes that come to the same program run once and share its figures.",
            CELLS,
            [_row(cell) for cell in _cells(groups)],
        ),
    ]
    if missed:
        verdict = "Cells where the planner's pick took over 2 % longer than the best."
        sections.insert(-3, Section("Where the pick was not the best", verdict, MISSED, missed))
    return sections


def _cells(groups: Sequence[Group]) -> Iterable[Cell]:
    for group in groups:
        yield from (cell for key in SHORT if (cell := group.cell(key)))


def _row(cell: Cell) -> tuple[str, ...]:
    name = SHORT[cell.scheme]
    same = "" if cell.runs_as == cell.scheme else f" (as {SHORT[cell.runs_as]})"
    off = cell.median_s / cell.predicted_s - 1 if cell.predicted_s else 0.0
    return (
        cell.model,
        cell.network,
        name + same + (" *" if cell.picked else ""),
        format_s(cell.median_s),
        format_s(cell.p95_s),
        format_s(cell.predicted_s),
        f"{100 * off:+.0f} %",
        format_bytes(cell.upload_bytes),
        f"{cell.energy_j:.2f} J",
    )


def _gains(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    rows = []
    for group in groups:
        rivals = [cell for key in ("local", "cloud", "partition") if (cell := group.cell(key))]
        best = min(rivals, key=lambda cell: cell.median_s)
        factors = [gain(group, key) for key in ("fifo", "paper", "opss")]
        factors += [gain(group, "opss", predicted=True), gain(group, "joint", best.scheme)]
        factors.append(gain(group, "joint", best.scheme, predicted=True))
        shown = [f"{value:.2f}" if value else "" for value in factors]
        rows.append((group.model, group.network, SHORT[best.scheme], *shown))
    return rows
