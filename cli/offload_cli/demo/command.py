"""`offload demo`: predict and measure every scheme on real models and inputs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.link import parse_link
from offload.files import write_text
from offload.report.gantt import chrome_trace
from offload.report.page import page

from offload_cli.demo.runner import ScenarioResult, run_scenario, section, show
from offload_cli.demo.scenarios import scenarios
from offload_cli.options import FormatOption
from offload_cli.output import Format, Output


def demo(
    text: Annotated[str, typer.Option(help="Render and read this line of text.")] = (
        "Split inference 42"
    ),
    link: Annotated[
        str, typer.Option(metavar="LINK", help="Emulate this link; default: each scenario's own.")
    ] = "",
    slowdown: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="FACTOR",
            help="Emulate a device that is FACTOR times slower; 0: each scenario's own.",
        ),
    ] = 0.0,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Run N times; the median is reported.")
    ] = 5,
    folder: Annotated[
        Path, typer.Option("-o", "--output", help="Write charts, traces and the page here.")
    ] = Path("out/demo"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Predict and measure every scheme on real models and inputs.

    LO runs all layers on the device, CO all on the server. Neurosurgeon cuts at one tensor, PO
    anywhere without overlap, OPSS overlaps uploads with computation, joint chooses cut and order
    together; all send raw tensors. Lossless may compress them; lossy may also send float16 or
    uint8, within a tolerance on the outputs. Schemes with the same program share a row.

    The device is this machine made slower, the link is emulated, the server is real gRPC on
    loopback. No root is needed.

    Example: `offload demo --link 3g --slowdown 10`
    """
    output = Output(form)
    results = []
    for scenario in scenarios(text):
        chosen, factor = parse_link(link or scenario.link), slowdown or scenario.slowdown
        output.remark(f"device: this machine {factor:g}x slower; link: {chosen.describe()}")
        with output.steps() as progress:
            result = run_scenario(scenario, chosen, factor, repeats, progress)
        show(output, result)
        results.append(result)
    folder.mkdir(parents=True, exist_ok=True)
    sections = [section(result) for result in results]
    for number, (result, part) in enumerate(zip(results, sections, strict=True)):
        timelines = {}
        for trial, svg in zip(result.trials, part.charts, strict=True):
            timelines[f"{trial.label} predicted"] = trial.plan.timeline
            timelines[f"{trial.label} measured"] = trial.timeline
            name = trial.label.partition(" = ")[0].lower().replace(" ", "-")
            write_text(folder / f"scene-{number}-{name}.svg", svg)
        write_text(folder / f"scene-{number}.trace.json", json.dumps(chrome_trace(timelines)))
    introduction = (
        "One inference, split between an emulated small device and a server by every scheme:"
        " predicted and measured in this run."
    )
    written = folder / "index.html"
    write_text(written, page("offload demo", introduction, sections))
    output.text(f"\nCharts, traces and a page to look at: {written}")
    if output.is_json:
        output.result([_json(result) for result in results])


def _json(result: ScenarioResult) -> dict[str, object]:
    return {
        "title": result.scenario.title,
        "layers": result.layers,
        "chosen": result.chosen.scheme,
        "reason": result.sentence,
        "schemes": [
            {
                "label": trial.label,
                "predicted_s": trial.plan.latency_s,
                "measured_s": trial.latency_s,
                "seconds": list(trial.seconds),
                "upload_bytes": trial.upload_bytes,
                "answer": result.scenario.answer(trial.outputs),
                "difference": trial.difference,
            }
            for trial in result.trials
        ],
    }
