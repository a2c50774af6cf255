"""`offload run`: run a bundle on inputs from a file, or on pictures."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from offload.bundle.bundle import Bundle, ModelValue, open_bundle
from offload.bundle.sample_inputs import bound
from offload.costs.link import parse_link
from offload.costs.profile import slowed
from offload.errors import InputError
from offload.files import write_text
from offload.planning.batch import MicroBatch
from offload.planning.plan import Side
from offload.records import to_json
from offload.report.gantt import chrome_trace, gantt_svg, gantt_text, named
from offload.scheduling.timeline import Timeline
from offload.units import format_s
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.session_options import OnServerLoss
from offload_runtimes.engine import EngineOptions, rows_of
from offload_runtimes.local import open_session
from offload_runtimes.measure.target_machine import TargetMachine, TargetSession
from offload_runtimes.measure.timing import machine_name
from offload_runtimes.value_files import Frame, read_frames, typed, write_values

from offload_cli.on_target import OnOption, machine_on
from offload_cli.options import (
    DEFAULT_DEVICES,
    EXPERT,
    AllowCpuOption,
    BundleArgument,
    CaOption,
    CertificateOption,
    DevicesOption,
    FormatOption,
    KeyOption,
    PlanOption,
    ProviderOption,
    ShapeOption,
    ThreadsOption,
    TokenOption,
    client_security,
    parse_shapes,
)
from offload_cli.output import Format, Output

EMULATION = "Emulation"


def run(
    bundle: BundleArgument,
    inputs: Annotated[
        Path,
        typer.Option(
            "--input",
            help="Read inputs by name from an .npz, or a .json for sequences and maps; or run each"
            " picture of a folder, resized, as uint8 1xHxWx3 or as float 1x3xHxW from 0 to 1.",
        ),
    ],
    outputs: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Write outputs by name to this .npz, sequences and maps to a .json beside it; for"
            " pictures, one .npz per picture to this folder.",
        ),
    ] = None,
    server: Annotated[
        list[str],
        typer.Option(
            metavar="HOST:PORT",
            help="Use this `offload serve`, or `kserve://HOST:PORT[/MODEL]`, a server of KServe v2"
            " such as Triton; default: a server in this process. Repeat it for several servers:"
            " when one is lost, the next one is used.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    plan: PlanOption = None,
    repeat: Annotated[
        int, typer.Option(min=1, metavar="N", help="Run N times; the median is reported.")
    ] = 1,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Run all inputs, --repeat times, as one stream with several frames under way;"
            " report frames per second.",
        ),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --stream: at most N frames under way; default: as many as keep device, link"
            " and server busy.",
        ),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share/--no-share",
            help="Let several plans share the frames of a stream and the rows of a batch, if the"
            " bundle was made for that; `--no-share` runs one plan.",
        ),
    ] = True,
    svg: Annotated[
        Path | None, typer.Option(help="Write a chart of the last run to this SVG file.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace (JSON) of the last run to this file.")
    ] = None,
    form: FormatOption = Format.TEXT,
    deadline: Annotated[
        float | None,
        typer.Option(
            rich_help_panel="Server loss",
            metavar="SECONDS",
            help="Answer within SECONDS: the device finishes alone if the server is late.",
        ),
    ] = None,
    on_server_loss: Annotated[
        OnServerLoss,
        typer.Option(
            rich_help_panel="Server loss",
            help="If the server is lost: finish here and reconnect (`resume`), stay here (`local`),"
            " or fail (`raise`).",
        ),
    ] = OnServerLoss.RESUME,
    link: Annotated[
        str,
        typer.Option(
            rich_help_panel=EMULATION,
            metavar="LINK",
            help="Emulate a link in this process, like `wifi` or `'20 Mbit/s,10 ms'`.",
        ),
    ] = "",
    slowdown: Annotated[
        float,
        typer.Option(
            rich_help_panel=EMULATION,
            min=1.0,
            metavar="FACTOR",
            help="Emulate a device that is FACTOR times slower.",
        ),
    ] = 1.0,
    ca: CaOption = None,
    cert: CertificateOption = None,
    key: KeyOption = None,
    token_file: TokenOption = None,
    optimize: Annotated[
        bool,
        typer.Option(
            rich_help_panel=EXPERT,
            help="Turn onnxruntime's optimisations off for outputs bit-equal to the whole model's.",
        ),
    ] = True,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    on: OnOption = "",
    devices: DevicesOption = DEFAULT_DEVICES,
) -> None:
    """Run a bundle on inputs from a file, or on pictures.

    The device's part runs here, or on the target that --on names, the server's part on the
    server. Pictures are resized to the model's input; --shape sets sizes that the model leaves
    open.

    A bundle with several plans switches to the best plan for the measured link, also during
    --repeat; --plan fixes one. With --stream, plans made by `split --objective throughput` share
    the frames. Plans share the rows of a batch where `split` says so.

    Example: `offload run net.bundle --input in.npz --output out.npz --server 192.0.2.7:50051`
    """
    output = Output(form)
    shapes = parse_shapes(shape)
    check_paths(inputs, outputs, shapes)
    opened = open_bundle(bundle)
    frames = read_frames(inputs, bound(opened.inputs, shapes))
    first = next(frames)
    frames = chain((first,), frames)
    emulated = parse_link(link) if link else None
    if stream and (on or svg or trace):
        raise InputError("--stream measures frames per second: leave out --on, --svg and --trace")
    if window and not stream:
        raise InputError("--window limits the frames of a stream: give --stream, too")
    if on:
        follows_loss = on_server_loss is not OnServerLoss.RESUME
        is_emulated = emulated is not None or slowdown != 1
        if is_emulated or deadline or token_file or not (optimize and share) or follows_loss:
            raise InputError(
                "--on measures a real device with its server: leave out --link, --slowdown,"
                " --deadline, --on-server-loss, --token-file, --no-optimize and --no-share"
            )
        files = tuple(path for path in (ca, cert, key) if path is not None)
        if files and len(files) < 3:
            raise InputError("with --on, give --ca, --cert and --key, or none of them")
        options = EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu)
        with _session_on(on, devices, options, opened, server, files, plan) as remote:

            def infer(feeds: Mapping[str, Any]) -> tuple[list[Any], Timeline]:
                values, measured = remote.run(feeds)
                return values, measured.timeline

            declared = (*opened.inputs, *opened.defaults)
            runs = _run_all(infer, remote.outputs, declared, frames, repeat, inputs, outputs)
        _report(output, runs, None, {}, bundle.name, svg, trace)
        output.text(gantt_text({"measured": runs.timelines[-1]}, 100))
        return
    with open_session(
        opened,
        _one_or_list(server),
        providers=tuple(provider),
        allow_cpu=allow_cpu,
        threads=threads,
        optimize=optimize,
        link=emulated,
        slowdown=slowdown,
        deadline_s=deadline,
        on_server_loss=on_server_loss,
        security=client_security(ca, cert, key, token_file),
        plan=plan,
        share=share,
    ) as session:
        declared = (*session.get_inputs(), *session.get_overridable_initializers())
        names = [value.name for value in session.get_outputs()]
        if stream:
            _report_stream(
                output, session, _stream(session, frames, repeat, window, outputs), server
            )
            return
        run_timed = partial(session.run_timed, None)
        runs = _run_all(run_timed, names, declared, frames, repeat, inputs, outputs)
        followed = session.bundle.plans[session.plan]
        link_used = session.link or emulated
        shared = session.micro_batches(rows_of(first.feeds) or 0)
        switching = {
            **_switching_json(session),
            **_batch_json(shared),
            **_servers_json(session, server),
        }
    # A plan predicts only for the device and the link that it was made for.
    is_planned_device = followed.device == slowed(machine_name(), slowdown)
    comparable = is_planned_device and bool(followed.alternatives) and not shared
    predicted = followed.predicted(link_used) if comparable else None
    runs = replace(runs, timelines=[named(timeline, followed) for timeline in runs.timelines])
    predicted = named(predicted, followed) if predicted else None
    _report(output, runs, predicted, switching, bundle.name, svg, trace)
    _show_plans_used(output, session, shared)
    _show_servers_used(output, session, server)
    output.text(gantt_text({"measured": runs.timelines[-1]}, 100))


@contextmanager
def _session_on(
    on: str,
    devices: Path,
    options: EngineOptions,
    bundle: Bundle,
    servers: Sequence[str],
    files: Sequence[Path],
    plan: int | None,
) -> Iterator[TargetSession]:
    """A session on a target, to which the files of the bundle are sent."""
    if len(servers) > 1:
        raise InputError("--on measures a device with one server: give --server once")
    with machine_on(on, devices, options) as (machine, engine):
        assert isinstance(machine, TargetMachine)
        sides = (Side.DEVICE,) if servers else tuple(Side)
        name = machine.send_bundle(bundle, *sides)
        yield machine.open_session(name, servers[0] if servers else None, files, engine, plan)


@dataclass(frozen=True)
class _Runs:
    """Runs of a bundle: names of its outputs, timelines, names of pictures, written files."""

    outputs: Sequence[str]
    timelines: Sequence[Timeline]
    pictures: Sequence[str]
    written: Sequence[Path]


def _run_all(
    infer: Callable[[Mapping[str, Any]], tuple[list[Any], Timeline]],
    names: Sequence[str],
    declared: Sequence[ModelValue],
    frames: Iterable[Frame],
    repeat: int,
    inputs: Path,
    outputs: Path | None,
) -> _Runs:
    """Run each frame and write its outputs."""
    timelines: list[Timeline] = []
    pictures: list[str] = []
    written: Sequence[Path] = ()
    for frame in frames:
        feeds = typed(frame.feeds, declared)
        for _ in range(repeat):
            values, timeline = infer(feeds)
            timelines.append(timeline)
        if inputs.is_dir():
            pictures.append(frame.name)
        if outputs:
            target = outputs / f"{frame.name}.npz" if frame.name else outputs
            if frame.name:
                target.parent.mkdir(parents=True, exist_ok=True)
            written = write_values(target, dict(zip(names, values, strict=True)))
    return _Runs(names, timelines, pictures, (outputs,) if outputs and pictures else written)


@dataclass(frozen=True)
class _StreamRun:
    """The result of a stream: its frames, and the seconds from the first to the last answer."""

    frames: int
    first_s: float
    rest_s: float
    written: Sequence[Path]

    @property
    def frames_per_s(self) -> float:
        """After the first answer, so that the time to fill the window does not count."""
        return (self.frames - 1) / self.rest_s if self.frames > 1 else 1 / self.first_s


def _stream(
    session: OffloadSession,
    frames: Iterable[Frame],
    repeat: int,
    window: int | None,
    outputs: Path | None,
) -> _StreamRun:
    """Run all frames as one stream, and write the outputs of the last repetition."""
    declared = (*session.get_inputs(), *session.get_overridable_initializers())
    names = [value.name for value in session.get_outputs()]
    inputs = [(frame.name, typed(frame.feeds, declared)) for frame in frames]
    written: dict[Path, None] = {}
    begun_s = time.monotonic()
    first_s, count = 0.0, 0
    for name, values in session.stream(inputs * repeat, window=window):
        count += 1
        first_s = first_s or time.monotonic() - begun_s
        if outputs and count > len(inputs) * (repeat - 1):
            target = outputs / f"{name}.npz" if name else outputs
            target.parent.mkdir(parents=True, exist_ok=True)
            write_values(target, dict(zip(names, values, strict=True)))
            written[outputs] = None
    rest_s = time.monotonic() - begun_s - first_s
    return _StreamRun(count, first_s, rest_s, tuple(written))


def _one_or_list(servers: Sequence[str]) -> str | Sequence[str] | None:
    """The servers as a session takes them."""
    return servers[0] if len(servers) == 1 else servers or None


def _report_stream(
    output: Output, session: OffloadSession, run: _StreamRun, servers: Sequence[str]
) -> None:
    if run.written:
        output.remark(f"wrote {' and '.join(map(str, run.written))}")
    by_plan = list(session.counts.by_plan)
    used = [(number, count) for number, count in enumerate(by_plan) if count]
    shared = ", ".join(
        f"plan {number} ({session.bundle.plans[number].scheme}): {count}" for number, count in used
    )
    output.result(
        {
            "frames": run.frames,
            "frames_per_s": run.frames_per_s,
            "first_answer_s": run.first_s,
            "by_plan": by_plan,
            "link": session.link.to_json() if session.link else None,
            "speeds": to_json(session.speeds),
            **_servers_json(session, servers),
        },
        f"{run.frames_per_s:.3g} frames/s in a stream of {run.frames} frames ({shared})",
    )
    _show_servers_used(output, session, servers)


def _report(
    output: Output,
    runs: _Runs,
    predicted: Timeline | None,
    switching: Mapping[str, object],
    name: str,
    svg: Path | None,
    trace: Path | None,
) -> None:
    """Print the measured latency, and write the charts."""
    if runs.written:
        output.remark(f"wrote {' and '.join(map(str, runs.written))}")
    charted = {**({"predicted": predicted} if predicted else {}), "measured": runs.timelines[-1]}
    if svg:
        write_text(svg, gantt_svg(charted, name))
    if trace:
        write_text(trace, json.dumps(chrome_trace(charted)))
    latencies_s = [timeline.makespan_s for timeline in runs.timelines]
    median_s = statistics.median(latencies_s)
    output.result(
        {
            "outputs": list(runs.outputs),
            **({"inputs": list(runs.pictures)} if runs.pictures else {}),
            "latency_s": median_s,
            "latencies_s": latencies_s,
            "predicted_s": predicted.makespan_s if predicted else None,
            "timeline": runs.timelines[-1].to_json(),
            **switching,
        },
        f"{format_s(median_s)} measured (median of {len(latencies_s)})"
        + (f", {format_s(predicted.makespan_s)} predicted" if predicted else ""),
    )


def check_paths(inputs: Path, outputs: Path | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse options that fit only a folder of pictures, or only a file.

    Raises:
        InputError: --shape with a file, or an output file for a folder of pictures.
    """
    if shapes and not inputs.is_dir():
        raise InputError("--shape sets the size of pictures: leave it out with an .npz file")
    if inputs.is_dir() and outputs and outputs.exists() and not outputs.is_dir():
        raise InputError(f"--output {outputs} is a file: give a folder for the outputs of pictures")


def _show_plans_used(output: Output, session: OffloadSession, shared: Sequence[MicroBatch]) -> None:
    """Print which plans computed the rows of a batch, and how the session changed plans."""
    if shared:
        rows = (f"{each.rows} by plan {each.plan}" for each in shared)
        output.text(f"rows of the batch: {', '.join(rows)}")
    if len(session.bundle.plans) > 1:
        changes = [
            f"{switch.before} -> {switch.after} at {switch.at_s:.1f} s"
            for switch in session.switches
        ]
        described = session.link.describe() if session.link else "not measured"
        changed = f"; changed {', '.join(changes)}" if changes else ""
        speeds = session.speeds.describe()
        output.text(f"plan {session.plan}, link {described}, {speeds}{changed}")


def _show_servers_used(output: Output, session: OffloadSession, servers: Sequence[str]) -> None:
    """Print how many inferences each of several servers answered."""
    if len(servers) > 1:
        counts = session.counts
        used = [f"{server}: {count}" for server, count in counts.by_server.items()]
        without = counts.runs - sum(counts.by_server.values())
        used += [f"the device alone: {without}"] if without else []
        output.text(f"inferences by server: {', '.join(used)}")


def _servers_json(session: OffloadSession, servers: Sequence[str]) -> dict[str, object]:
    """The inferences that each server answered; empty for one server."""
    return {"by_server": dict(session.counts.by_server)} if len(servers) > 1 else {}


def _batch_json(shared: Sequence[MicroBatch]) -> dict[str, object]:
    """The micro-batches of a batch that plans share, in order; empty if one plan computes it."""
    return {"micro_batches": list(map(asdict, shared))} if shared else {}


def _switching_json(session: OffloadSession) -> dict[str, object]:
    """The plan in use and the switches so far; empty for a bundle with one plan."""
    if len(session.bundle.plans) == 1:
        return {}
    return {
        "plan": session.plan,
        "link": session.link.to_json() if session.link else None,
        "speeds": to_json(session.speeds),
        "switches": [
            {
                "at_s": switch.at_s,
                "before": switch.before,
                "after": switch.after,
                "link": switch.link.to_json(),
            }
            for switch in session.switches
        ],
    }
