"""The verb `offload bench`."""

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

from offload_cli.bench.environment import Emulated, Environment, Hosts, shaped
from offload_cli.bench.report import GOALS, write_report
from offload_cli.bench.results import Group, goals
from offload_cli.bench.subjects import PAPERS, Study, find_study
from offload_cli.bench.sweep import Sweep, measure_all, missing
from offload_cli.options import FormatOption
from offload_cli.output import Format, Output

MODELS = (*PAPERS, "randwire_private", "randwire_inside", "squeezenet", "mobilenet_v2")


def bench(
    models: Annotated[str, typer.Option(help="Models of the zoo, separated by commas.")] = ",".join(
        MODELS
    ),
    networks: Annotated[
        str, typer.Option(help="Networks, separated by semicolons: names, rates or link files.")
    ] = ";".join(PRESETS),
    slowdown: Annotated[
        float, typer.Option(min=1.0, help="How many times slower than this machine the device is.")
    ] = 10.0,
    repeats: Annotated[int, typer.Option(min=3, help="Runs of each program.")] = 9,
    budget: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.0, help="For one model on one network; 3 runs at least."
        ),
    ] = 20.0,
    folder: Annotated[Path, typer.Option("-o", "--output", help="Where results are kept.")] = Path(
        "out/experiments"
    ),
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Emulate the link in-process, without namespaces.")
    ] = False,
    quota: Annotated[
        bool, typer.Option("--quota", help="Slow the device by CPU quota, not by pacing.")
    ] = False,
    device_host: Annotated[str, typer.Option(help="A real device, as `ssh` takes it.")] = "",
    server_host: Annotated[str, typer.Option(help="A real server, as `ssh` takes it.")] = "",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the real server, as the device reaches it.")
    ] = "",
    python: Annotated[str, typer.Option(help="The interpreter on real hosts.")] = "python3",
    profiles: Annotated[
        Path | None,
        typer.Option(help="Folder of MODEL.device.json and MODEL.server.json to plan with."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when a goal is missed.")
    ] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Measure every scheme of every model on every network, and write a report.

    As root, device and server live in two network namespaces joined by a shaped link; else the
    link is emulated. Finished cells are kept: the same command goes on where it was stopped.

    Example: `offload bench --models multi_stream,squeezenet --networks "wifi;20 Mbit/s,10 ms"`
    """
    output = Output(form)
    links = _links(networks)
    hosts = Hosts(device_host, server_host, listen, python) if listen else None
    if hosts is None and (device_host or server_host):
        raise InputError("real hosts need --listen HOST:PORT, the server as the device reaches it")
    sweep = Sweep(
        tuple(find_study(name.strip()) for name in models.split(",")),
        links,
        folder,
        1.0 if hosts else slowdown,  # a real device is as slow as it is
        repeats,
        budget,
        quota,
        profiles,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _ground(output, links, emulate, hosts) as ground:
        _measure(output, sweep, ground)
        groups = [Group.load(sweep.path(s, name)) for s in sweep.studies for name in links]
        about = _about(sweep, groups)
    described = {name: link.describe() for name, link in links.items()}
    target = write_report(folder, groups, described, about)
    rows = goals(groups)
    output.table(GOALS, [row.row for row in rows], title="goals")
    output.result(
        {"report": str(target), "goals": [dict(zip(GOALS, r.row, strict=True)) for r in rows]},
        f"report: {target}",
    )
    if check and not all(row.met for row in rows):
        raise typer.Exit(1)


def _links(text: str) -> dict[str, Link]:
    """Links by a name that can be part of a file's name."""
    names = [name.strip() for name in text.split(";") if name.strip()]
    if not names:
        raise InputError("--networks names no network: give some like wifi;4g")
    return {"".join(c if c.isalnum() else "-" for c in n): parse_link(n) for n in names}


@contextmanager
def _ground(
    output: Output, links: dict[str, Link], emulate: bool, hosts: Hosts | None
) -> Iterator[Environment]:
    why_not = host.obstacle()
    if hosts is not None:
        try:
            yield hosts
        finally:
            hosts.clear()
    elif emulate or why_not:
        if why_not and not emulate:
            output.remark(f"the link is emulated in-process: {why_not.partition(':')[0]}")
        yield Emulated()
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else nothing is taken down
        with shaped(next(iter(links.values()))) as ground:
            yield ground


def _measure(output: Output, sweep: Sweep, ground: Environment) -> None:
    left = missing(sweep, ground.kind)
    total = len(sweep.studies) * len(sweep.links)
    if len(left) < total:
        output.remark(f"{total - len(left)} of {total} are finished already and kept")
    with output.progress() as bar:
        task = bar.add_task("starting", total=total, completed=total - len(left))

        def progress(phrase: str) -> None:
            bar.update(task, description=phrase)

        def done(study: Study, network: str) -> None:
            bar.advance(task)
            if bar.disable:
                output.remark(f"{study.name}, {network}: done")

        try:
            measure_all(sweep, ground, progress, done)
        except KeyboardInterrupt:
            output.error(
                f"interrupted: {sweep.folder} keeps what is finished, start again to go on"
            )
            raise typer.Exit(130) from None
        except OffloadError:
            output.remark(f"{sweep.folder} keeps what is finished, start again to go on")
            raise


def _about(sweep: Sweep, groups: Sequence[Group]) -> str:
    kinds = sorted({str(group.settings["link"]) for group in groups})
    runs = sorted(len(cell.latencies_s) for group in groups for cell in group.cells)
    way = "CPU quota" if sweep.by_quota else "pacing"
    device = f"this machine on one thread, {sweep.slowdown:g} times slower by {way}"
    return (
        f"Device: {device if sweep.slowdown > 1 else 'as it is'}; server: one thread, as it is."
        f" Link: {'; '.join(kinds)}. Medians of {_span(runs)} warm runs, schemes taking"
        " turns. Energy by a power model of the Raspberry Pi 4B (2.7 W idle, 3.7 W more while"
        " computing, 0.7 W more while sending). * marks what the planner picks. Weights are"
        " seeded; multi_stream has hidden layers of 256, not 4096. randwire_private keeps its input"
        " on the device; randwire_inside is cut where overlap is predicted to bring most, best or"
        " not."
    )


def _span(counts: Sequence[int]) -> str:
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
