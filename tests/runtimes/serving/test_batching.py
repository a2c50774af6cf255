"""Joining and splitting rows, the trial before batching, batches, and run times."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from offload.errors import InputError
from offload.planning.plan import Segment, Side
from offload_runtimes.engine import Array, load, rows_of
from offload_runtimes.protocol.server_state import RunSegment
from offload_runtimes.serving.batching import (
    Feeds,
    disagreement,
    join_rows,
    shapes_of,
    split_rows,
)
from offload_runtimes.serving.bundles import LoadedBundle
from offload_runtimes.serving.serve_options import ServeOptions
from offload_runtimes.serving.sessions import Batch, SegmentTask
from onnx import TensorProto, helper

from tests.runtimes import models


def test_rows_are_split_as_they_were_joined() -> None:
    several = [{"a": np.arange(2 * n).reshape(n, 2), "b": np.arange(n)} for n in (1, 3, 2)]
    together = join_rows(several)
    for feeds, (a, b) in zip(
        several, split_rows([together["a"], together["b"]], (1, 3, 2)), strict=True
    ):
        assert np.array_equal(feeds["a"], a)
        assert np.array_equal(feeds["b"], b)
    padded = join_rows(several, 2)
    assert all(np.array_equal(padded[n][:6], together[n]) for n in together)
    assert all(np.array_equal(padded[n][6:], together[n][[-1, -1]]) for n in together)
    for wrong in (np.zeros((5, 2)), np.zeros(())):
        with pytest.raises(InputError, match="6 rows went in"):
            split_rows([wrong], (1, 3, 2))


def test_only_inputs_of_equal_rows_have_rows() -> None:
    one, two, none = np.zeros((1, 2)), np.zeros((2, 2)), np.zeros((0, 2))
    assert rows_of({"a": two, "b": two}) == 2
    assert rows_of({"a": one, "b": two}) is None
    assert rows_of({"a": none}) is None
    assert rows_of({"a": np.zeros(())}) is None
    assert shapes_of({"b": one, "a": two}) == (("a", (2,)), ("b", (2,)))


def test_wrong_options_are_refused() -> None:
    for rows, wait_s in ((0, 0.0), (2, -1.0), (2, float("inf")), (2, float("nan"))):
        with pytest.raises(InputError):
            ServeOptions(batch_rows=rows, batch_wait_s=wait_s)


def tried(nodes: list[onnx.NodeProto], *shape: int | str, kind: int = TensorProto.FLOAT) -> str:
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights: dict[str, np.ndarray] = {
        "w": np.ones((4, 4), np.float32),
        "zero": np.array([0], np.int64),
    }
    used = {name: w for name, w in weights.items() if any(name in n.input for n in nodes)}
    return disagreement(load(models.model(nodes, [x], [y], used).SerializeToString()), 20)


def test_the_trial_agrees_where_rows_stay_apart() -> None:
    assert tried([helper.make_node("MatMul", ["x", "w"], ["y"])], "n", 4) == ""
    assert tried([helper.make_node("Softmax", ["x"], ["y"])], "n", "time", 4) == ""
    table = [helper.make_node("Gather", ["w", "x"], ["y"])]
    assert tried(table, "n", 3, kind=TensorProto.INT64) == ""


def test_the_trial_finds_what_mixes_rows() -> None:
    centred = [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"]),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    assert "is off by" in tried(centred, "n", 4)
    assert "came out" in tried([helper.make_node("ReduceMax", ["x", "zero"], ["y"])], "n", 4)
    assert "none of the random inputs" in tried(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], 1, 4
    )


class Recorded:
    """A call that returns its inputs and records whether it was stopped."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    def run(self, _: object, feeds: Feeds) -> list[Array]:
        return list(feeds.values())


SEGMENT = Segment("server-0", Side.SERVER, (), (), ("x",), ("y",))


def tasks_of(*rows: int) -> tuple[list[SegmentTask], Any]:
    """Tasks of these numbers of rows, and a call for all of them."""
    nobody: Any = None
    return [
        SegmentTask(nobody, run_of(number), nobody, cast(Any, Recorded()), 0.0) for number in rows
    ], Recorded()


def run_of(rows: int) -> RunSegment:
    return RunSegment(1, SEGMENT, {"x": np.full((rows, 1), rows)})


def test_a_batch_stops_early_only_when_all_its_tasks_are_stopped() -> None:
    (first, second, third), call = tasks_of(1, 2, 3)
    second.stop()
    batch = Batch(call, [first, second, third])
    first.stop()
    assert not call.stopped
    for task, (array,) in zip((first, second, third), batch.run(), strict=True):
        assert np.array_equal(task.run.feeds["x"], array)
    third.stop()
    assert not call.stopped, "it is over"
    (first, second), call = tasks_of(1, 1)
    batch = Batch(call, [first, second])
    first.stop()
    second.stop()
    assert call.stopped
    (first, second), call = tasks_of(1, 1)
    first.stop()
    second.stop()
    batch = Batch(call, [first, second])
    assert call.stopped


def test_a_run_is_short_if_the_last_one_on_as_many_bytes_was() -> None:
    """Then it may run on the thread that reads the session's messages."""
    nothing: Any = None
    engine: Any = SimpleNamespace(on_gpu=False)
    bundle = LoadedBundle(nothing, (), {"a": engine})
    assert not bundle.runs_briefly("a", 0), "not measured yet"
    bundle.last_runs["a"] = 1000, 0.0001
    assert bundle.runs_briefly("a", 1000)
    assert not bundle.runs_briefly("a", 1001), "it may take any time"
    assert not bundle.runs_briefly("b", 10)
    engine.on_gpu = True
    assert not bundle.runs_briefly("a", 1000), "each thread would get a CUDA stream"
    engine.on_gpu = False
    bundle.last_runs["a"] = 10, 0.1
    assert not bundle.runs_briefly("a", 10)
