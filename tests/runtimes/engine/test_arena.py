"""The arena: onnxruntime takes no more than allowed, and what is given back can be used again."""

import base64
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.errors import InputError
from offload_runtimes.engine import Engine, arena_of, load
from offload_runtimes.engine.arena import PROBE
from onnx import TensorProto, helper

from tests.runtimes import models

MB = 10**6
RULE = "--max-memory 100 MB"


def spread() -> bytes:
    """x times n zeros: 4 bytes each."""
    nodes = [helper.make_node("Expand", ["x", "n"], ["y"])]
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    made = models.model(nodes, [models.floats("x", 1), n], [models.floats("y", "m")])
    return made.SerializeToString()


def engines(count: int = 1, limit_bytes: int = 100 * MB, rule: str = RULE) -> list[Engine]:
    with arena_of(limit_bytes, rule) as arena:
        return [load(spread(), arena=arena) for _ in range(count)]


def run(engine: Engine, count: int) -> int:
    return len(engine.run(None, asking(count))[0])


def asking(count: int) -> dict[str, np.ndarray]:
    return {"x": np.ones(1, np.float32), "n": np.array([count], np.int64)}


def weighty(size: int) -> onnx.ModelProto:
    """Weights of 4 size² bytes, which onnxruntime repacks."""
    x, y = models.floats("x", 1, size), models.floats("y", 1, size)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return models.model(nodes, [x], [y], {"w": np.ones((size, size), np.float32)})


def test_the_probe_model_is_valid() -> None:
    model = onnx.load_from_string(base64.b64decode(PROBE))
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert (node.op_type, *node.input, *node.output) == ("ConstantOfShape", "shape", "y")


@pytest.mark.parametrize("count", [26 * MB, 10**12, 10**18])
def test_a_run_beyond_the_limit_fails_and_the_next_one_works(count: int) -> None:
    (engine,) = engines()
    with pytest.raises(InputError, match="than the server allows") as caught:
        run(engine, count)
    assert "--max-memory 100 MB" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run(engine, 1000) == 1000


def test_a_large_run_works_after_small_ones() -> None:
    """Each leaves a piece, and pieces never join by themselves."""
    (engine,) = engines()
    for count in (2 * MB, 4 * MB, 8 * MB, 23 * MB):
        assert run(engine, count) == count


def test_the_limit_is_shared_by_all_engines_of_an_arena() -> None:
    one, other = engines(2)
    held = one.run(None, asking(20 * MB))
    with pytest.raises(InputError, match="than the server allows"):
        run(other, 10 * MB)
    del held
    assert run(other, 10 * MB) == 10 * MB


def test_arenas_of_one_process_are_independent() -> None:
    (small,), (large,) = engines(1, 10 * MB, "small"), engines(1, 100 * MB, "large")
    assert run(large, 20 * MB) == 20 * MB
    assert run(load(spread()), 30 * MB) == 30 * MB
    with pytest.raises(InputError, match="small"):
        run(small, 5 * MB)
    assert run(small, MB) == MB


@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_do_not_fit_are_refused(beside: bool, tmp_path: Path) -> None:
    """Unrefused, they would make the limit wrap around and vanish."""
    onnx.save(weighty(2000), tmp_path / "w.onnx", save_as_external_data=beside, location="w.bin")
    said = r"w\.onnx cannot be loaded: its weights take more than"
    with arena_of(12 * MB, "this") as arena, pytest.raises(InputError, match=said):
        load(tmp_path / "w.onnx", arena=arena)
    with arena_of(40 * MB, "that") as arena:
        engine = load(tmp_path / "w.onnx", arena=arena)
    (y,) = engine.run(None, {"x": np.ones((1, 2000), np.float32)})
    assert y[0, 0] == 2000


def test_weights_count() -> None:
    with arena_of(100 * MB, "here") as arena:
        before = arena.left_bytes()
        engine = load(weighty(3000).SerializeToString(), arena=arena)
        left = arena.left_bytes()
    assert before is not None
    assert left is not None
    assert before - left >= 36 * MB
    assert engine.inputs
