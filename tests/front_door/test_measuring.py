"""What `profile`, measured `split` and `verify` take of memory, and what they measure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight


def looped(path: Path, steps: int) -> None:
    """Two products, a loop of small steps between them, and two products."""
    scalars = {"k": np.float32(0.5), "c": np.float32(0.1)}
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["s", "k"], ["a"]),
            helper.make_node("Add", ["a", "c"], ["b"]),
            helper.make_node("Tanh", ["b"], ["s_next"]),
            helper.make_node("Identity", ["on"], ["on_next"]),
        ],
        "body",
        [
            value("i", dtype=TensorProto.INT64),
            value("on", dtype=TensorProto.BOOL),
            value("s", 1, 8),
        ],
        [value("on_next", dtype=TensorProto.BOOL), value("s_next", 1, 8)],
        [numpy_helper.from_array(np.array(number), name) for name, number in scalars.items()],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "W2"], ["before"], "second"),
        helper.make_node("Loop", ["steps", "on0", "before"], ["after"], "steps", body=body),
        helper.make_node("MatMul", ["after", "W3"], ["z"], "third"),
        helper.make_node("MatMul", ["z", "W4"], ["y"], "fourth"),
    ]
    stored = {
        "W1": weight(64, 64),
        "W2": weight(64, 8),
        "W3": weight(8, 64),
        "W4": weight(64, 64),
        "steps": np.array(steps, np.int64),
        "on0": np.array(True),
    }
    save(path, nodes, [value("x", 1, 64)], [value("y", 1, 64)], stored)


def seconds_of(path: Path) -> dict[str, float]:
    """Seconds of each layer in a profile."""
    return {name: seconds for name, seconds, *_ in json.loads(path.read_text())["layers"]}


@pytest.mark.parametrize("steps", [20_000, pytest.param(90_000, marks=pytest.mark.door)])
def test_a_long_loop_is_profiled_in_bounded_memory(door: Door, steps: int) -> None:
    looped(door.folder / "net.onnx", steps)
    done, peak = door.measured("profile", "net.onnx", "--runs", "3", "-o", "here.json")
    assert done.returncode == 0, done.stderr
    assert peak <= 250e6
    layers = seconds_of(door.folder / "here.json")
    assert layers["steps"] > 0.9 * sum(layers.values())


@pytest.mark.door
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_are_measured(door: Door, dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "B"], ["y"]),
    ]
    stored = {"A": weight(64, 64).astype(dtype), "B": weight(64, 64, seed=1).astype(dtype)}
    ends = [value(name, 16, 64, dtype=kind) for name in "xy"]
    save(door.folder / "net.onnx", nodes, ends[:1], ends[1:], stored)
    door.ok("split", "net.onnx", "-o", "b", "--slowdown", "5")


@pytest.mark.door
@pytest.mark.parametrize(
    "name", ["BFLOAT16", "UINT8", "INT8", "UINT16", "INT32", "INT64", "BOOL", "INT4", "FLOAT8E5M2"]
)
def test_values_of_any_type_are_measured(door: Door, name: str) -> None:
    """The type is an input's, an inner tensor's and an output's."""
    kind = TensorProto.DataType.Value(name)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "A"], ["a"]),
        helper.make_node("Cast", ["a"], ["inner"], to=kind),
        helper.make_node("Cast", ["inner"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["g", "A"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=kind),
    ]
    ends = [value(end, 16, 64, dtype=kind) for end in "xy"]
    stored = {"A": weight(64, 64)}
    save(door.folder / "net.onnx", nodes, ends[:1], ends[1:], stored, opset=21, ir_version=10)
    door.ok("profile", "net.onnx", "--runs", "3")
    door.ok("split", "net.onnx", "-o", "b", "--slowdown", "5")


def encoder(path: Path, tokens: int, width: int, heads: int, layers: int) -> None:
    """A speech model's encoder as exported: attention maps of heads x tokens x tokens."""
    nodes: list[onnx.NodeProto] = []
    stored = {"shape4": np.array([1, tokens, heads, width // heads], np.int64)}
    stored["shape3"] = np.array([1, tokens, width], np.int64)
    stored["scale"] = np.array((width // heads) ** -0.5, np.float32)

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def linear(x: str, name: str, size: int, result: int) -> str:
        stored[f"{name}.w"] = weight(size, result, seed=len(stored), scale=0.02)
        stored[f"{name}.b"] = weight(result, seed=len(stored))
        return add("Add", add("MatMul", x, f"{name}.w"), f"{name}.b")

    def head(x: str, name: str, *order: int) -> str:
        return add("Transpose", add("Reshape", linear(x, name, width, width), "shape4"), perm=order)

    x = "x"
    for layer in range(layers):
        name = f"layer{layer}"
        query = add("Mul", head(x, f"{name}.q", 0, 2, 1, 3), "scale")
        maps = add("Softmax", add("MatMul", query, head(x, f"{name}.k", 0, 2, 3, 1)), axis=-1)
        seen = add("MatMul", maps, head(x, f"{name}.v", 0, 2, 1, 3))
        seen = add("Reshape", add("Transpose", seen, perm=[0, 2, 1, 3]), "shape3")
        x = add("Add", x, linear(seen, f"{name}.o", width, width))
        wide = add("Relu", linear(x, f"{name}.1", width, 4 * width))
        x = add("Add", x, linear(wide, f"{name}.2", 4 * width, width))
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    ends = [value(end, 1, tokens, width) for end in "xy"]
    save(path, nodes, ends[:1], ends[1:], stored)


@pytest.mark.door
@pytest.mark.parametrize(
    ("words", "most_bytes"),
    [
        (("verify", "net.onnx", "--cuts", "8"), 1e9),
        (("profile", "net.onnx", "--runs", "3"), 2 * 29e6 + 500e6),
        (("split", "net.onnx", "-o", "b", *ESTIMATED), 2 * 29e6 + 500e6),
        # The bundle's proof runs the model once, and one map is in memory then.
        (("split", "net.onnx", "-o", "b", *ESTIMATED, "--encoding", "raw"), 300e6 + 54e6),
    ],
)
def test_memory_for_large_attention_maps(
    door: Door, words: tuple[str, ...], most_bytes: float
) -> None:
    """As Whisper's smallest encoder: 29 MB of weights, maps of 54 MB."""
    encoder(door.folder / "net.onnx", 1500, 384, 6, 4)
    done, peak = door.measured(*words)
    assert done.returncode == 0, done.stderr
    assert peak <= most_bytes
