"""`offload profile`: measure what each layer costs on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.profile import Profile
from offload.files import temporary_folder, write_text
from offload.graph.load import load_model
from offload.graph.model import Graph
from offload.units import format_bytes, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.calibration import read_calibration
from offload_runtimes.measure.profile import cached_profile, optimized_model
from offload_runtimes.value_files import read_arrays

from offload_cli.options import (
    AllowCpuOption,
    FormatOption,
    ModelArgument,
    ProviderOption,
    ShapeOption,
    ThreadsOption,
    parse_shapes,
)
from offload_cli.output import Format, Output
from offload_cli.planning_options import ImageOption, taking_pictures


def profile(
    model: ModelArgument,
    path: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write the table to this file, for `split`."),
    ] = None,
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    image: ImageOption = "",
    given: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="One input to time on, an .npz as for `run`; default: the first of --calibration,"
            " or a random one. It gives open sizes that --shape does not.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Inputs that stand for those to come, an .npz file or a folder of pictures:"
            " tensors whose size depends on data are measured on them."
        ),
    ] = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    runs: Annotated[int, typer.Option(min=3, help="Repeats behind each median.")] = 20,
    again: Annotated[
        bool, typer.Option("--again", help="Measure even when this machine has a table already.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="List every layer.")] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run a model here and write down the seconds of each of its layers.

    The table is kept in your cache, by model and machine, and never measured twice unless you
    ask. Take the file of a device to the machine where you plan.

    Profile with the same --image and --shape that you will split with.

    Example: on the Pi `offload profile net.onnx -o pi.json`, then on your desk
    `offload split net.onnx --device pi.json -o net.bundle`
    """
    output = Output(form)
    options = EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu)
    with (
        temporary_folder() as folder,
        taking_pictures(model, image, parse_shapes(shape)) as (source, shapes),
        output.steps() as progress,
    ):
        progress(f"reading {model}")
        loaded = load_model(source)
        feeds = read_arrays(given) if given else None
        sizes = {name: array.shape for name, array in (feeds or {}).items()}
        named = {name: sizes[name] for name in loaded.values.inputs if name in sizes}
        subject = optimized_model(loaded, folder, {**named, **shapes})
        values = subject.inputs.values
        samples = read_calibration(calibration, values).feeds if calibration else ()
        found = cached_profile(
            subject,
            options,
            again=again,
            feeds=feeds,
            samples=samples,
            runs=runs,
            progress=progress,
        )
    if path:
        write_text(path, json.dumps(found.to_json(), indent=1))
        output.remark(f"wrote {path}")
    output.result(found.to_json(), _summary(found))
    for remark in found.remarks:
        output.warning(remark)
    _table(output, subject.graph, found, every)


def _summary(found: Profile) -> str:
    client = f"; a client takes {format_bytes(found.client_bytes)}" if found.client_bytes else ""
    return (
        f"{format_s(found.whole_s)} a run on {found.machine} ({found.provider},"
        f" {found.threads or 'default'} threads), median of {found.runs}{client}"
    )


def _table(output: Output, graph: Graph, found: Profile, every: bool) -> None:
    ops = {layer.name: layer.op for layer in graph.layers}
    costly = sorted(found.layers, key=lambda cost: -cost.seconds_s)
    shown = found.layers if every or len(costly) <= 30 else costly[:25]
    output.table(
        ("layer", "operators", ">seconds", ">share"),
        (
            (c.name, ops[c.name], format_s(c.seconds_s), f"{c.seconds_s / found.whole_s:.1%}")
            for c in shown
        ),
        title="" if len(shown) == len(costly) else "costliest layers (--all lists every layer)",
    )
