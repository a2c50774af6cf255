"""Options of planning: machines, objective and limits, encodings, image input."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from offload.errors import InputError
from offload.files import temporary_folder
from offload_models.image import Rgb, save_with_image_input

from offload_cli.options import ENCODINGS, LIMITS, MACHINES

DeviceOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MACHINES,
        metavar="PROFILE",
        help="Give the device's profile, or FLOP/s like `5e9` for an estimate; default: measure"
        " here.",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MACHINES,
        metavar="PROFILE",
        help="Give the server's profile, or FLOP/s like `1e11` for an estimate; default: measure"
        " here.",
    ),
]

PinOption = Annotated[
    int,
    typer.Option(
        "--pin-device",
        rich_help_panel=LIMITS,
        metavar="N",
        min=0,
        help="Pin the first N layers to the device.",
    ),
]
KeepInputOption = Annotated[
    bool,
    typer.Option(
        "--keep-input", rich_help_panel=LIMITS, help="Never send the model's inputs to the server."
    ),
]

ObjectiveOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=LIMITS,
        metavar="NAME",
        help="Minimise `latency`, the seconds per frame of a stream (`throughput`), or the"
        " device's `energy` (needs --power).",
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=LIMITS,
        metavar="SIZE",
        help="Limit the memory of the device's process, like `'256 MB'`.",
    ),
]
DeadlineOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=LIMITS,
        metavar="TIME",
        help="Limit the predicted latency, like `'100 ms'`.",
    ),
]
PowerOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=LIMITS,
        metavar="WATTS",
        help="Give the device's idle power and what computing and sending add, like `2.0,3.5,0.8`.",
    ),
]
EncodingOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=ENCODINGS,
        metavar="NAMES",
        help="Allow encodings: `raw`, `lossless` (default: raw, zstd, planes), `fp16`, `uint8`,"
        " `uint8-channel`, `uint6`, `uint4`, `any`, or `png`, `jpeg`, `jpeg95` for pictures"
        " (need Pillow); separate by commas. Lossy ones need --tolerance or --accuracy-floor.",
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=ENCODINGS,
        metavar="SHARE",
        help="Allow lossy encodings that change each output by at most SHARE of its range"
        " (integers: SHARE of the values).",
    ),
]

CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=ENCODINGS,
        metavar="FILE",
        help="Measure sizes and effects on these inputs: an .npz with an array per input (and"
        " `labels`), or a folder of pictures (a sub-folder per class).",
    ),
]

# Mean and deviation that most ImageNet models were trained with, and two plain ranges.
NORMALISATION: dict[str, tuple[Rgb, Rgb]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

ImageOption = Annotated[
    str,
    typer.Option(
        "--image",
        metavar="NAME",
        help="Add preprocessing to the model so that its input is uint8 NxHxWx3, a quarter of the"
        " bytes: `imagenet` mean and deviation, `unit` for 0..1, `signed` for -1..1.",
    ),
]

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def image_input(model: Path, image: str, shapes: Shapes) -> Iterator[tuple[Path, Shapes]]:
    """A model file whose input is a picture's bytes, and its input shapes, for `--image`.

    The file is removed after the block. Without `--image`, the model and the shapes as given.

    Raises:
        InputError: the normalisation is unknown, or the model's input is not one picture.
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
