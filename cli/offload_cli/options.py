"""Options that several verbs share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from offload.errors import InputError

from offload_cli.output import Format

FormatOption = Annotated[
    Format,
    typer.Option("--format", help="`text` for people; `json` for scripts: one value on stdout."),
]

ModelArgument = Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)]
BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle's folder, made by `offload split`.", show_default=False)
]
PlanOption = Annotated[
    int | None,
    typer.Option("--plan", min=0, help="Of a bundle of several plans: this one, by its number."),
]
ShapeOption = Annotated[
    list[str],
    typer.Option(
        "--shape",
        help="Sizes for an input with dynamic dimensions, like `x=1x3x224x224`; repeatable.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads of onnxruntime; default: one per physical core.")
]
ProviderOption = Annotated[
    list[str],
    typer.Option(
        "--provider",
        help="Execution provider: `cpu`, `cuda`, `tensorrt`, `openvino`; repeatable, in order of"
        " preference. A provider that is missing is an error.",
    ),
]
AllowCpuOption = Annotated[
    bool,
    typer.Option(
        "--allow-cpu", help="Run on the CPU, with a warning, where a provider is missing."
    ),
]
LikeOption = Annotated[
    str, typer.Option(help="A link whose start-up times and way down a range shares.")
]
PointsOption = Annotated[int, typer.Option(min=2, max=200, help="Links in a range.")]
LinkOption = Annotated[
    str,
    typer.Option(
        help="The link: `3g`, `4g`, `wifi`, `50mbit`, `100mbit`, `'20 Mbit/s,10 ms'`, or a file"
        " written by `offload probe`."
    ),
]


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from `name=1x3x224x224`; `name=` is a scalar.

    Raises:
        InputError: not of that form, or a size below zero.
    """
    shapes = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.lower().split("x") if sizes else []
        if not equals or not name or not all(part.isdecimal() for part in parts):
            raise InputError(f"--shape {text!r} is not understood: write it like x=1x3x224x224")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes
