"""`offload bench`: measure every scheme on every model and network."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.link import PRESETS, Link, parse_link
from offload.errors import InputError, OffloadError
from offload_runtimes.emulation import host

from offload_cli.bench.environment import Emulated, Environment, shaped
from offload_cli.bench.machines import bench_machines
from offload_cli.bench.measure import BenchOptions, measure_all, missing
from offload_cli.bench.report import GOALS, write_report
from offload_cli.bench.results import Group, goals
from offload_cli.bench.subjects import PAPERS, Study, find_study
from offload_cli.options import DEFAULT_DEVICES, EXPERT, MACHINES, DevicesOption, FormatOption
from offload_cli.output import Format, Output
from offload_cli.planning_options import CalibrationOption, ImageOption

MODELS = (*PAPERS, "randwire_private", "randwire_inside", "squeezenet", "mobilenet_v2")


def bench(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL.onnx]...",
            help="With --on: measure these models; default: --models.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        str, typer.Option(help="Measure these models of the zoo, separated by commas.")
    ] = ",".join(MODELS),
    networks: Annotated[
        str,
        typer.Option(
            help="Measure on these networks, separated by semicolons: names, rates or link files."
        ),
    ] = ";".join(PRESETS),
    folder: Annotated[
        Path, typer.Option("-o", "--output", help="Write results and report to this folder.")
    ] = Path("out/experiments"),
    repeats: Annotated[int, typer.Option(min=3, metavar="N", help="Run each program N times.")] = 9,
    budget: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            help="Limit the time of one model on one network; at least 3 runs are made.",
        ),
    ] = 20.0,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a goal is missed.")
    ] = False,
    form: FormatOption = Format.TEXT,
    slowdown: Annotated[
        float,
        typer.Option(
            rich_help_panel="Emulation",
            min=1.0,
            metavar="FACTOR",
            help="Make the device FACTOR times slower than this machine.",
        ),
    ] = 10.0,
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate",
            rich_help_panel="Emulation",
            help="Emulate the link in-process, without namespaces.",
        ),
    ] = False,
    quota: Annotated[
        bool,
        typer.Option(
            "--quota",
            rich_help_panel="Emulation",
            help="Slow the device by CPU quota, not by pacing.",
        ),
    ] = False,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            rich_help_panel=MACHINES,
            metavar="DEVICE,SERVER",
            help="Measure on these two targets, names of devices.toml, user@host or directories,"
            " over their real link: --networks and emulation do not apply.",
        ),
    ] = "",
    calibration: CalibrationOption = None,
    image: ImageOption = "",
    devices: DevicesOption = DEFAULT_DEVICES,
    profiles: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=EXPERT,
            help="Plan with MODEL.device.json and MODEL.server.json from this folder.",
        ),
    ] = None,
) -> None:
    """Measure every scheme on every model and network.

    As root, device and server run in two network namespaces joined by a shaped link; otherwise the
    link is emulated in-process. Results of a finished model and network are saved: the same command
    continues where it was stopped.

    With --on, device and server are real machines, and any model can be measured.

    Example: `offload bench --models multi_stream,squeezenet --networks "wifi;20 Mbit/s,10 ms"` or
    `offload bench net.onnx --on pi,hub`
    """
    output = Output(form)
    if on:
        named = () if files else tuple(name.strip() for name in models.split(","))
        is_good = bench_machines(
            output, files or (), named, image, on, devices, folder, calibration, repeats, budget
        )
        if check and not is_good:
            raise typer.Exit(1)
        return
    if files:
        raise InputError("models from files are measured on real machines: add --on DEVICE,SERVER")
    names = [name.strip() for name in networks.split(";") if name.strip()]
    if not names:
        raise InputError("--networks names no network: give some like wifi;4g")
    # Names become parts of file names.
    links = {"".join(c if c.isalnum() else "-" for c in name): parse_link(name) for name in names}
    options = BenchOptions(
        tuple(find_study(name.strip()) for name in models.split(",")),
        links,
        folder,
        slowdown,
        repeats,
        budget,
        quota,
        profiles,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _environment(output, links, emulate) as environment:
        _measure(output, options, environment)
        groups = [Group.load(options.path(s, name)) for s in options.studies for name in links]
    described = {name: link.describe() for name, link in links.items()}
    target = write_report(folder, groups, described, _about(options, groups))
    rows = goals(groups)
    output.table(GOALS, [row.row for row in rows], title="goals")
    output.result(
        {"report": str(target), "goals": [dict(zip(GOALS, r.row, strict=True)) for r in rows]},
        f"report: {target}",
    )
    if check and not all(row.met for row in rows):
        raise typer.Exit(1)


@contextmanager
def _environment(output: Output, links: dict[str, Link], emulate: bool) -> Iterator[Environment]:
    """A testbed where this machine can run one, otherwise an emulated link."""
    obstacle = host.obstacle()
    if emulate or obstacle:
        if obstacle and not emulate:
            output.remark(f"the link is emulated in-process: {obstacle.partition(':')[0]}")
        yield Emulated()
    else:
        # Exit by exception on SIGTERM, so that the testbed is removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        with shaped(next(iter(links.values()))) as environment:
            yield environment


def _measure(output: Output, options: BenchOptions, environment: Environment) -> None:
    remaining = len(missing(options, environment.kind))
    total = len(options.studies) * len(options.links)
    if remaining < total:
        output.remark(f"{total - remaining} of {total} are finished and saved already")
    with output.progress() as bar:
        task = bar.add_task("starting", total=total, completed=total - remaining)

        def progress(phrase: str) -> None:
            bar.update(task, description=phrase)

        def done(study: Study, network: str) -> None:
            bar.advance(task)
            if bar.disable:
                output.remark(f"{study.name}, {network}: done")

        saved = f"{options.folder} keeps what is finished, start again to continue"
        try:
            measure_all(options, environment, progress, done)
        except KeyboardInterrupt:
            output.error(f"interrupted: {saved}")
            raise typer.Exit(130) from None
        except OffloadError:
            output.remark(saved)
            raise


def _about(options: BenchOptions, groups: Sequence[Group]) -> str:
    """How it was measured, in a few sentences."""
    kinds = sorted({str(group.settings["link"]) for group in groups})
    runs = sorted(len(cell.latencies_s) for group in groups for cell in group.cells)
    count = f"{runs[0]}" if runs[0] == runs[-1] else f"{runs[0]} to {runs[-1]}"
    method = "CPU quota" if options.by_quota else "pacing"
    device = f"this machine on one thread, {options.slowdown:g} times slower by {method}"
    return (
        f"Device: {device if options.slowdown > 1 else 'not slowed down'}; server: one thread, not"
        f" slowed down. Link: {'; '.join(kinds)}. Medians of {count} warm runs, schemes taking"
        " turns. Energy by a power model of the Raspberry Pi 4B (2.7 W idle, 3.7 W more while"
        " computing, 0.7 W more while sending). * marks the planner's pick. Weights are seeded;"
        " multi_stream has hidden layers of 256, not 4096. randwire_private keeps its input on the"
        " device; randwire_inside is cut where overlap is predicted to gain most, even if another"
        " cut is better."
    )
