"""`offload split`: choose where to cut a model and write the bundle."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.encodings import EncodingPolicy
from offload.costs.link import Link, is_range, parse_link, parse_links
from offload.errors import InputError
from offload.planning.plan import Alternative
from offload.planning.planner import pareto
from offload.planning.problem import Constraints, Objective, Power
from offload.units import format_bytes, format_s, parse_bytes, parse_duration_s, parse_energy_j
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.split import (
    SplitRequest,
    encoding_selector,
    parse_machine,
    parse_slowdowns,
    prepare,
    write_split,
)

from offload_cli.options import (
    ENCODINGS,
    EXPERT,
    LIMITS,
    LINK,
    MACHINES,
    AllowCpuOption,
    FormatOption,
    LikeOption,
    ModelArgument,
    PointsOption,
    ProviderOption,
    ShapeOption,
    ThreadsOption,
    parse_shapes,
)
from offload_cli.output import Format, Output
from offload_cli.planning_options import (
    CalibrationOption,
    DeadlineOption,
    DeviceOption,
    EncodingOption,
    ImageOption,
    KeepInputOption,
    MemoryOption,
    ObjectiveOption,
    PinOption,
    PowerOption,
    ServerOption,
    ToleranceOption,
    image_input,
)
from offload_cli.plans import bundle_json, plans_sentence, show_plan, show_plans


class Backend(StrEnum):
    """The kind of server that a plan is made for."""

    OFFLOAD = "offload"
    KSERVE = "kserve"


def split(
    model: ModelArgument,
    path: Annotated[
        Path,
        typer.Option("-o", "--output", help="Write the bundle to this folder.", show_default=False),
    ],
    link: Annotated[
        str,
        typer.Option(
            metavar="LINK",
            help="Plan for a link: `3g`, `4g`, `wifi`, `50mbit`, `100mbit`, `'20 Mbit/s,10 ms'`, a"
            " file from `offload probe`; or for a range, `'1..100 Mbit/s'` or `4g..wifi`: several"
            " plans, between which the device switches as it measures the link.",
        ),
    ] = "wifi",
    scheme: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`auto` chooses the best of `local`, `cloud`, `neurosurgeon` (cut at one tensor),"
            " `partition` (any cut, no overlap), `opss` (that cut, uploads overlapped), `joint`"
            " (cut and order chosen together).",
        ),
    ] = "auto",
    cut: Annotated[
        list[str],
        typer.Option(
            metavar="TENSOR",
            help="Cut at these tensors, separated by commas; repeatable. The device computes what"
            " they need and sends every tensor that the server lacks.",
        ),
    ] = [],  # noqa: B006  typer wants a list and copies it
    backend: Annotated[
        Backend,
        typer.Option(
            help="Plan for `offload serve`, or for another server of KServe v2 such as Triton"
            " (`kserve`): one request for each inference, encodings without codecs of ours."
        ),
    ] = Backend.OFFLOAD,
    shape: ShapeOption = [],  # noqa: B006
    image: ImageOption = "",
    form: FormatOption = Format.TEXT,
    device: DeviceOption = None,
    server: ServerOption = None,
    slowdown: Annotated[
        str,
        typer.Option(
            rich_help_panel=MACHINES,
            metavar="FACTOR",
            help="Multiply the device's seconds, to plan for a slower device; or plan for a range,"
            " `1..3`: several plans, for a device that becomes slower while it runs, say when it"
            " gets hot.",
        ),
    ] = "1",
    again: Annotated[
        bool,
        typer.Option(
            "--again", rich_help_panel=MACHINES, help="Measure again instead of using the cache."
        ),
    ] = False,
    like: LikeOption = "wifi",
    points: PointsOption = 25,
    worth: Annotated[
        float,
        typer.Option(
            rich_help_panel=LINK,
            min=0.0,
            metavar="SHARE",
            help="For a range: drop a plan if another is within SHARE of it at every bandwidth and"
            " slow-down. For plans that share frames: drop one if the others give all but SHARE of"
            " the frames/s. 0 keeps all.",
        ),
    ] = 0.05,
    objective: ObjectiveOption = "latency",
    share: Annotated[
        bool,
        typer.Option(
            "--share/--no-share",
            rich_help_panel=LIMITS,
            help="Let several plans share the rows of a batch, and with `--objective throughput` a"
            " stream's frames, so that device, link and server work at the same time, where that"
            " gains more than the prediction error. `--no-share` keeps the best single plan.",
        ),
    ] = True,
    pin_device: PinOption = 0,
    keep_input: KeepInputOption = False,
    memory: MemoryOption = "",
    deadline: DeadlineOption = "",
    energy: Annotated[
        str,
        typer.Option(
            rich_help_panel=LIMITS,
            metavar="ENERGY",
            help="Limit the device's energy per inference, like `'250 mJ'` (needs --power).",
        ),
    ] = "",
    power: PowerOption = "",
    encoding: EncodingOption = "",
    tolerance: ToleranceOption = None,
    accuracy_floor: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=ENCODINGS,
            metavar="SHARE",
            help="Allow lossy encodings that keep at least SHARE of the labels right.",
        ),
    ] = None,
    calibration: CalibrationOption = None,
    solver: Annotated[
        str,
        typer.Option(
            rich_help_panel=EXPERT,
            metavar="NAME",
            help="Order layers with this solver; `offload schedule --compare` lists them.",
        ),
    ] = "optimal",
    list_front: Annotated[
        bool,
        typer.Option(
            "--pareto",
            rich_help_panel=EXPERT,
            help="Also list the plans that trade latency for throughput.",
        ),
    ] = False,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
) -> None:
    """Choose where to cut a model and write a bundle.

    Compares six schemes: all on the device, all on the server, the best cut at one tensor, the
    best cut without overlap, that cut with uploads overlapped, and cut and order chosen together.
    The best one is written, also if it runs all layers on the device.

    With `--objective throughput`, the bundle holds several plans where they share the frames of a
    stream better than one plan alone. Where the model's rows are independent and --shape gives
    several, the bundle also holds plans that share the rows of a batch.

    Example: `offload split net.onnx --device pi.json --link wifi -o net.bundle`
    """
    output = Output(form)
    links = parse_links(link, parse_link(like), points) if is_range(link) else []
    slowdowns = parse_slowdowns(slowdown)
    if list_front and (links or len(slowdowns) > 1):
        raise InputError(
            "--pareto is for one link and one slow-down: leave it out, or give one --link and one"
            " --slowdown"
        )
    policy = EncodingPolicy.parse(encoding, tolerance, accuracy_floor, calibration)
    request = SplitRequest(
        model=model,
        link=links[0] if links else parse_link(link),
        links=tuple(links),
        worth=worth,
        share=share,
        scheme=scheme,
        cut=tuple(cut),
        device=parse_machine(device),
        server=parse_machine(server),
        slowdown=slowdowns[0],
        slowdowns=slowdowns if len(slowdowns) > 1 else (),
        shapes=parse_shapes(shape),
        solver=solver,
        constraints=Constraints(
            objective=Objective.parse(objective),
            pin_device=pin_device,
            keep_input=keep_input,
            memory_bytes=parse_bytes(memory) if memory else None,
            deadline_s=parse_duration_s(deadline) if deadline else None,
            energy_j=parse_energy_j(energy) if energy else None,
            power=Power.parse(power) if power else None,
            one_request=backend is Backend.KSERVE,
        ),
        options=EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu),
        allowance=allowed_by(backend, policy, links),
        again=again,
    )
    front: list[Alternative] = []
    with (
        output.steps() as progress,
        image_input(model, image, request.shapes or {}) as (source, shapes),
    ):
        inputs = prepare(replace(request, model=source, shapes=shapes), progress)
        bundle = write_split(inputs, path, progress)
        if list_front:
            progress("looking for plans with more throughput")
            table = encoding_selector(inputs, progress).lossless()
            estimates = pareto(inputs.problem(table=table), solver)
            front = [estimate.alternative for estimate in estimates]
    value = bundle_json(bundle)
    if list_front:
        value["pareto"] = [asdict(figures) for figures in front]
    output.result(value, f"{path}: {plans_sentence(bundle)}")
    if inputs.open_sizes:
        output.warning(f"times are not predicted: {inputs.open_sizes}")
    for profile in () if inputs.open_sizes else (inputs.device, inputs.server):
        if profile.estimated:
            output.warning(f"{profile.machine} is an estimate from FLOPs, not a measurement")
        for remark in profile.remarks:
            output.warning(f"profile of {profile.machine}: {remark}")
    if len(bundle.plan_set.ranges) == 1 and not bundle.shares:
        show_plan(output, bundle.plan)
    show_plans(output, bundle)
    if front:
        show_front(output, front)


def allowed_by(backend: Backend, policy: EncodingPolicy, links: Sequence[Link]) -> EncodingPolicy:
    """The encodings that a kind of server decodes.

    Raises:
        InputError: the server decodes none of the requested encodings, or it runs one plan and a
            range of links was given.
    """
    if backend is Backend.OFFLOAD:
        return policy
    if links:
        raise InputError("a KServe server runs one plan of a bundle: give one --link")
    return policy.without_codecs()


def show_front(output: Output, front: Sequence[Alternative]) -> None:
    """Print the Pareto front: no other plan has both less latency and a shorter period."""
    output.table(
        ("plan", ">latency", ">period", ">frames/s", ">layers on device", ">sent"),
        (
            (
                figures.scheme,
                format_s(figures.latency_s),
                format_s(figures.period_s),
                f"{1 / figures.period_s:.3g}" if figures.period_s else "",
                figures.device_layers,
                format_bytes(figures.upload_bytes),
            )
            for figures in front
        ),
        title="latency against throughput, lossless encodings only",
    )
