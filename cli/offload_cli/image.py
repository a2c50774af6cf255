"""`--image`: the picture's bytes as the model's input, so that they can be what is sent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from offload.errors import InputError
from offload.files import temporary_folder
from offload_models.image import Rgb, save_with_image_input
from offload_runtimes.planning.situation import SplitRequest

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
