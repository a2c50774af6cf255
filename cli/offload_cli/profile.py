"""`offload profile`: measure the seconds and bytes of each layer on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.files import temporary_folder, write_text
from offload.graph.load import load_model
from offload.units import format_bytes, format_s
from offload_runtimes.deploy.targets import DEVICES
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.calibration import read_calibration
from offload_runtimes.measure.profile import cached_profile, optimized_model
from offload_runtimes.value_files import read_arrays

from offload_cli.on_target import OnOption, machine_on
from offload_cli.options import (
    AllowCpuOption,
    DevicesOption,
    FormatOption,
    ModelArgument,
    ProviderOption,
    ShapeOption,
    ThreadsOption,
    parse_shapes,
)
from offload_cli.output import Format, Output
from offload_cli.planning_options import ImageOption, image_input


def profile(
    model: ModelArgument,
    path: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write the profile to this file, for `split`."),
    ] = None,
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    image: ImageOption = "",
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Time this .npz, as for `run`; default: the first of --calibration, otherwise a"
            " random input. It also sets the shapes that --shape does not.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Measure tensors whose size depends on data on these inputs: an .npz or a folder"
            " of pictures."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=3, help="Number of runs for each median.")] = 20,
    again: Annotated[
        bool, typer.Option("--again", help="Measure again instead of using the cache.")
    ] = False,
    list_all: Annotated[bool, typer.Option("--all", help="List every layer.")] = False,
    form: FormatOption = Format.TEXT,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    on: OnOption = "",
    devices: DevicesOption = Path(DEVICES),
) -> None:
    """Measure the seconds and bytes of each layer, here or on a target.

    The profile is cached by model and machine; `--again` measures it anew. Profile with the same
    --image and --shape that you split with. A target needs the runtime (`offload device init`).

    Example: `offload profile net.onnx --on pi@192.0.2.7 -o pi.json`, then
    `offload split net.onnx --device pi.json -o net.bundle`
    """
    output = Output(form)
    options = EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu)
    with (
        temporary_folder() as folder,
        image_input(model, image, parse_shapes(shape)) as (source, shapes),
        output.steps() as progress,
        machine_on(on, devices, options) as (machine, options),
    ):
        progress(f"reading {model}")
        loaded = load_model(source)
        feeds = read_arrays(input_file) if input_file else None
        input_shapes = {name: array.shape for name, array in (feeds or {}).items()}
        known = {name: input_shapes[name] for name in loaded.values.inputs if name in input_shapes}
        optimized = optimized_model(loaded, folder, {**known, **shapes}, machine=machine)
        values = optimized.inputs.values
        measured = cached_profile(
            optimized,
            options,
            again=again,
            feeds=feeds,
            samples=read_calibration(calibration, values).feeds if calibration else (),
            runs=runs,
            progress=progress,
            machine=machine,
        )
    if path:
        write_text(path, json.dumps(measured.to_json(), indent=1))
        output.remark(f"wrote {path}")
    client_bytes = measured.client_bytes
    client = f"; a client takes {format_bytes(client_bytes)}" if client_bytes else ""
    output.result(
        measured.to_json(),
        f"{format_s(measured.whole_s)} a run on {measured.machine} ({measured.provider},"
        f" {measured.threads or 'default'} threads), median of {measured.runs}{client}",
    )
    for remark in measured.remarks:
        output.warning(remark)
    operators = {layer.name: layer.op for layer in optimized.graph.layers}
    costly = sorted(measured.layers, key=lambda cost: -cost.seconds_s)
    shown = measured.layers if list_all or len(costly) <= 30 else costly[:25]
    output.table(
        ("layer", "operators", ">seconds", ">share"),
        (
            (
                cost.name,
                operators[cost.name],
                format_s(cost.seconds_s),
                f"{cost.seconds_s / measured.whole_s:.1%}",
            )
            for cost in shown
        ),
        title="" if len(shown) == len(costly) else "costliest layers (--all lists every layer)",
    )
