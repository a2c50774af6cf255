"""Sizes that are inferred, against those of a real run with every inner tensor exposed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import SampleOptions, sample
from offload.graph.infer import infer_types
from offload.graph.load import Model, load_model
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.measure.inner_tensors import shapes_by_running
from offload_runtimes.measure.profile import optimized_model

from tests.edge_cases import EDGE_CASES, Arrays, EdgeCase

EXPORTED = sorted((Path(__file__).parents[2] / "frameworks" / "exported").rglob("*.onnx"))


def compare(model: Model, path: Path, arrays: Arrays | None = None) -> set[str]:
    """Check that inferred sizes are right where known; gives the fixed ones that are not known."""
    engine = load(path, EngineOptions(optimize=False))
    caller = SampleOptions(arrays or {})
    feeds = sample(inputs_of(model), lambda feeds: engine.run(None, feeds), caller, 1)[0]
    given = {name: np.shape(feeds[name]) for name in model.values.inputs}
    types = infer_types(model.proto, model.values, model.weights, given)
    names = [
        name
        for node in model.values.order
        if node not in model.values.constant
        for name in model.values.produces[node]
        if name and types.can_cross(name) and types.tensor(name).dtype != "int4"
    ]
    found = shapes_by_running(model, names, [feeds]) if names else {}
    left = set()
    for name, tensor in found.items():
        known = types.tensor(name)
        if known.shape is None or None in known.shape:
            left.add(name)
        else:
            assert (known.dtype, known.shape) == (tensor.dtype, tensor.shape)
    return {name for name in left if types.is_sized(name)}


@pytest.mark.parametrize("path", EXPORTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_exported_models(path: Path) -> None:
    model = load_model(path)
    left = compare(model, path)
    assert not left or any(node.domain == "ai.onnx.ml" for node in model.proto.graph.node)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_tricky_models(case: EdgeCase, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(case.model, path)
    compare(load_model(path), path, case.feeds)


VENDORS = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[2,3,8] x) => (float[A,B,C] y)
<float[8,16] w = {NUMBERS}> {
    m = com.microsoft.FusedMatMul(x, w) s = com.microsoft.QuickGelu(m)
    y = Softmax(s) }""".replace("NUMBERS", ",".join(["0.1"] * 128))


def test_what_vendors_operators_make_is_found_by_running(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(VENDORS), tmp_path / "net.onnx")
    graph = optimized_model(load_model(tmp_path / "net.onnx"), tmp_path).graph
    assert graph.tensors["y"].shape == (2, 3, 16)
    assert graph.uncounted_share == 0
    assert sum(layer.flops or 0 for layer in graph.layers) == 2 * 6 * 8 * 16 + 2 * 96


def test_what_varies_between_inputs_is_left_unknown(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[64,4] x) => (int64[2,M] y) { a = Relu(x) y = NonZero(a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    model = load_model(tmp_path / "net.onnx")
    one, other = ({"x": np.full((64, 4), n, np.float32)} for n in (0, 1))
    found = shapes_by_running(model, ["a", "y"], [one, other])
    assert found["a"].shape == (64, 4)
    assert "y" not in found
    assert model.types.unresolved() == []
