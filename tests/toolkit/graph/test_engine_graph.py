"""Match tensors and kernels of an optimised graph with the source by their names."""

from collections.abc import Iterable
from pathlib import Path

import onnx
import pytest
from offload.graph.engine_graph import Kernel, kernel_layers, name_kernels, surviving_tensors
from offload.graph.load import Model, load_model
from offload.graph.read import read_graph
from onnx import TensorProto, helper

from tests.toolkit.graph.test_read import CONV, model, node

SHAPES = {"x": (1, 3, 8, 8)}


def kernel(number: int, inputs: str, outputs: str) -> Kernel:
    return Kernel(f"kernel-{number}", tuple(inputs.split()), tuple(outputs.split()))


def test_copies_to_and_from_a_gpu_are_removed(tmp_path: Path) -> None:
    """onnxruntime writes them where some kernels run on the CPU, and refuses them when it loads."""
    gpu = "_CUDAExecutionProvider"
    inside = [node("MemcpyFromHost", "b", f"b{gpu}"), node("Neg", f"b{gpu}", "inner")]
    result = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph(inside, "body", [], [result])
    proto = model(
        [
            node("MemcpyFromHost", "x", f"x{gpu}"),
            node("Relu", f"x{gpu}", "a"),
            node("Exp", "a", f"b{gpu}_token_3"),
            node("MemcpyToHost", f"b{gpu}_token_3", "b"),
            helper.make_node("If", ["flag"], ["c"], then_branch=body, else_branch=body),
            node("Abs", "c", f"y{gpu}"),
            node("MemcpyToHost", f"y{gpu}", "y"),
        ]
    )
    path = tmp_path / "optimized.onnx"
    onnx.save(proto, path)
    kernels = name_kernels(path)
    assert [(each.inputs, each.outputs) for each in kernels] == [
        (("x",), ("a",)),
        (("a",), ("b",)),
        (("flag",), ("c",)),
        (("c",), ("y",)),
    ]
    written = onnx.load(path).graph
    assert [n.op_type for n in written.node] == ["Relu", "Exp", "If", "Abs"]
    for attribute in written.node[2].attribute:
        assert [(list(n.input), list(n.output)) for n in attribute.g.node] == [(["b"], ["inner"])]


def shares(read: Model, kernels: tuple[Kernel, ...], cuts: Iterable[str] = ()) -> list[list[float]]:
    """For each kernel, the share of its time that each layer gets."""
    graph = read_graph(read, SHAPES, surviving_tensors(read, kernels) | frozenset(cuts))
    by_kernel = kernel_layers(read, graph, kernels)
    count = len(graph.layers)
    return [[by_kernel[each.name].get(layer, 0.0) for layer in range(count)] for each in kernels]


def test_names_of_widened_tensors_are_those_of_the_source() -> None:
    kernels = (
        kernel(0, "x", "InsertedPrecisionFreeCast_x"),
        kernel(1, "InsertedPrecisionFreeCast_x w", "InsertedPrecisionFreeCast_c"),
        kernel(2, "InsertedPrecisionFreeCast_c", "InsertedPrecisionFreeCast_r_token_7"),
    )
    tensors = surviving_tensors(load_model(CONV), kernels)
    assert tensors == {"x", "c", "r"}


def test_a_source_may_use_the_engines_names() -> None:
    """A float32 copy of an optimised file: such a name is its own tensor there."""
    proto = model([node("Relu", "x", "InsertedPrecisionFreeCast_x"), node("Exp", "x", "y")])
    proto.graph.node[1].input[0] = "InsertedPrecisionFreeCast_x"
    kernels = (kernel(0, "x", "InsertedPrecisionFreeCast_x"),)
    tensors = surviving_tensors(load_model(proto), kernels)
    assert tensors == {"InsertedPrecisionFreeCast_x"}


def test_casts_count_for_the_layer_at_their_end() -> None:
    read = load_model(model([node("Relu", "x", "a"), node("Exp", "a", "y")]))
    kernels = (
        kernel(0, "x", "InsertedPrecisionFreeCast_x"),
        kernel(1, "InsertedPrecisionFreeCast_x", "InsertedPrecisionFreeCast_a"),
        kernel(2, "InsertedPrecisionFreeCast_a", "InsertedPrecisionFreeCast_y"),
        kernel(3, "InsertedPrecisionFreeCast_y", "y"),
    )
    assert shares(read, kernels) == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_the_time_of_a_cut_kernel_is_divided_by_work() -> None:
    """Conv and Relu are one kernel: after a cut between them, each has a share of its time."""
    kernels = (kernel(0, "x w b", "r"), kernel(1, "r", "p"), kernel(2, "p", "f"))
    first = shares(load_model(CONV), kernels, cuts=["c"])[0]
    conv, relu = 2 * 4 * 8 * 8 * 3 * 9, 4 * 8 * 8
    assert first[:2] == pytest.approx([conv / (conv + relu), relu / (conv + relu)])
    assert first[2:] == [0, 0, 0]


def test_several_outputs_of_one_kernel_share_its_time() -> None:
    read = load_model(
        model(
            [node("Relu", "x", "a"), node("Exp", "a", "y"), node("Tanh", "a", "z")],
            None,
            ("y", "z"),
        )
    )
    kernels = (kernel(0, "x", "a y"), kernel(1, "a", "z"))
    assert shares(read, kernels) == [[0.5, 0.5, 0], [0, 0, 1]]


def test_a_node_computed_by_several_kernels_has_a_share_of_each() -> None:
    read = load_model(
        model(
            [node("Relu", "x", "a"), node("Exp", "a", "y"), node("Tanh", "a", "z")],
            None,
            ("y", "z"),
        )
    )
    kernels = (kernel(0, "x", "y"), kernel(1, "x", "z"))
    assert shares(read, kernels) == [[0.5, 0.5, 0], [0.5, 0, 0.5]]
