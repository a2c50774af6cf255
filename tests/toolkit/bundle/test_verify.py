"""The check finds planted bugs, names the tensor, and reports tensors it cannot judge."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.bundle import verify
from offload.bundle.engine_input import EngineInput, part_input
from offload.bundle.subgraph import Part
from offload.bundle.verify import (
    CutCheck,
    crossing_tensors,
    distinct_cuts,
    noise,
    parts_of_cut,
)
from offload.errors import InputError
from offload.graph import value_index
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.graph.value_index import consumed_values
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.verify import check_of
from onnx import ModelProto, NodeProto

from tests.edge_cases import EDGE_CASES, text
from tests.toolkit.graphs import graphs

BY_NAME = {case.name: case.model for case in EDGE_CASES}
CAPTURES = BY_NAME["if captures activations, weights and constants"]
CROSSED = text(
    """g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Exp(x) d = Tanh(a) e = Neg(b)
    y = Sub(d, e) }"""
)


def checked(proto: ModelProto, folder: Path) -> tuple[CutCheck, ...]:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    check = check_of(load_model(path), EngineOptions(threads=1))
    return check.cuts(distinct_cuts(check.graph, 16))


def test_a_correct_split_passes(tmp_path: Path) -> None:
    for item in checked(CROSSED, tmp_path):
        assert item.exact == 0
        assert not item.mismatches
        assert not item.idle


@pytest.mark.parametrize("dropped", ["a", "b", "w", "k"])
def test_a_dropped_capture_is_named(
    dropped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def forgetful(node: NodeProto) -> tuple[str, ...]:
        return tuple(n for n in consumed_values(node) if node.op_type != "If" or n != dropped)

    monkeypatch.setattr(value_index, "consumed_values", forgetful)
    wrong = [m for item in checked(CAPTURES, tmp_path) for m in item.mismatches]
    assert {m.tensor for m in wrong} == {dropped}
    assert f"lacks tensor '{dropped}'" in str(wrong[0])


def test_swapped_cut_tensors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device swaps the names of two tensors of equal shape and dtype."""

    def swapped(model: Model, part: Part, path: Path, types: Any) -> EngineInput:
        source = part_input(model, part, path, types)
        if path.name == "device-0.onnx":
            device = onnx.load(path)
            for node in device.graph.node:
                node.output[0] = {"a": "b", "b": "a"}.get(node.output[0], node.output[0])
                node.input[0] = {"a": "b", "b": "a"}.get(node.input[0], node.input[0])
            onnx.save(device, path)
        return source

    monkeypatch.setattr(verify, "part_input", swapped)
    checks = {item.tensors: item for item in checked(CROSSED, tmp_path)}
    assert {m.tensor for m in checks["a", "b"].mismatches} == {"a", "b", "y"}
    assert "is off by" in str(checks["a", "b"].mismatches[0])
    assert not checks["d", "e"].mismatches


def test_a_missing_output_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(graph: Any, device: Any) -> dict[str, Part]:
        parts = parts_of_cut(graph, device)
        server = parts["server-0.onnx"]
        parts["server-0.onnx"] = dataclasses.replace(server, outputs=server.outputs[:-1])
        return parts

    monkeypatch.setattr(verify, "parts_of_cut", forgetful)
    assert any(m.tensor == "y" for item in checked(CROSSED, tmp_path) for m in item.mismatches)


def test_noise_that_changes_nothing_is_reported(tmp_path: Path) -> None:
    """Weights of zero: any split would pass."""
    proto = text(
        """g (float[N,2] x) => (float[N,2] y) <float[2] w = {0, 0}> { a = Tanh(x)
        b = Mul(a, w) y = Add(b, x) }"""
    )
    checks = {item.tensors: item.idle for item in checked(proto, tmp_path)}
    assert checks["a",] == ("a",)
    assert checks["b",] == ()


def test_a_model_with_random_outputs_cannot_be_verified(tmp_path: Path) -> None:
    proto = text("g (float[N,2] x) => (float[N,2] y) { r = RandomNormalLike(x) y = Add(x, r) }")
    with pytest.raises(InputError, match="output 'y' differs each time"):
        checked(proto, tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 4), np.float32),
        np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16),
        np.array([True, False]),
        np.array([7]),
        np.array([255], np.uint8),
        np.arange(10, dtype=np.int8),
        np.array([np.inf, np.nan, 1], np.float32),
    ],
)
def test_noise_has_other_numbers_of_the_same_type(array: np.ndarray[Any, Any]) -> None:
    other = noise(array, np.random.default_rng(1))
    assert other.dtype == array.dtype
    assert other.shape == array.shape
    assert not np.array_equal(other, array)


@given(graphs(), st.integers(2, 30))
def test_cuts_are_distinct_and_closed(graph: Graph, most: int) -> None:
    cuts = distinct_cuts(graph, most)
    assert len(set(cuts)) == len(cuts) <= most
    assert frozenset() in cuts
    assert frozenset(range(len(graph.layers))) in cuts
    assert all(graph.ancestors(device) == device for device in cuts)


@given(graphs())
def test_parts_contain_all_nodes_and_exchange_the_crossing_tensors(graph: Graph) -> None:
    nodes = sorted(node for layer in graph.layers for node in layer.nodes)
    for device in distinct_cuts(graph, 8):
        parts = parts_of_cut(graph, device)
        one, two = parts["device-0.onnx"], parts["server-0.onnx"]
        assert sorted((*one.nodes, *two.nodes)) == nodes
        assert set(two.inputs) <= set(crossing_tensors(parts)) | set(graph.inputs)
        assert set(graph.outputs) <= {*one.outputs, *two.outputs}
