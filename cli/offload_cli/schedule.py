"""`offload schedule`: order a device's layers so that uploads hide behind computation."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from offload.bundle.bundle import open_bundle
from offload.errors import InputError
from offload.files import write_text
from offload.report.gantt import chrome_trace, gantt_svg, gantt_text
from offload.scheduling.instance import Instance, read_instance
from offload.scheduling.schedule import Schedule
from offload.scheduling.solve import SOLVERS, solve
from offload.units import format_s

from offload_cli.options import FormatOption, PlanOption
from offload_cli.output import Format, Output

_MOST_DRAWN = 10_000
_MOST_NAMED = 40


def schedule(
    source: Annotated[
        Path, typer.Argument(metavar="GRAPH.json|BUNDLE", help="A graph of layers, or a bundle.")
    ],
    solver: Annotated[
        str, typer.Option(help=f"One of {', '.join(SOLVERS)}.", show_default=True)
    ] = "optimal",
    compare: Annotated[
        bool, typer.Option("--compare", help="Run every solver and show them side by side.")
    ] = False,
    budget: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="What a search may take.")
    ] = 1.0,
    plan: PlanOption = None,
    svg: Annotated[Path | None, typer.Option(help="Write the chart to this SVG file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace (JSON) to this file.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Find the order of computation that hides the uploads best, with a certificate.

    The graph is a JSON file: seconds of compute and of upload for each layer (nothing to upload:
    0 or left out) and which layer needs which.

    `{"layers": {"a": {"compute_s": 1.0}, "b": {"compute_s": 2.0, "upload_s": 3.0}},
    "edges": [["a", "b"]]}`

    Example: `offload schedule graph.json --compare --svg chart.svg`
    """
    output = Output(form)
    instance = _instance(source, plan or 0)
    best = solve(instance, solver, budget)
    rows = _compared(best, budget) if compare else []
    _write_charts(best, rows, source, svg, trace)
    if output.is_json:
        output.result(best.to_json() | ({"compare": rows} if compare else {}))
        return
    _print_text(output, best)
    if rows:
        columns = ("solver", ">makespan", ">over the bound", "status", ">took")
        output.table(columns, [_row(row) for row in rows])


def _instance(source: Path, plan: int) -> Instance:
    if source.suffix == ".onnx":
        raise InputError(
            f"{source} is a model: split it with `offload split` and give the bundle, or give a"
            " graph of layers as JSON"
        )
    if not source.is_dir():
        return read_instance(source)
    chosen = open_bundle(source).only(plan).plan
    stored = chosen.instance
    if not stored and not chosen.alternatives:
        raise InputError(
            f"{source} has no seconds to schedule by: it was split while sizes of the model's"
            " inputs were open; split it again with --shape"
        )
    if not stored:
        raise InputError(f"{source} has nothing to schedule: its plan stays on one side")
    return Instance.from_json(dict(stored))


def _compared(best: Schedule, budget_s: float) -> list[dict[str, Any]]:
    """One row a solver, gaps measured to the best lower bound known; why not, where it can't."""
    found: dict[str, Schedule | str] = {best.solver: best}
    for name in SOLVERS:
        try:
            found.setdefault(name, solve(best.instance, name, budget_s))
        except InputError as error:
            found[name] = str(error)
    bound_s = max(s.lower_bound_s for s in found.values() if isinstance(s, Schedule))
    return [_compared_row(name, found[name], bound_s) for name in SOLVERS]


def _compared_row(name: str, schedule: Schedule | str, bound_s: float) -> dict[str, Any]:
    if isinstance(schedule, str):
        return {"solver": name, "refused": schedule}
    excess_s = max(schedule.makespan_s - bound_s, 0.0)
    return {
        "solver": name,
        "makespan_s": schedule.makespan_s,
        "gap": excess_s / bound_s if bound_s > 0 else 0.0,
        "status": schedule.status,
        "seconds_s": schedule.seconds_s,
    }


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "refused" in row:
        return (row["solver"], "", "", "not for this graph", "")
    return (
        row["solver"],
        format_s(row["makespan_s"]),
        f"{100 * row['gap']:.2f} %",
        row["status"],
        format_s(row["seconds_s"]),
    )


def _print_text(output: Output, schedule: Schedule) -> None:
    names = schedule.names
    shown = ", ".join(names[:_MOST_NAMED])
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    output.text(f"order: {shown}{more}")
    certificate = (
        "proved optimal"
        if schedule.status == "optimal"
        else f"at most {100 * schedule.gap:.2f} % above the smallest"
    )
    output.text(f"makespan: {format_s(schedule.makespan_s)}, {certificate}")
    if len(names) <= _MOST_DRAWN:
        width = shutil.get_terminal_size().columns
        output.text(gantt_text({schedule.solver: schedule.timeline}, width))


def _write_charts(
    best: Schedule,
    rows: list[dict[str, Any]],
    source: Path,
    svg: Path | None,
    trace: Path | None,
) -> None:
    """The chosen schedule; with a comparison, the file's own order beside it."""
    if svg is None and trace is None:
        return
    timelines = {best.solver: best.timeline}
    if rows and best.solver != "fifo":
        timelines = {"fifo": solve(best.instance, "fifo").timeline} | timelines
    if svg is not None:
        write_text(svg, gantt_svg(timelines, f"Schedule of {source.name}"))
    if trace is not None:
        write_text(trace, json.dumps(chrome_trace(timelines)))
