"""`offload inspect`: a model's layers, tensors and where it can be cut; a bundle's plans."""

from pathlib import Path
from typing import Annotated

import typer
from offload.bundle.bundle import Bundle, open_bundle
from offload.bundle.sample_inputs import inputs_of, open_sizes_sentence
from offload.costs.profile import uncounted
from offload.graph.load import load_model
from offload.graph.model import Graph, Layer
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
    every: Annotated[
        bool, typer.Option("--all", help="List every layer, also of a long model.")
    ] = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show a model's layers as onnxruntime fuses them, what they make and how big it is.

    You can name a layer's outputs in `offload split --cut`, and any other tensor that is computed
    from an input: the layer is broken there. Of a bundle, show its plans: when each is followed,
    what runs where and what crosses.

    Example: `offload inspect googlenet.onnx`, `offload inspect net.bundle`
    """
    output = Output(form)
    if path.is_dir():
        _show_bundle(output, open_bundle(path))
        return
    model = load_model(path)
    graph = read_fused(model, parse_shapes(shape))
    unknown = open_sizes_sentence(inputs_of(model, graph).values)
    output.result(_json(graph, unknown), _summary(graph, unknown))
    shown = graph.layers if every or len(graph.layers) <= 60 else graph.layers[:50]
    output.table(
        ("layer", "operators", "makes", ">bytes", ">MFLOP", ">weights"),
        (_row(graph, layer) for layer in shown),
    )
    if len(shown) < len(graph.layers):
        output.remark(f"{len(graph.layers) - len(shown)} more layers: list them with --all")
    if unknown:
        output.warning(f"bytes and work are not known: {unknown}")
    elif graph.uncounted:
        output.warning(uncounted(graph))


def _show_bundle(output: Output, bundle: Bundle) -> None:
    output.result(bundle_json(bundle), f"{bundle.path}: {plans_sentence(bundle)}")
    show_plans(output, bundle)
    for number, plan in enumerate(bundle.plans):
        if len(bundle.plans) > 1:
            made_for = f", made for {plan.link.describe()}" if plan.link else ""
            output.text(f"plan {number}{made_for}: {plan.reason}")
        show_plan(output, plan)


def _summary(graph: Graph, unknown: str) -> str:
    flops = _flops(graph)
    counted = f"{flops / 1e9:.2f} GFLOP" if flops >= 1e8 else f"{flops / 1e6:.2f} MFLOP"
    work = "work unknown" if unknown else counted
    weights = sum(layer.weight_bytes for layer in graph.layers)
    signature = "\n".join(
        f"  {side} {name}: {_tensor(graph, name)}"
        for side, names in (("in ", graph.inputs), ("out", graph.outputs))
        for name in names
    )
    return (
        f"{graph.name}: {len(graph.layers)} layers, {format_bytes(weights)} of weights,"
        f" {work}\n{signature}"
    )


def _flops(graph: Graph) -> float:
    """What was counted, and what is assumed for the rest."""
    layers = graph.layers
    return sum(layer.assumed_flops if layer.flops is None else layer.flops for layer in layers)


def _tensor(graph: Graph, name: str) -> str:
    tensor = graph.tensors[name]
    sizes = "x".join("?" if size is None else str(size) for size in tensor.shape or ())
    size = "" if tensor.size_bytes is None else f", {format_bytes(tensor.size_bytes)}"
    return f"{tensor.dtype or 'not a tensor'} {sizes}{size}"


def _row(graph: Graph, layer: Layer) -> tuple[str, ...]:
    sizes = [graph.tensors[name].size_bytes for name in layer.outputs]
    known = [size for size in sizes if size is not None]
    return (
        layer.name,
        layer.op,
        ", ".join(layer.outputs),
        format_bytes(sum(known)) if len(known) == len(sizes) else "?",
        "" if layer.flops is None else f"{layer.flops / 1e6:.1f}",
        format_bytes(layer.weight_bytes) if layer.weight_bytes else "",
    )


def _json(graph: Graph, unknown: str) -> dict[str, object]:
    return {
        "name": graph.name,
        "sha256": graph.digest,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "flops": None if unknown else _flops(graph),
        "uncounted_share": graph.uncounted_share,
        "uncounted": list(graph.uncounted),
        "open_sizes": unknown,
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
