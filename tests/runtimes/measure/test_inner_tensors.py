from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from offload.bundle.engine_input import EngineInput
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload_runtimes.engine import Engine, EngineOptions, load_once
from offload_runtimes.measure import inner_tensors as inner
from onnx import TensorProto, helper

PLAIN = EngineOptions(optimize=False)


def ladder(path: Path, count: int) -> Path:
    """v0 -> v1 -> ... where each step also reads the input."""
    nodes = [helper.make_node("Add", [f"v{i}", "v0"], [f"v{i + 1}"]) for i in range(count)]
    ends = [
        helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, ["n", 64]) for i in (0, count)
    ]
    graph = helper.make_graph(nodes, "ladder", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), path)
    return path


@pytest.mark.parametrize("range_bytes", [1, 1000, 1 << 20])
def test_every_tensor_of_every_input_comes_once(
    range_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inner, "RANGE_BYTES", range_bytes)
    monkeypatch.setattr(inner, "_WAITING_BYTES", 2 * 4 * 2 * 64)
    model = load_model(ladder(tmp_path / "net.onnx", 9))
    graph = read_graph(model, {"v0": (2, 64)})
    feeds = [{"v0": np.full((2, 64), number, np.float32)} for number in (1, 2, 3)]
    names = ["v2", "v5", "v9"]
    seen: dict[str, list[float]] = {}
    for values in inner.inner_tensors(model, graph, names, feeds, PLAIN):
        for name, array in values.items():
            seen.setdefault(name, []).append(float(array[0, 0]))
    assert seen == {"v2": [3, 6, 9], "v5": [6, 12, 18], "v9": [10, 20, 30]}


def test_no_more_is_in_memory_than_a_range_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve tensors of 512 bytes, two to a range: no engine is asked for more than two."""
    asked: list[int] = []

    def counted(source: EngineInput, options: EngineOptions) -> "Counted":
        return Counted(load_once(source, options), asked)

    monkeypatch.setattr(inner, "RANGE_BYTES", 1024)
    monkeypatch.setattr(inner, "load_once", counted)
    model = load_model(ladder(tmp_path / "net.onnx", 12))
    graph = read_graph(model, {"v0": (2, 64)})
    feeds = [{"v0": np.ones((2, 64), np.float32)}]
    made: Iterator[Mapping[str, Any]] = inner.inner_tensors(
        model, graph, list(graph.producer), feeds, PLAIN
    )
    assert len([name for values in made for name in values]) == 12
    assert asked == [2] * 6


class Counted:
    """An engine that notes how many outputs it is asked for."""

    def __init__(self, engine: Engine, asked: list[int]) -> None:
        self.engine, self.asked = engine, asked

    def run(self, outputs: Any, feeds: Any) -> Any:
        self.asked.append(len(outputs))
        return self.engine.run(outputs, feeds)
