"""`offload inspect`: the layers and tensors of a model, or the plans of a bundle."""

from pathlib import Path
from typing import Annotated

import typer
from offload.bundle.bundle import Bundle, open_bundle
from offload.bundle.layers import read_layers
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import open_sizes_sentence
from offload.costs.profile import uncounted
from offload.errors import InputError
from offload.files import write_text
from offload.graph.load import load_model
from offload.graph.model import Graph, Layer
from offload.report.cut import cut_page, cut_svg
from offload.units import format_bytes
from offload_runtimes.measure.profile import read_fused

from offload_cli.options import FormatOption, ShapeOption, parse_shapes
from offload_cli.output import Format, Output
from offload_cli.plans import bundle_json, plans_sentence, show_plan, show_plans


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|BUNDLE", help="The .onnx file, or a bundle's folder.", show_default=False
        ),
    ],
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    list_all: Annotated[
        bool, typer.Option("--all", help="List every layer, also of a long model.")
    ] = False,
    page_file: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="For a bundle: write a page that shows where the model is cut to this file.",
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For a bundle: write the picture of one plan to this file."
        ),
    ] = None,
    number: Annotated[
        int,
        typer.Option(
            "--plan", metavar="N", help="With --svg: plan index, for bundles with several plans."
        ),
    ] = 0,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show a model's layers and tensors, or a bundle's plans.

    Layers are those that onnxruntime fuses. `offload split --cut` takes any tensor that is computed
    from an input; a tensor inside a fused layer breaks the layer there. For a bundle, shows the
    bandwidths each plan is for, what runs where and what is sent.

    Example: `offload inspect googlenet.onnx`, `offload inspect net.bundle --html cut.html`
    """
    output = Output(form)
    if path.is_dir():
        bundle = open_bundle(path)
        _draw(output, bundle, page_file, svg, number)
        _show_bundle(output, bundle)
        return
    if page_file or svg:
        raise InputError(
            f"{path} is not a bundle, so it has no cut to draw: make one with `offload split`"
        )
    model = load_model(path)
    graph = read_fused(model, parse_shapes(shape))
    open_sizes = open_sizes_sentence(inputs_of(model, graph).values)
    output.result(_graph_json(graph, open_sizes), _summary(graph, open_sizes))
    layers = graph.layers
    shown = layers if list_all or len(layers) <= 60 else layers[:50]
    rows = []
    for layer in shown:
        sizes = [graph.tensors[name].size_bytes for name in layer.outputs]
        known = [size for size in sizes if size is not None]
        rows.append(
            (
                layer.name,
                layer.op,
                ", ".join(layer.outputs),
                format_bytes(sum(known)) if len(known) == len(sizes) else "?",
                "" if layer.flops is None else f"{layer.flops / 1e6:.1f}",
                format_bytes(layer.weight_bytes) if layer.weight_bytes else "",
            )
        )
    output.table(("layer", "operators", "outputs", ">bytes", ">MFLOP", ">weights"), rows)
    if len(shown) < len(layers):
        output.remark(f"{len(layers) - len(shown)} more layers: list them with --all")
    if open_sizes:
        output.warning(f"bytes and work are not known: {open_sizes}")
    elif graph.uncounted:
        output.warning(uncounted(graph))


def _draw(
    output: Output, bundle: Bundle, page_file: Path | None, svg: Path | None, number: int
) -> None:
    """Write the pictures of a bundle that are asked for."""
    if page_file is not None:
        write_text(page_file, cut_page(bundle))
        output.remark(f"wrote {page_file}")
    if svg is not None:
        write_text(svg, cut_svg(read_layers(bundle.path), bundle.only(number).plan))
        output.remark(f"wrote {svg}")


def _show_bundle(output: Output, bundle: Bundle) -> None:
    output.result(bundle_json(bundle), f"{bundle.path}: {plans_sentence(bundle)}")
    show_plans(output, bundle)
    for number, plan in enumerate(bundle.plans):
        if len(bundle.plans) > 1:
            made_for = f", made for {plan.made_for}" if plan.made_for else ""
            output.text(f"plan {number}{made_for}: {plan.reason}")
        show_plan(output, plan)


def _summary(graph: Graph, open_sizes: str) -> str:
    """Name, layers, weights and work, then one line per input and output."""
    flops = sum(map(_flops, graph.layers))
    counted = f"{flops / 1e9:.2f} GFLOP" if flops >= 1e8 else f"{flops / 1e6:.2f} MFLOP"
    work = "work unknown" if open_sizes else counted
    weights = sum(layer.weight_bytes for layer in graph.layers)
    lines = [
        f"{graph.name}: {len(graph.layers)} layers, {format_bytes(weights)} of weights, {work}"
    ]
    for direction, names in (("in ", graph.inputs), ("out", graph.outputs)):
        for name in names:
            tensor = graph.tensors[name]
            shape = "x".join("?" if size is None else str(size) for size in tensor.shape or ())
            size = "" if tensor.size_bytes is None else f", {format_bytes(tensor.size_bytes)}"
            lines.append(f"  {direction} {name}: {tensor.dtype or 'not a tensor'} {shape}{size}")
    return "\n".join(lines)


def _flops(layer: Layer) -> float:
    """Operations of a layer: counted, or assumed where they could not be counted."""
    return layer.assumed_flops if layer.flops is None else layer.flops


def _graph_json(graph: Graph, open_sizes: str) -> dict[str, object]:
    return {
        "name": graph.name,
        "sha256": graph.digest,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "flops": None if open_sizes else sum(map(_flops, graph.layers)),
        "uncounted_share": graph.uncounted_share,
        "uncounted": list(graph.uncounted),
        "open_sizes": open_sizes,
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "inputs": list(layer.inputs),
                "outputs": list(layer.outputs),
                "flops": layer.flops,
                "weight_bytes": layer.weight_bytes,
            }
            for layer in graph.layers
        ],
        "tensors": {
            name: {
                "dtype": tensor.dtype,
                "shape": None if tensor.shape is None else list(tensor.shape),
                "size_bytes": tensor.size_bytes,
            }
            for name, tensor in graph.tensors.items()
        },
    }
