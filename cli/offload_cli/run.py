"""`offload run`: run a bundle on inputs from a file."""

import json
import statistics
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from offload.bundle.bundle import open_bundle
from offload.bundle.sample_inputs import bound
from offload.costs.link import Link, parse_link
from offload.costs.profile import slowed
from offload.errors import InputError
from offload.files import write_text
from offload.planning.plan import Plan
from offload.report.gantt import chrome_trace, gantt_svg, gantt_text
from offload.scheduling.timeline import Timeline
from offload.units import format_s
from offload_runtimes.client import OffloadSession
from offload_runtimes.device.session_options import OnServerLoss
from offload_runtimes.local import open_session
from offload_runtimes.measure.profile import machine_name
from offload_runtimes.value_files import Frame, read_frames, typed, write_values

from offload_cli.options import (
    AllowCpuOption,
    BundleArgument,
    CaOption,
    CertificateOption,
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


def run(
    bundle: BundleArgument,
    inputs: Annotated[
        Path,
        typer.Option(
            "--input",
            help=".npz with an array for each input, by its name; .json where sequences or maps are"
            " among them; or a folder of pictures, each of them a run: resized, as bytes for a"
            " uint8 input (1xHxWx3), as 0 to 1 for a float input (1x3xHxW).",
        ),
    ],
    outputs: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help=".npz to write the outputs to, by their names; sequences and maps go to a .json of"
            " the same name beside it. With a folder of pictures, a folder for an .npz a picture.",
        ),
    ] = None,
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    server: Annotated[
        str,
        typer.Option(help="HOST:PORT of `offload serve`; default: a server within this process."),
    ] = "",
    link: Annotated[
        str, typer.Option(help="Emulate this link in-process, like `wifi` or `'20 Mbit/s,10 ms'`.")
    ] = "",
    slowdown: Annotated[
        float, typer.Option(min=1.0, help="Emulate a device so many times slower.")
    ] = 1.0,
    repeat: Annotated[int, typer.Option(min=1, help="Run so often; the median is shown.")] = 1,
    optimize: Annotated[
        bool,
        typer.Option(help="Without it, outputs are bit-equal to the whole model's, but slower."),
    ] = True,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds for the answer; the device goes on alone when it gets close."),
    ] = None,
    on_server_loss: Annotated[
        OnServerLoss,
        typer.Option(help="Go on here and return (resume), stay here (local), or fail (raise)."),
    ] = OnServerLoss.RESUME,
    plan: PlanOption = None,
    ca: CaOption = None,
    cert: CertificateOption = None,
    key: KeyOption = None,
    token_file: TokenOption = None,
    svg: Annotated[Path | None, typer.Option(help="Write a chart of the last run here.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of the last run (JSON) here.")
    ] = None,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Run a bundle: the device's part here, the server's part on the server.

    It runs once for an .npz, and once for each picture of a folder. Pictures are resized to the
    sizes of the model's input; --shape gives those that the model leaves open.

    Of a bundle of several plans, the one is followed that is best for the link as it is measured,
    also while --repeat goes on; --plan fixes one.

    Example: `offload run net.bundle --input in.npz --output out.npz --server 192.0.2.7:50051`
    """
    output = Output(form)
    shapes = parse_shapes(shape)
    if shapes and not inputs.is_dir():
        raise InputError("--shape says how pictures are resized: leave it out with an .npz file")
    if inputs.is_dir() and outputs and outputs.exists() and not outputs.is_dir():
        raise InputError(f"--output {outputs} is a file: give a folder for the outputs of pictures")
    opened = open_bundle(bundle)
    frames = read_frames(inputs, bound(opened.inputs, shapes))
    first = next(frames)
    emulated = parse_link(link) if link else None
    timelines: list[Timeline] = []
    with open_session(
        opened,
        server or None,
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
    ) as session:
        declared = (*session.get_inputs(), *session.get_overridable_initializers())
        names = [value.name for value in session.get_outputs()]
        ran: list[str] = []
        written: tuple[Path, ...] = ()
        for frame in chain((first,), frames):
            feeds = typed(frame.feeds, declared)
            for _ in range(repeat):
                answers, timeline = session.run_timed(None, feeds)
                timelines.append(timeline)
            ran.append(frame.name)
            if outputs:
                written = _write(outputs, frame, dict(zip(names, answers, strict=True)))
        followed_plan = session.bundle.plans[session.plan]
        link_used = session.link or emulated
        followed = _followed(session)
    if outputs:
        output.remark(f"wrote {outputs if inputs.is_dir() else ' and '.join(map(str, written))}")
    predicted = _prediction(followed_plan, link_used, slowdown)
    shown = {**({"predicted": predicted} if predicted else {}), "measured": timelines[-1]}
    if svg:
        write_text(svg, gantt_svg(shown, bundle.name))
    if trace:
        write_text(trace, json.dumps(chrome_trace(shown)))
    pictures = ran if inputs.is_dir() else []
    _report(output, names, pictures, timelines, predicted, followed)


def _prediction(plan: Plan, link: Link | None, slowdown: float) -> Timeline | None:
    """What the plan should take here; None where it was made for another device or link."""
    if plan.device != slowed(machine_name(), slowdown) or not plan.alternatives:
        return None
    return plan.predicted(link)


def _write(target: Path, frame: Frame, answers: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write a run's outputs: to the file, or for a picture into the folder, under its name."""
    if frame.name:
        target = target / f"{frame.name}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
    return write_values(target, answers)


def _followed(session: OffloadSession) -> dict[str, object]:
    """Which plan of several was followed in the end, and the changes; nothing where one is all."""
    if len(session.bundle.plans) == 1:
        return {}
    return {
        "plan": session.plan,
        "link": session.link.to_json() if session.link else None,
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


def _report(
    output: Output,
    names: list[str],
    pictures: list[str],
    timelines: list[Timeline],
    predicted: Timeline | None,
    followed: Mapping[str, Any],
) -> None:
    seconds = [timeline.makespan_s for timeline in timelines]
    median_s = statistics.median(seconds)
    output.result(
        {
            "outputs": names,
            **({"inputs": pictures} if pictures else {}),
            "latency_s": median_s,
            "latencies_s": seconds,
            "predicted_s": predicted.makespan_s if predicted else None,
            "timeline": timelines[-1].to_json(),
            **followed,
        },
        f"{format_s(median_s)} measured (median of {len(seconds)})"
        + (f", {format_s(predicted.makespan_s)} predicted" if predicted else ""),
    )
    if followed:
        link = Link.from_json(followed["link"]).describe() if followed["link"] else "not measured"
        changes = [
            f"{s['before']} -> {s['after']} at {s['at_s']:.1f} s" for s in followed["switches"]
        ]
        changed = f"; changed {', '.join(changes)}" if changes else ""
        output.text(f"plan {followed['plan']}, link {link}{changed}")
    output.text(gantt_text({"measured": timelines[-1]}, 100))
