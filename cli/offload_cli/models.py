"""`offload models`: list the model zoo, and build one of its models.

The zoo is imported inside the commands: `--help` needs no onnx.
"""

from pathlib import Path
from typing import Annotated

import typer

from offload_cli.options import FormatOption
from offload_cli.output import Format, Output

app = typer.Typer(rich_markup_mode="markdown")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, form: FormatOption = Format.TEXT) -> None:
    """List the model zoo; `models build` writes one of its models.

    The zoo has published architectures with seeded random weights: untrained, but another input
    gives another output, so that a wrong split shows. Use them for timing, planning and testing.
    The same seed gives the same model.

    Example: `offload models`, then `offload models build googlenet -o googlenet.onnx`
    """
    if context.invoked_subcommand is not None:
        return
    from offload_models.zoo import ZOO

    output = Output(form)
    if output.is_json:
        keys = ("name", "parameters", "summary", "paper")
        output.result([{key: getattr(model, key) for key in keys} for model in ZOO.values()])
    rows = [
        (model.name, f"{model.parameters / 1e6:.1f} M", model.summary, model.paper.split(",")[0])
        for model in ZOO.values()
    ]
    output.table(("model", ">parameters", "description", "paper"), rows)


@app.command("build")
def build_model(
    name: Annotated[str, typer.Argument(help="A name from `offload models`.")],
    path: Annotated[
        Path, typer.Option("-o", "--output", help="Write the model to this .onnx file.")
    ],
    seed: Annotated[int, typer.Option(metavar="N", help="Seed the random weights; 0 or more.")] = 0,
    batch: Annotated[
        str, typer.Option(help="Set the batch size, or a name for a dynamic one.")
    ] = "1",
    form: FormatOption = Format.TEXT,
) -> None:
    """Build a model of the zoo and write it to an .onnx file.

    Example: `offload models build googlenet -o googlenet.onnx --seed 7`
    """
    from offload_models.zoo import build, save

    output = Output(form)
    with output.progress() as progress:
        task = progress.add_task(f"building {name}", total=2)
        model = build(name, seed, int(batch) if batch.isdecimal() else batch)
        progress.update(task, advance=1, description=f"writing {path}")
        save(model, path)
    size_bytes = path.stat().st_size
    output.result(
        {"model": name, "seed": seed, "path": str(path), "size_bytes": size_bytes},
        f"{path}: {name}, {len(model.graph.node)} nodes, {size_bytes / 1e6:.1f} MB",
    )
