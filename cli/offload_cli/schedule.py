"""`offload schedule`: order a device's layers so that uploads hide behind computation."""

import json
import shutil
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
        str, typer.Option(metavar="NAME", help=f"Use one of {', '.join(SOLVERS)}.")
    ] = "optimal",
    compare: Annotated[
        bool, typer.Option("--compare", help="Run every solver and list the results.")
    ] = False,
    budget: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Limit the time of a search.")
    ] = 1.0,
    plan: PlanOption = None,
    svg: Annotated[Path | None, typer.Option(help="Write the chart to this SVG file.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace (JSON) to this file.")
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Order layers so that uploads hide behind computation.

    Prints the order, its makespan, and whether it is proved optimal or how far above a lower bound
    it is. A graph is a JSON file with seconds of compute and of upload (default 0) per layer, and
    edges from a layer to those that need it:

    `{"layers": {"a": {"compute_s": 1.0}, "b": {"compute_s": 2.0, "upload_s": 3.0}},
    "edges": [["a", "b"]]}`

    Example: `offload schedule graph.json --compare --svg chart.svg`
    """
    output = Output(form)
    instance = _read_instance(source, plan or 0)
    best = solve(instance, solver, budget)
    rows = compare_solvers(best, budget) if compare else []
    timelines = {best.solver: best.timeline}
    if rows and best.solver != "fifo" and (svg or trace):
        timelines = {"fifo": solve(instance, "fifo").timeline, **timelines}
    if svg is not None:
        write_text(svg, gantt_svg(timelines, f"Schedule of {source.name}"))
    if trace is not None:
        write_text(trace, json.dumps(chrome_trace(timelines)))
    if output.is_json:
        output.result(best.to_json() | ({"compare": rows} if compare else {}))
        return
    names = best.names
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    output.text(f"order: {', '.join(names[:_MOST_NAMED])}{more}")
    certificate = (
        "proved optimal"
        if best.status == "optimal"
        else f"at most {100 * best.gap:.2f} % above the smallest"
    )
    output.text(f"makespan: {format_s(best.makespan_s)}, {certificate}")
    if len(names) <= _MOST_DRAWN:
        columns = shutil.get_terminal_size().columns
        output.text(gantt_text({best.solver: best.timeline}, columns))
    if rows:
        output.table(
            ("solver", ">makespan", ">over the bound", "status", ">took"),
            (
                (row["solver"], "", "", "not for this graph", "")
                if "refused" in row
                else (
                    row["solver"],
                    format_s(row["makespan_s"]),
                    f"{100 * row['gap']:.2f} %",
                    row["status"],
                    format_s(row["seconds_s"]),
                )
                for row in rows
            ),
        )


def _read_instance(source: Path, plan_index: int) -> Instance:
    if source.suffix == ".onnx":
        raise InputError(
            f"{source} is a model: split it with `offload split` and give the bundle, or give a"
            " graph of layers as JSON"
        )
    if not source.is_dir():
        return read_instance(source)
    plan = open_bundle(source).only(plan_index).plan
    if plan.instance is not None:
        return plan.instance
    if plan.alternatives:
        raise InputError(f"{source} has nothing to schedule: its plan stays on one side")
    raise InputError(
        f"{source} has no seconds to schedule by: it was split while sizes of the model's inputs"
        " were open; split it again with --shape"
    )


def compare_solvers(best: Schedule, budget_s: float) -> list[dict[str, Any]]:
    """One row per solver: makespan and gap to the best lower bound, or why it refused."""
    results: dict[str, Schedule | str] = {}
    for name in SOLVERS:
        try:
            results[name] = best if name == best.solver else solve(best.instance, name, budget_s)
        except InputError as error:
            results[name] = str(error)
    schedules = [best, *(result for result in results.values() if isinstance(result, Schedule))]
    bound_s = max(schedule.lower_bound_s for schedule in schedules)
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        if isinstance(result, str):
            rows.append({"solver": name, "refused": result})
            continue
        excess_s = max(result.makespan_s - bound_s, 0.0)
        rows.append(
            {
                "solver": name,
                "makespan_s": result.makespan_s,
                "gap": excess_s / bound_s if bound_s > 0 else 0.0,
                "status": result.status,
                "seconds_s": result.seconds_s,
            }
        )
    return rows
