"""Small models with one property each that is easily split wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

Arrays = Mapping[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(7)
SIGNATURE = "g (float[N,4] x) => (float[N,4] y)"
WEIGHT = "<float[4] w = {1.5, -2, 3, 0.5}>"


@dataclass(frozen=True)
class EdgeCase:
    """A model and what to feed it; `exact` is False where an engine rounds between kernels."""

    name: str
    model: ModelProto
    feeds: Arrays = field(default_factory=dict)
    exact: bool = True


def text(
    graph: str, ir: int = 8, opset: int = 17, more: str = "", functions: str = ""
) -> ModelProto:
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{more}]>'
    return onnx.parser.parse_model(f"{header}\n{graph}\n{functions}")


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names, in bodies too."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, names)


X = {"x": floats(3, 4)}
EDGE_CASES: list[EdgeCase] = []


def edge_case(
    graph: str, feeds: Arrays | None = None, *, exact: bool = True, **options: Any
) -> Callable[[Callable[[ModelProto], None]], None]:
    """Register the model written in a function's decorator, after the function changed it."""

    def register(change: Callable[[ModelProto], None]) -> None:
        model = text(graph, **options)
        change(model)
        EDGE_CASES.append(EdgeCase(change.__name__, model, X if feeds is None else feeds, exact))

    return register


def plain(name: str, graph: str, feeds: Arrays | None = None, **options: Any) -> None:
    exact = options.pop("exact", True)
    EDGE_CASES.append(EdgeCase(name, text(graph, **options), X if feeds is None else feeds, exact))


def if_body(name: str, body: str) -> str:
    return f"{name} () => (float[N,4] {name}_out) {{ {body} }}"


def either(then: str, otherwise: str) -> str:
    return f"<then_branch = {if_body('t', then)}, else_branch = {if_body('e', otherwise)}>"


CONDITION = (
    "s = ReduceSum <keepdims=0> (x) zero = Constant <value = float {0}> () c = Less(zero, s)"
)
