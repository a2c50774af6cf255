"""`offload simulate`: where each plan would win, over a range of links and slow-downs."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.encodings import EncodingPolicy, parse_allowed
from offload.costs.link import parse_link
from offload.errors import InputError
from offload.files import write_text
from offload.planning.sweep import SweepPoint, is_range, parse_links, sweep, winning_intervals
from offload.report.charts import what_if_html, what_if_svg
from offload.units import format_bps, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.split import SplitRequest, encoding_selector, parse_machine, prepare

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
    DeviceOption,
    ImageOption,
    KeepInputOption,
    PinOption,
    ServerOption,
    constraints_of,
    pictured,
)

HEAD = ("slow-down", "from", "to", "winner", "latency", "gain", "layers on device", "sends")


def simulate(
    model: ModelArgument,
    device: DeviceOption = None,
    server: ServerOption = None,
    link: Annotated[
        str,
        typer.Option(
            help="The range of bandwidths up, like '1..100 Mbit/s'; or one link, as for `split`."
        ),
    ] = "1..100 Mbit/s",
    like: LikeOption = "wifi",
    slowdown: Annotated[
        str, typer.Option(help="Multiply the device's seconds: one factor or several, like 1,5,20.")
    ] = "1",
    points: PointsOption = 25,
    svg: Annotated[Path | None, typer.Option(help="Write the chart here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write chart and table as a page here.")] = None,
    pin_device: PinOption = 0,
    keep_input: KeepInputOption = False,
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    image: ImageOption = "",
    encoding: Annotated[
        str,
        typer.Option(
            help="What tensors may become on their way: `lossless` (raw or compressed; the default,"
            " as for `split`) or `raw`."
        ),
    ] = "lossless",
    calibration: CalibrationOption = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Plan a model for every link of a range and show where each plan wins.

    Nothing is run but what must be measured: profiles that are not given, and what tensors take
    compressed. No bundle is written.

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
        constraints=constraints_of("latency", pin_device, keep_input, "", "", "", ""),
        options=EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu),
        allowance=lossless(encoding, calibration),
    )
    with output.steps() as progress, pictured(request, image) as request:
        prepared = prepare(request, progress)
        table = encoding_selector(prepared, progress).lossless()
        progress(f"planning {len(links) * len(factors)} situations")
        cells = list(sweep(partial(prepared.problem, table=table), links, factors))
    machines = f"device {prepared.device.machine}, server {prepared.server.machine}"
    sent = "raw tensors" if table is None else "lossless encodings where they pay"
    title, under = f"{model.stem}: latency over bandwidth", f"{machines}, {sent}"
    rows = table_of(cells)
    chart = what_if_svg(cells, title, under) if svg or html else ""
    if svg:
        write_text(svg, chart)
        output.remark(f"wrote {svg}")
    if html:
        write_text(html, what_if_html(chart, title, rows, HEAD))
        output.remark(f"wrote {html}")
    shown = [{**asdict(cell), "winner": cell.winner} for cell in cells]
    output.result(shown, f"{model.stem}: where each plan wins ({sent})")
    output.table(HEAD, rows)


def table_of(cells: Sequence[SweepPoint]) -> list[tuple[str, ...]]:
    """A row for each plan's reign: where it wins, its latency there, what it gains."""
    rows: list[tuple[str, ...]] = []
    for slowdown, group in groupby(cells, lambda cell: cell.slowdown):
        for reign in winning_intervals(list(group)):
            first, last = reign.cells[0], reign.cells[-1]
            cut = last.chosen.cut
            rows.append(
                (
                    f"{slowdown:g}x",
                    format_bps(reign.from_bps),
                    format_bps(reign.to_bps),
                    first.winner,
                    f"{format_s(first.chosen.latency_s)} to {format_s(last.chosen.latency_s)}",
                    f"up to {max(map(_gain, reign.cells)):.2f}x",
                    str(last.chosen.device_layers),
                    ", ".join(cut[:3]) + (f" and {len(cut) - 3} more" if len(cut) > 3 else ""),
                )
            )
    return rows


def _gain(cell: SweepPoint) -> float:
    """Against the better of all on the device and all on the server."""
    simple = [cell.latency_s("local"), cell.latency_s("cloud")]
    best_s = min(s for s in simple if s is not None)
    return best_s / cell.chosen.latency_s if cell.chosen.latency_s else 1.0


def lossless(encoding: str, calibration: Path | None) -> EncodingPolicy:
    """The allowance of encodings that lose nothing: no plan of a sweep is rehearsed.

    Raises:
        InputError: an unknown encoding, or a lossy one.
    """
    allowed = parse_allowed(encoding)
    if not all(each.is_lossless for each in allowed):
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
