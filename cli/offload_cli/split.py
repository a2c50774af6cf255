"""`offload split`: from a model to a bundle."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.encodings import EncodingPolicy
from offload.costs.link import parse_link
from offload.errors import InputError
from offload.planning.planner import pareto
from offload.planning.scheme import SchemeEstimate
from offload.planning.sweep import is_range, parse_links
from offload.units import format_bytes, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.split import (
    PlanningInputs,
    SplitRequest,
    encoding_selector,
    parse_machine,
    prepare,
    write_split,
)

from offload_cli.options import (
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
    EnergyOption,
    FloorOption,
    ImageOption,
    KeepInputOption,
    MemoryOption,
    ObjectiveOption,
    PinOption,
    PowerOption,
    ServerOption,
    ToleranceOption,
    constraints_of,
    pictured,
)
from offload_cli.plans import bundle_json, plans_sentence, show_plan, show_plans


def split(
    model: ModelArgument,
    path: Annotated[
        Path, typer.Option("-o", "--output", help="The bundle's folder.", show_default=False)
    ],
    scheme: Annotated[
        str,
        typer.Option(
            help="`auto` takes the best; or `local`, `cloud`, `neurosurgeon` (split at one tensor),"
            " `partition` (least sum, nothing overlapped), `opss` (the same cut, uploads"
            " overlapped), `joint` (the cut that overlaps best)."
        ),
    ] = "auto",
    cut: Annotated[
        list[str],
        typer.Option(
            help="Force the cut at a tensor, or at several, separated by commas; repeatable. The"
            " device computes exactly what they need; every tensor the server then lacks is sent."
        ),
    ] = [],  # noqa: B006
    device: DeviceOption = None,
    server: ServerOption = None,
    link: Annotated[
        str,
        typer.Option(
            help="The link: `3g`, `4g`, `wifi`, `50mbit`, `100mbit`, `'20 Mbit/s,10 ms'`, or a file"
            " written by `offload probe`; or a range like `'1..100 Mbit/s'`: a bundle of the plans"
            " that win in it, between which the device changes as it measures the link."
        ),
    ] = "wifi",
    like: LikeOption = "wifi",
    points: PointsOption = 25,
    worth: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Of a range: keep a plan if on some link no other one is nearly as good, within"
            " this share; 0 keeps all.",
        ),
    ] = 0.05,
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    slowdown: Annotated[
        float, typer.Option(min=0.001, help="Multiply the device's seconds: a slower device.")
    ] = 1.0,
    solver: Annotated[
        str, typer.Option(help="The scheduler; `offload schedule --compare` shows them.")
    ] = "optimal",
    objective: ObjectiveOption = "latency",
    pin_device: PinOption = 0,
    keep_input: KeepInputOption = False,
    memory: MemoryOption = "",
    deadline: DeadlineOption = "",
    energy: EnergyOption = "",
    power: PowerOption = "",
    front: Annotated[
        bool,
        typer.Option("--pareto", help="Also list the plans that trade latency for throughput."),
    ] = False,
    encoding: EncodingOption = "",
    tolerance: ToleranceOption = None,
    accuracy_floor: FloorOption = None,
    calibration: CalibrationOption = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Measure again what is known of this machine: seconds and sizes."
        ),
    ] = False,
    image: ImageOption = "",
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Choose where to cut a model, order the device's work, and write both halves as a bundle.

    Six schemes are compared: all on the device, all on the server, the best cut at one tensor, the
    best cut with nothing overlapped, that cut with uploads hidden behind computation, and the cut
    chosen for the overlap. The best is written, also when that is to stay local.

    Example: `offload split net.onnx --device pi.json --link wifi -o net.bundle`
    """
    output = Output(form)
    links = parse_links(link, parse_link(like), points) if is_range(link) else []
    if links and front:
        raise InputError("--pareto is for one link: leave it out, or give one --link")
    request = SplitRequest(
        model=model,
        link=links[0] if links else parse_link(link),
        links=tuple(links),
        worth=worth,
        scheme=scheme,
        cut=tuple(cut),
        device=parse_machine(device),
        server=parse_machine(server),
        slowdown=slowdown,
        shapes=parse_shapes(shape),
        solver=solver,
        constraints=constraints_of(
            objective, pin_device, keep_input, memory, deadline, energy, power
        ),
        options=EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu),
        allowance=EncodingPolicy.parse(encoding, tolerance, accuracy_floor, calibration),
        again=again,
    )
    with output.steps() as progress, pictured(request, image) as request:
        prepared = prepare(request, progress)
        bundle = write_split(prepared, path, progress)
        plans = _front(prepared, progress) if front else ()
    shown = bundle_json(bundle) | ({"pareto": _front_json(plans)} if front else {})
    output.result(shown, f"{path}: {plans_sentence(bundle)}")
    if prepared.open_sizes:
        output.warning(f"times are not predicted: {prepared.open_sizes}")
    for profile in () if prepared.open_sizes else (prepared.device, prepared.server):
        if profile.estimated:
            output.warning(f"{profile.machine} is an estimate from FLOPs, not a measurement")
        for remark in profile.remarks:
            output.warning(f"profile of {profile.machine}: {remark}")
    if len(bundle.plans) == 1:
        show_plan(output, bundle.plan)
    show_plans(output, bundle)
    show_front(output, plans)


def _front(prepared: PlanningInputs, progress: Progress) -> tuple[SchemeEstimate, ...]:
    """The front with the lossless encodings that are allowed: no plan of it is rehearsed."""
    progress("looking for plans of more throughput")
    table = encoding_selector(prepared, progress).lossless()
    return pareto(prepared.problem(table=table), prepared.request.solver)


def _front_json(plans: Sequence[SchemeEstimate]) -> list[dict[str, object]]:
    return [asdict(plan.alternative) for plan in plans]


def show_front(output: Output, plans: Sequence[SchemeEstimate]) -> None:
    """Plans of which none is both faster and more frequent than another."""
    if plans:
        figures = [plan.alternative for plan in plans]
        output.table(
            ("plan", ">latency", ">period", ">frames/s", ">layers on device", ">sent"),
            (
                (
                    a.scheme,
                    format_s(a.latency_s),
                    format_s(a.period_s),
                    f"{1 / a.period_s:.3g}" if a.period_s else "",
                    a.device_layers,
                    format_bytes(a.upload_bytes),
                )
                for a in figures
            ),
            title="latency against throughput, nothing lost on the way",
        )
