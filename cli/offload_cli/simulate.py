"""`offload simulate`: which plan wins over a range of links and slow-downs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.encodings import EncodingPolicy, parse_allowed
from offload.costs.link import is_range, parse_link, parse_links
from offload.errors import InputError
from offload.files import write_text
from offload.planning.problem import Constraints
from offload.planning.sweep import SweepPoint, sweep, winning_intervals
from offload.report.charts import what_if_svg
from offload.report.page import Section, page
from offload.units import format_bps, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.split import SplitRequest, encoding_selector, parse_machine, prepare

from offload_cli.options import (
    ENCODINGS,
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
    DeviceOption,
    ImageOption,
    KeepInputOption,
    PinOption,
    ServerOption,
    image_input,
)
from offload_cli.plans import first_few

HEAD = ("slow-down", "from", "to", "winner", "latency", "gain", "layers on device", "sends")


def simulate(
    model: ModelArgument,
    link: Annotated[
        str,
        typer.Option(
            metavar="LINK",
            help="Sweep these upload bandwidths, like `'1..100 Mbit/s'`; or plan for one link, as"
            " in `offload split`.",
        ),
    ] = "1..100 Mbit/s",
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    image: ImageOption = "",
    svg: Annotated[Path | None, typer.Option(help="Write the chart to this SVG file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write chart and table to this HTML file.")
    ] = None,
    form: FormatOption = Format.TEXT,
    device: DeviceOption = None,
    server: ServerOption = None,
    slowdown: Annotated[
        str,
        typer.Option(
            rich_help_panel=MACHINES,
            metavar="FACTORS",
            help="Multiply the device's seconds by one factor or several, like `1,5,20`.",
        ),
    ] = "1",
    like: LikeOption = "wifi",
    points: PointsOption = 25,
    pin_device: PinOption = 0,
    keep_input: KeepInputOption = False,
    encoding: Annotated[
        str,
        typer.Option(
            rich_help_panel=ENCODINGS,
            metavar="NAMES",
            help="Allow `lossless` encodings (raw, zstd, planes) or `raw` only.",
        ),
    ] = "lossless",
    calibration: CalibrationOption = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
) -> None:
    """Show which plan wins over a range of links and slow-downs.

    Runs the model only to measure what is not given: profiles and sizes of compressed tensors. No
    bundle is written.

    Example: `offload simulate net.onnx --device pi.json --link '1..100 Mbit/s' --svg what-if.svg`
    """
    output = Output(form)
    links = parse_links(link, parse_link(like), points) if is_range(link) else [parse_link(link)]
    factors = parse_factors(slowdown)
    request = SplitRequest(
        model=model,
        link=links[0],
        device=parse_machine(device),
        server=parse_machine(server),
        shapes=parse_shapes(shape),
        constraints=Constraints(pin_device=pin_device, keep_input=keep_input),
        options=EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu),
        allowance=lossless_policy(encoding, calibration),
    )
    with (
        output.steps() as progress,
        image_input(model, image, request.shapes or {}) as (source, shapes),
    ):
        inputs = prepare(replace(request, model=source, shapes=shapes), progress)
        table = encoding_selector(inputs, progress).lossless()
        progress(f"planning {len(links) * len(factors)} combinations of link and slow-down")
        cells = list(sweep(partial(inputs.problem, table=table), links, factors))
    sent = "raw tensors" if table is None else "lossless encodings where they pay"
    title = f"{model.stem}: latency over bandwidth"
    subtitle = f"device {inputs.device.machine}, server {inputs.server.machine}, {sent}"
    rows = table_of(cells)
    chart = what_if_svg(cells, title, subtitle) if svg or html else ""
    if svg:
        write_text(svg, chart)
        output.remark(f"wrote {svg}")
    if html:
        sections = Section("", charts=[chart]), Section("", columns=HEAD, rows=rows)
        write_text(html, page(title, "", sections))
        output.remark(f"wrote {html}")
    output.result(
        [{**asdict(cell), "winner": cell.winner} for cell in cells],
        f"{model.stem}: where each plan wins ({sent})",
    )
    output.table(HEAD, rows)


def table_of(points: Sequence[SweepPoint]) -> list[tuple[str, ...]]:
    """One row per interval of bandwidths in which one plan wins.

    The gain is against the better of all on the device and all on the server.
    """
    rows: list[tuple[str, ...]] = []
    for slowdown, group in groupby(points, lambda point: point.slowdown):
        for interval in winning_intervals(list(group)):
            gains = []
            for point in interval.cells:
                simple = [point.latency_s("local"), point.latency_s("cloud")]
                best_s, chosen_s = min(s for s in simple if s is not None), point.chosen.latency_s
                gains.append(best_s / chosen_s if chosen_s else 1.0)
            first, last = interval.cells[0].chosen, interval.cells[-1].chosen
            rows.append(
                (
                    f"{slowdown:g}x",
                    format_bps(interval.from_bps),
                    format_bps(interval.to_bps),
                    first.scheme,
                    f"{format_s(first.latency_s)} to {format_s(last.latency_s)}",
                    f"up to {max(gains):.2f}x",
                    str(last.device_layers),
                    first_few(last.cut),
                )
            )
    return rows


def lossless_policy(encoding: str, calibration: Path | None) -> EncodingPolicy:
    """The policy of lossless encodings: a sweep does not measure what lossy ones change.

    Raises:
        InputError: an unknown encoding, or a lossy one.
    """
    allowed = parse_allowed(encoding)
    if not all(option.is_lossless for option in allowed):
        raise InputError(
            f"--encoding {encoding} loses precision, which only `split` can judge: simulate with"
            " `lossless` or `raw`"
        )
    return EncodingPolicy(allowed, calibration=calibration)


def parse_factors(text: str) -> list[float]:
    """Slow-downs from `1,5,20`.

    Raises:
        InputError: not positive numbers separated by commas.
    """
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = [0.0]
    if min(factors) <= 0 or max(factors) == float("inf"):
        raise InputError(f"--slowdown {text!r} is not understood: write factors like 1,5,20")
    return factors
