"""`offload up` and `offload down`: from a model to a split inference on two machines, and back."""

from pathlib import Path
from typing import Annotated, Any

import typer
from offload.costs.encodings import EncodingPolicy
from offload.errors import InputError
from offload.planning.problem import Constraints, Objective, Power
from offload.records import fields_to_json, to_json
from offload.units import parse_bytes, parse_duration_s
from offload_models.image import picture_input_name
from offload_runtimes.deploy.up import UpRequest, UpResult
from offload_runtimes.deploy.up import down as take_down
from offload_runtimes.deploy.up import up as bring_up

from offload_cli.options import (
    DEFAULT_DEVICES,
    DevicesOption,
    FormatOption,
    ModelArgument,
    ShapeOption,
    WheelhouseOption,
    find_targets,
    parse_shapes,
)
from offload_cli.output import Format, Output
from offload_cli.planning_options import (
    CalibrationOption,
    DeadlineOption,
    EncodingOption,
    ImageOption,
    KeepInputOption,
    MemoryOption,
    ObjectiveOption,
    PowerOption,
    ToleranceOption,
    image_input,
)
from offload_cli.up_page import COLUMNS, command, lossy_note, program, rows, verdict, write_page

DeviceArgument = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE",
        help="The device: a name of devices.toml, user@host or a directory here.",
        show_default=False,
    ),
]
ServerArgument = Annotated[
    str,
    typer.Argument(
        metavar="SERVER",
        help="The server: a name of devices.toml, user@host or a directory here.",
        show_default=False,
    ),
]


def up(
    model: ModelArgument,
    device: DeviceArgument,
    server: ServerArgument,
    folder: Annotated[
        Path,
        typer.Option("-o", "--output", help="Keep profiles, bundles, results and keys here."),
    ] = Path("up"),
    calibration: CalibrationOption = None,
    image: ImageOption = "",
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    only_try: Annotated[
        bool, typer.Option("--try", help="Measure only: set nothing up, leave nothing running.")
    ] = False,
    runs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Run each scheme N times, but at most a minute.")
    ] = 20,
    again: Annotated[
        bool, typer.Option("--again", help="Measure again what is known from an earlier call.")
    ] = False,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Use plaintext between the two, not mutual TLS."),
    ] = False,
    objective: ObjectiveOption = "latency",
    deadline: DeadlineOption = "",
    tolerance: ToleranceOption = None,
    encoding: EncodingOption = "",
    keep_input: KeepInputOption = False,
    memory: MemoryOption = "",
    power: PowerOption = "",
    wheelhouse: WheelhouseOption = None,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Measure a model on your device and your server, and set up the fastest way to run it.

    Installs the runtime on both if it is missing, profiles the model on both, probes the link,
    plans the cut, runs every scheme on the real machines in turns, then deploys the best and
    starts the server, with certificates made for it. A release in use runs on until then.

    A second call repeats only what has changed. Writes `index.html` with the comparison.

    Example: `offload up net.onnx pi@raspberrypi.local me@gpu.local --calibration photos/`
    """
    output = Output(form)
    targets = tuple(find_targets([name], devices)[0] for name in (device, server))
    policy = EncodingPolicy.parse(encoding, tolerance, None, calibration)
    constraints = Constraints(
        objective=Objective.parse(objective),
        keep_input=keep_input,
        memory_bytes=parse_bytes(memory) if memory else None,
        deadline_s=parse_duration_s(deadline) if deadline else None,
        power=Power.parse(power) if power else None,
    )
    if not model.exists():
        raise InputError(f"{model} does not exist: check the path")
    tensor = picture_input_name(model, parse_shapes(shape)) or ""
    if not image and tensor and calibration and calibration.is_dir():
        image = "unit"
        output.remark(
            f"{tensor!r} takes pictures with values from 0 to 1 (--image unit); --image names other"
            " preprocessing, `none` keeps the model's own input"
        )
    with (
        image_input(model, "" if image == "none" else image, parse_shapes(shape)) as (
            source,
            shapes,
        ),
        output.steps() as progress,
    ):
        result = bring_up(
            UpRequest(
                source,
                device=targets[0],
                server=targets[1],
                folder=folder,
                shapes=shapes,
                float_input=tensor if image not in ("", "none") else "",
                constraints=constraints,
                policy=policy,
                repeats=runs,
                insecure=insecure,
                only_try=only_try,
                again=again,
                wheelhouse=wheelhouse,
            ),
            progress,
        )
    page = write_page(folder, model.name, targets, result)
    output.result(_up_json(result, page), verdict(result))
    output.table(COLUMNS, rows(result), title="* is set up" if result.running else "* is best")
    for line in filter(None, (lossy_note(result), *result.remarks)):
        output.remark(line)
    if result.running:
        output.text(f"\nIn a program on {device}:\n\n{program(result)}\n\nTo try it:\n")
        output.text(command(result, targets[0]))
    output.text(f"\nThe comparison: {page}")


def _up_json(result: UpResult, page: Path) -> dict[str, Any]:
    return {
        "chosen": result.chosen,
        "verdict": verdict(result),
        "schemes": [{**fields_to_json(s), "median_s": s.median_s} for s in result.schemes],
        "link": to_json(result.link),
        "device": {"machine": result.device[0], "whole_s": result.device[1]},
        "server": {"machine": result.server[0], "whole_s": result.server[1]},
        "bundle": str(result.bundle),
        "address": result.address,
        "secure": result.secure,
        "running": result.running,
        "command": list(result.command),
        "remarks": list(result.remarks),
        "repeated": list(result.repeated),
        "page": str(page),
    }


def down(
    device: DeviceArgument,
    server: ServerArgument,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also remove the runtime and all releases.")
    ] = False,
    devices: DevicesOption = DEFAULT_DEVICES,
    form: FormatOption = Format.TEXT,
) -> None:
    """Stop and remove what `offload up` started on a device and a server.

    Stops the server, and removes its unit, certificates and keys. The runtime and the releases
    stay, so that the next `up` is quick; --purge removes them, too.

    Example: `offload down pi gpu`
    """
    output = Output(form)
    targets = [find_targets([name], devices)[0] for name in (device, server)]
    with output.steps() as progress:
        progress("stopping")
        lines = take_down(*targets, purge=purge)
    output.result({"done": lines}, "\n".join(lines))
