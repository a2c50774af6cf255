"""Every cut of every edge case: both parts return the bits of the whole model."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from offload.bundle.subgraph import Part, part_of
from offload.bundle.verify import parts_of_cut
from offload.bundle.weights import write_parts
from offload.graph.load import Model, load_model
from offload.graph.model import Graph, Tensor
from offload.graph.read import read_graph
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.profiling import tensor_types

from tests.edge_cases import EDGE_CASES, Arrays, EdgeCase
from tests.toolkit.tensor_cuts import parts_at

AS_WRITTEN = EngineOptions(optimize=False, threads=1)
MOST_CUTS = 40


def cuts(graph: Graph) -> list[frozenset[int]]:
    """All down-closed sets of a small graph; of a large one, prefixes and ancestors of layers."""
    count = len(graph.layers)
    cuts = {frozenset(range(size)) for size in range(count + 1)}
    cuts |= {graph.ancestors([layer]) for layer in range(count)}
    for size in range(2, count):
        for chosen in itertools.combinations(range(count), size):
            if len(cuts) >= MOST_CUTS:
                return sorted(cuts, key=sorted)
            cuts.add(graph.ancestors(chosen))
    return sorted(cuts, key=sorted)


def run(path: Path, known: Arrays) -> dict[str, Any]:
    engine = load(path, AS_WRITTEN)
    defaults = [value for value in engine.defaults if value.name in known]
    names = [value.name for value in (*engine.inputs, *defaults)]
    outputs = engine.run(None, {name: known[name] for name in names})
    return dict(zip((value.name for value in engine.outputs), outputs, strict=True))


def types(model: Model, graph: Graph, folder: Path) -> dict[str, Tensor]:
    """Types, from the engine, of tensors that shape inference can't follow."""
    unknown = [name for name, tensor in graph.tensors.items() if tensor.dtype is None]
    if not unknown:
        return {}
    whole = part_of(graph, range(len(graph.layers)), unknown)
    write_parts(model, {"whole-0.onnx": whole}, folder)
    types = tensor_types(folder / "whole-0.onnx")
    return {name: Tensor(name, types[name].type[7:-1], None, None) for name in unknown}


def check_format(proto: onnx.ModelProto) -> None:
    """Check the model, unless a rank is unknown: the checker requires all ranks."""
    values = (*proto.graph.input, *proto.graph.output)
    if all(value.type.tensor_type.HasField("shape") for value in values):
        onnx.checker.check_model(proto)


def check_cut(
    model: Model, case: EdgeCase, parts: dict[str, Part], known: dict[str, Tensor], folder: Path
) -> Iterator[tuple[str, Any]]:
    write_parts(model, parts, folder, known)
    values = dict(case.feeds)
    for name, part in parts.items():
        check_format(onnx.load(folder / name))
        if part.outputs:
            outputs = run(folder / name, values)
            assert outputs.keys() == set(part.outputs)
            values.update(outputs)
            yield from outputs.items()


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_every_cut_is_right(case: EdgeCase, tmp_path: Path) -> None:
    source = tmp_path / "whole.onnx"
    onnx.save(case.model, source)
    expected = run(source, case.feeds)
    model = load_model(source)
    graph = read_graph(model)
    known = types(model, graph, tmp_path)
    for device in cuts(graph):
        parts = parts_of_cut(graph, device)
        outputs = dict(check_cut(model, case, parts, known, tmp_path))
        assert_right(case, outputs, expected, sorted(device))


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_cutting_at_tensors_straight_from_the_file_is_right(case: EdgeCase, tmp_path: Path) -> None:
    source = tmp_path / "whole.onnx"
    onnx.save(case.model, source)
    expected = run(source, case.feeds)
    model = load_model(source)
    graph = read_graph(model)
    known = types(model, graph, tmp_path)
    for device in cuts(graph):
        tensors = part_of(graph, device).outputs
        outputs = dict(check_cut(model, case, parts_at(model, tensors), known, tmp_path))
        assert_right(case, outputs, expected, tensors)


def assert_right(case: EdgeCase, outputs: Arrays, expected: Arrays, place: object) -> None:
    for name, want in expected.items():
        assert outputs[name].dtype == want.dtype
        if case.exact:
            assert np.array_equal(outputs[name], want), (place, name)
        else:
            assert np.allclose(outputs[name], want, rtol=2e-3), (place, name)
