"""Options of planning: objective, limits, encodings, pictures."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from offload.errors import InputError
from offload.files import temporary_folder
from offload.planning.problem import Constraints, Objective, Power
from offload.units import parse_bytes, parse_duration_s, parse_energy_j
from offload_models.image import Rgb, save_with_image_input
from offload_runtimes.measure.split import SplitRequest

DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="The device's profile, or its FLOP/s like `5e9` for an estimate; default: measured"
        " here."
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        help="The server's profile, or its FLOP/s like `1e11` for an estimate; default: measured"
        " here."
    ),
]
ObjectiveOption = Annotated[
    str,
    typer.Option(
        help="What shall be best: `latency` of one inference, `throughput` of a stream of frames,"
        " or the device's `energy` (needs --power)."
    ),
]
PinOption = Annotated[
    int, typer.Option("--pin-device", min=0, help="So many first layers stay on the device.")
]
KeepInputOption = Annotated[
    bool, typer.Option("--keep-input", help="The model's inputs never leave the device.")
]
MemoryOption = Annotated[
    str, typer.Option(help="The device's process must fit in this, like '256 MB'.")
]
DeadlineOption = Annotated[
    str, typer.Option(help="The predicted latency must not exceed this, like '100 ms'.")
]
EnergyOption = Annotated[
    str, typer.Option(help="The device's energy per inference must not exceed this, like '250 mJ'.")
]
PowerOption = Annotated[
    str,
    typer.Option(
        help="The device's watts at rest, and what computing and sending add: IDLE,COMPUTE,SEND."
    ),
]


def constraints_of(
    objective: str,
    pin_device: int,
    keep_input: bool,
    memory: str,
    deadline: str,
    energy: str,
    power: str,
) -> Constraints:
    """The objective and the limits of the options.

    Raises:
        InputError: an unknown objective or quantity, or energy without power.
    """
    return Constraints(
        objective=Objective.parse(objective),
        pin_device=pin_device,
        keep_input=keep_input,
        memory_bytes=parse_bytes(memory) if memory else None,
        deadline_s=parse_duration_s(deadline) if deadline else None,
        energy_j=parse_energy_j(energy) if energy else None,
        power=Power.parse(power) if power else None,
    )


EncodingOption = Annotated[
    str,
    typer.Option(
        help="What tensors may become on their way: `raw`, `lossless` (raw, zstd or planes; the"
        " default), `fp16`, `uint8`, `uint8-channel`, `uint6`, `uint4` (all also compressed), `any`"
        " of these, `png` and `jpeg` for pictures (need Pillow), or names joined by commas. What"
        " loses precision needs --tolerance or --accuracy-floor."
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        help="Allow lossy encodings that change no output by more than this part of its range on"
        " any calibration input (of whole numbers: the share that changes)."
    ),
]
FloorOption = Annotated[
    float | None,
    typer.Option(
        help="Allow lossy encodings with which at least this share of the calibration's labels"
        " comes out right."
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        help="Inputs to measure sizes and effects on: an .npz file with an array for each input"
        " (and `labels`), or a folder of pictures (a sub-folder for each class)."
    ),
]


Shapes = Mapping[str, tuple[int, ...]]

# What most ImageNet models were trained with.
NORMALISATION: dict[str, tuple[Rgb, Rgb]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

ImageOption = Annotated[
    str,
    typer.Option(
        "--image",
        help="Put the preprocessing into the model, so that its input is the picture's bytes"
        " (uint8 NxHxWx3, a fourth of the size): `imagenet` mean and deviation, `unit` for 0..1,"
        " `signed` for -1..1.",
    ),
]


@contextmanager
def taking_pictures(model: Path, image: str, shapes: Shapes) -> Iterator[tuple[Path, Shapes]]:
    """The model's file with a picture's bytes as input, and the shapes of its inputs.

    Without `--image`, what was given. The file lasts as long as the block.

    Raises:
        InputError: an unknown normalisation, or a model without just one picture.
    """
    if not image:
        yield model, shapes
        return
    if image not in NORMALISATION:
        known = ", ".join(NORMALISATION)
        raise InputError(f"--image {image!r} is not known: use one of {known}")
    with temporary_folder() as folder:
        path = folder / model.name
        yield path, save_with_image_input(model, path, *NORMALISATION[image], shapes)


@contextmanager
def pictured(request: SplitRequest, image: str) -> Iterator[SplitRequest]:
    """The request with its model taking a picture's bytes; as it was without `--image`.

    Raises:
        InputError: as `taking_pictures`.
    """
    with taking_pictures(request.model, image, request.shapes or {}) as (path, shapes):
        yield replace(request, model=path, shapes=shapes) if image else request
