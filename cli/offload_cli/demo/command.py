"""The verb `offload demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.link import parse_link
from offload.files import write_text
from offload.report.gantt import chrome_trace
from offload.report.page import page

from offload_cli.demo.runner import ScenarioResult, perform, section, tell
from offload_cli.demo.scenarios import scenarios
from offload_cli.options import FormatOption
from offload_cli.output import Format, Output


def demo(
    text: Annotated[str, typer.Option(help="The line of text that is rendered and read.")] = (
        "Split inference 42"
    ),
    link: Annotated[str, typer.Option(help="Emulate this link in all scenes.")] = "",
    slowdown: Annotated[
        float, typer.Option(min=0.0, help="Emulate a device so many times slower; 0: each its own.")
    ] = 0.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs behind each median.")] = 5,
    folder: Annotated[
        Path, typer.Option("-o", "--output", help="Where charts, traces and the page go.")
    ] = Path("out/demo"),
    form: FormatOption = Format.TEXT,
) -> None:
    """See it work: real weights, a real input, every scheme predicted and measured.

    LO computes all on the device, CO all on the server, Neurosurgeon cuts at one tensor,
    PO at any with nothing overlapped, OPSS overlaps uploads with computation, joint chooses the
    cut for the overlap, all sending tensors as they are. Lossless may compress them, lossy may
    also make them float16 or uint8 as far as the outputs stay near. Schemes that come to the same
    program share a row.

    The device is this machine made slower, the link is emulated, the server is real gRPC on
    loopback; no root is needed. The text is rendered, PP-OCR reads it.

    Example: `offload demo --link 3g --slowdown 10`
    """
    output = Output(form)
    scenes = []
    for act in scenarios(text):
        chosen, factor = parse_link(link or act.link), slowdown or act.slowdown
        output.remark(f"device: this machine {factor:g}x slower; link: {chosen.describe()}")
        with output.steps() as progress:
            scene = perform(act, chosen, factor, repeats, progress)
        tell(output, scene)
        scenes.append(scene)
    written = _write(folder, scenes)
    output.text(f"\nCharts, traces and a page to look at: {written}")
    if output.is_json:
        output.result([_json(scene) for scene in scenes])


def _write(folder: Path, scenes: list[ScenarioResult]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        timelines = {
            f"{trial.label} {kind}": timeline
            for trial in scene.trials
            for kind, timeline in (("predicted", trial.plan.timeline), ("measured", trial.timeline))
        }
        write_text(folder / f"scene-{number}.trace.json", json.dumps(chrome_trace(timelines)))
        for trial, svg in zip(scene.trials, section(scene).charts, strict=True):
            name = trial.label.partition(" = ")[0].lower().replace(" ", "-")
            write_text(folder / f"scene-{number}-{name}.svg", svg)
    introduction = (
        "One inference, split between an emulated small device and a server, every way there is:"
        " predicted and measured in this run."
    )
    target = folder / "index.html"
    write_text(target, page("offload demo", introduction, map(section, scenes)))
    return target


def _json(scene: ScenarioResult) -> dict[str, object]:
    return {
        "title": scene.act.title,
        "layers": scene.layers,
        "chosen": scene.chosen.scheme,
        "reason": scene.sentence,
        "schemes": [
            {
                "label": trial.label,
                "predicted_s": trial.plan.latency_s,
                "measured_s": trial.latency_s,
                "seconds": list(trial.seconds),
                "upload_bytes": trial.upload_bytes,
                "answer": scene.act.answer(trial.outputs),
                "difference": trial.difference,
            }
            for trial in scene.trials
        ],
    }
