"""`offload models`: list the zoo, build a model of it.

The zoo is imported where it is used: other verbs start without onnx.
"""

from pathlib import Path
from typing import Annotated

import typer

from offload_cli.options import FormatOption
from offload_cli.output import Format, Output

app = typer.Typer(rich_markup_mode="markdown")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, form: FormatOption = Format.TEXT) -> None:
    """List the model zoo: published architectures with seeded random weights.

    The weights are untrained but live: another input gives another answer, so that a wrong split
    shows. They are for timing, planning and testing, not for looking at pictures. One seed gives
    one model.

    Example: `offload models`, then `offload models build googlenet -o googlenet.onnx`
    """
    if context.invoked_subcommand is not None:
        return
    from offload_models.zoo import ZOO

    output = Output(form)
    if output.is_json:
        listed = ("name", "parameters", "summary", "paper")
        output.result([{key: getattr(model, key) for key in listed} for model in ZOO.values()])
    rows = [
        (model.name, f"{model.parameters / 1e6:.1f} M", model.summary, model.paper.split(",")[0])
        for model in ZOO.values()
    ]
    output.table(("model", ">parameters", "what it is", "paper"), rows)


@app.command("build")
def build_model(
    name: Annotated[str, typer.Argument(help="A name that `offload models` lists.")],
    path: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    seed: Annotated[int, typer.Option(help="Of the random weights; 0 or more.")] = 0,
    batch: Annotated[str, typer.Option(help="A size, or a name to keep it dynamic.")] = "1",
    form: FormatOption = Format.TEXT,
) -> None:
    """Build a model of the zoo and write it as one .onnx file.

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
