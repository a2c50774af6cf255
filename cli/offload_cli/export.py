"""`offload export`: write the server's part of a bundle in the form of another server."""

from pathlib import Path
from typing import Annotated

import typer
from offload.bundle.bundle import open_bundle
from offload.planning.plan import Side
from offload_runtimes.deploy.triton import InstanceKind, TritonOptions, export_triton

from offload_cli.options import BundleArgument, FormatOption
from offload_cli.output import Format, Output

app = typer.Typer(rich_markup_mode="markdown", no_args_is_help=True)


@app.callback()
def export() -> None:
    """Write the server's part of a bundle in the form of another server."""


@app.command("triton")
def triton(
    bundle: BundleArgument,
    repository: Annotated[
        Path,
        typer.Option("-o", "--output", help="Write to this model repository.", show_default=False),
    ],
    name: Annotated[
        str, typer.Option(help="Name the model. Default: the split model's name with `.server`.")
    ] = "",
    max_batch: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Let Triton join up to N rows of several requests, where rows are independent; 0:"
            " each request alone.",
        ),
    ] = 8,
    kind: Annotated[
        InstanceKind,
        typer.Option(
            metavar="KIND", help="Run on `cpu` or `gpu`; `auto`: on a GPU if Triton finds one."
        ),
    ] = InstanceKind.AUTO,
    instances: Annotated[
        int, typer.Option(min=1, metavar="N", help="Instances on the CPU, or on each GPU.")
    ] = 1,
    form: FormatOption = Format.TEXT,
) -> None:
    """Write a model that Triton serves with its onnxruntime backend.

    A device then runs the bundle with `--server kserve://HOST:8001`. Split the model with
    `--backend kserve`, so that its server's part is one model with one request for each inference.

    Example: `offload export triton net.bundle -o model_repository/`
    """
    options = TritonOptions(name, max_batch, kind, instances)
    model = export_triton(open_bundle(bundle, (Side.SERVER,)), repository, options)
    output = Output(form)
    value = {
        "model": model.name,
        "path": str(model.path),
        "max_batch": model.max_batch,
        "why_alone": model.why_alone,
    }
    batch = f", up to {model.max_batch} rows at once" if model.max_batch else ""
    output.result(value, f"{model.path}: model {model.name}{batch}")
    if model.why_alone:
        output.remark(f"each request runs alone: {model.why_alone}")
