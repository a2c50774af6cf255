"""Bending a table of layers to measured pieces, and what is said about odd timings."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.graph.load import load_model
from offload.graph.model import Tensor
from offload.graph.read import read_graph
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.measure.calibrate import calibrated, divided, pieces, remarks
from offload_runtimes.measure.machine import THIS_MACHINE
from offload_runtimes.measure.timing import time_in_turns

from tests.toolkit.graphs import graph_of
from tests.toolkit.models import two_branches

CHAIN = graph_of([(i, i + 1) for i in range(5)], 6)
FORK = graph_of([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)], 5)


@given(
    st.lists(st.floats(0, 10), min_size=6, max_size=6),
    st.floats(0.1, 100),
    st.lists(st.floats(0.01, 100), min_size=2, max_size=2),
)
def test_layers_sum_to_what_was_measured(
    shares: list[float], whole_s: float, pieces_s: list[float]
) -> None:
    found, segment_s = calibrated(shares, whole_s, [range(2), range(2, 6)], pieces_s)
    assert min(found) >= 0
    assert segment_s >= 0
    assert sum(found) == pytest.approx(whole_s)


def test_layers_of_a_piece_keep_their_shares_and_the_excess_is_the_segments() -> None:
    ranges = [range(2), range(2, 6)]
    found = calibrated([1, 3, 1, 1, 2, 2], 20.0, ranges, [9.0, 13.0])
    assert found == ([2, 6, 2, 2, 4, 4], 1.0)
    assert calibrated([1, 1], 6.0, [range(2)], [6.0]) == ([3, 3], 0.0)


def test_a_model_is_divided_evenly_where_little_passes() -> None:
    assert divided(CHAIN, [1.0] * 6, 2) == [range(3), range(3, 6)]
    assert divided(FORK, [1.0] * 5, 2) == [range(2), range(2, 5)]
    wide = replace(CHAIN, tensors={**CHAIN.tensors, "t2": Tensor("t2", "float", (1, 80), 320)})
    assert divided(wide, [1.0] * 6, 2) == [range(2), range(2, 6)]
    tensors = {n: replace(t, size_bytes=54_000_000) for n, t in CHAIN.tensors.items()}
    tensors["t0"] = CHAIN.tensors["t0"]
    maps = replace(CHAIN, tensors=tensors)
    assert divided(maps, [1.0, 1.0, 8.0, 1.0, 1.0, 1.0], 3) == [range(6)], "no map is kept"
    text = replace(FORK, tensors={**FORK.tensors, "t0": Tensor("t0", "string", (1,), None)})
    assert divided(text, [1.0] * 5, 2) == [range(3), range(3, 5)]
    assert divided(CHAIN, [1e-6] * 6) == [range(6)], "nothing is to be had below the clock's noise"


def test_pieces_of_a_model_run_on_what_those_before_made(tmp_path: Path) -> None:
    model = load_model(two_branches(tmp_path / "net.onnx"))
    graph = read_graph(model, {"x": (2, 8)})
    feeds = {"x": np.ones((2, 8), np.float32)}
    ranges = [range(2), range(2, len(graph.layers))]
    load_piece = partial(THIS_MACHINE.load, options=EngineOptions(optimize=False))
    runs = pieces(model, graph, ranges, tmp_path, load_piece, feeds)
    (last,) = runs["piece-1"].model.keep(graph.outputs, runs["piece-1"].feeds)
    (whole,) = load(tmp_path / "net.onnx", EngineOptions(optimize=False)).run(None, feeds)
    assert len(runs) == 2
    assert np.array_equal(last, whole)
    assert pieces(model, graph, [range(len(graph.layers))], tmp_path, load_piece, feeds) == {}


def test_pieces_take_turns() -> None:
    seen: list[str] = []
    work = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    seconds = time_in_turns(work, 4, 60.0)
    assert "".join(seen) == "aaabbb" + "ab" * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    assert len(time_in_turns(work, 50, 0.0)["a"]) == 3


def test_throttling_and_scatter_are_said_and_steady_runs_are_not() -> None:
    assert remarks([1.0, 1.01] * 6) == []
    (throttled,) = remarks([1.0] * 5 + [1.1] * 5 + [1.3] * 5)
    assert "1.30x slower while it was measured" in throttled
    (scattered,) = remarks([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    assert "scatter" in scattered
    assert remarks([1.0]) == []
