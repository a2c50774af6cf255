from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.errors import InputError
from offload.graph.load import load_model
from offload.graph.model import Graph
from offload.graph.read import grouped, read_graph
from onnx import ModelProto, NodeProto, TensorProto, helper


def model(
    nodes: list[NodeProto],
    shape: list[int | str] | None = None,
    outputs: tuple[str, ...] = ("y",),
    weights: dict[str, list[int]] | None = None,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            onnx.numpy_helper.from_array(np.ones(sizes, np.float32), name)
            for name, sizes in (weights or {}).items()
        ],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def names(graph: Graph) -> list[str]:
    return [layer.op for layer in graph.layers]


CONV = model(
    [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f v", "y"),
    ],
    weights={"w": [4, 3, 3, 3], "b": [4], "v": [4, 10]},
)


def test_shapes_bytes_and_flops() -> None:
    graph = read_graph(load_model(CONV), {"x": (2, 3, 8, 8)})
    assert names(graph) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert graph.tensors["c"].shape == (2, 4, 8, 8)
    assert graph.tensors["c"].size_bytes == 4 * 2 * 4 * 8 * 8
    assert graph.layers[0].flops == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    assert graph.layers[0].weight_bytes == 4 * (4 * 27 + 4)
    assert graph.layers[4].flops == 2 * 2 * 4 * 10
    assert graph.inputs == ("x",)
    assert graph.tensors["y"].shape == (2, 10)


def test_unbound_sizes_are_unknown() -> None:
    graph = read_graph(load_model(CONV))
    assert graph.tensors["c"].shape == (None, 4, 8, 8)
    assert graph.tensors["c"].size_bytes is None
    assert graph.layers[0].flops is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3, 8, 8)}, "has no input 'z' to give a shape to; it has: x"),
        ({"x": (1, 4, 8, 8)}, "'x' has shape Nx3x8x8: 1x4x8x8 does not fit"),
        ({"x": (1, 3, 8)}, "does not fit"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_graph(load_model(CONV), shapes)


def test_constant_and_dead_nodes_are_not_layers() -> None:
    proto = model(
        [
            node("Constant", "", "shape", value=onnx.numpy_helper.from_array(np.array([1, 3]))),
            node("ConstantOfShape", "shape", "zeros"),
            node("Relu", "x", "dead"),
            node("Exp", "dead", "dead_too"),
            node("Abs", "x", "a"),
            node("Add", "a zeros", "y"),
        ],
        shape=["N", 3],
    )
    graph = read_graph(load_model(proto))
    assert [layer.nodes for layer in graph.layers] == [(4,), (5,)]
    assert graph.layers[1].inputs == ("a",)
    assert graph.layers[1].weight_bytes == 12


def test_random_nodes_are_layers() -> None:
    """If both sides ran them, they would compute different numbers."""
    proto = model([node("RandomNormal", "", "noise", shape=[3]), node("Add", "x noise", "y")], [3])
    graph = read_graph(load_model(proto))
    assert names(graph) == ["RandomNormal", "Add"]


def test_names_are_unique_and_stable() -> None:
    proto = model([node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")])
    for item in proto.graph.node[:2]:
        item.name = "same"
    first, again = (read_graph(load_model(proto)) for _ in range(2))
    assert [layer.name for layer in first.layers] == ["same", "same_1", "Relu_2"]
    assert first.layers == again.layers


def test_fused_nodes_share_a_layer() -> None:
    graph = read_graph(load_model(CONV), surviving=frozenset({"x", "r", "p", "f", "y"}))
    assert names(graph) == ["Conv+Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert graph.layers[0].nodes == (0, 1)
    assert graph.layers[0].outputs == ("r",)


def test_fusing_never_makes_a_cycle() -> None:
    """a feeds b and c, b feeds c; one of a's values is fused into c, the other is kept."""
    proto = model(
        [
            node("Relu", "x", "a"),
            node("Split", "a", "a1 a2", axis=1),
            node("Exp", "a1", "b"),
            node("Add", "a2 b", "c"),
            node("Abs", "c", "y"),
        ],
        shape=["N", 4],
    )
    graph = read_graph(load_model(proto), surviving=frozenset({"a", "a1", "b", "c"}))
    assert names(graph) == ["Relu", "Split", "Exp", "Add", "Abs"]


def test_a_lost_tensor_that_two_layers_read_ends_a_layer() -> None:
    """The engine drops an Identity, or keeps one of two equal tensors: nothing else is joined."""
    proto = model(
        [
            node("Relu", "x", "a"),
            node("Identity", "a", "i"),
            node("Exp", "i", "b"),
            node("Add", "b i", "c"),
            node("Abs", "c", "y"),
        ]
    )
    graph = read_graph(load_model(proto), surviving=frozenset({"a", "b", "c"}))
    assert names(graph) == ["Relu", "Identity", "Exp", "Add", "Abs"]


def test_a_tensor_to_cut_at_breaks_a_fused_layer() -> None:
    """A node ends a layer if one of its fused outputs is a requested cut."""
    proto = model(
        [
            node("DynamicQuantizeLinear", "x", "q s z"),
            node("MatMulInteger", "q w z", "i"),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Mul", "f s", "y"),
        ],
        shape=["N", 4],
        weights={"w": [4, 4]},
    )
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((4, 4), "i1"), "w"))
    whole = read_graph(load_model(proto), surviving=frozenset({"y"}))
    assert names(whole) == ["DynamicQuantizeLinear+MatMulInteger+Cast+Mul"]
    broken = read_graph(load_model(proto), surviving=frozenset({"y", "q"}))
    assert names(broken) == ["DynamicQuantizeLinear", "MatMulInteger+Cast+Mul"]
    assert broken.layers[0].outputs == ("q", "s", "z")


def test_shape_arithmetic_does_not_join_its_consumer() -> None:
    proto = model(
        [
            node("Shape", "x", "s"),
            node("Relu", "x", "r"),
            node("Exp", "r", "e"),
            node("Reshape", "e s", "y"),
        ]
    )
    graph = read_graph(load_model(proto), surviving=frozenset({"r", "e", "y"}))
    assert names(graph) == ["Shape", "Relu", "Exp", "Reshape"]


def test_an_unsorted_file_is_read_in_order() -> None:
    graph = read_graph(load_model(model([node("Exp", "a", "y"), node("Relu", "x", "a")])))
    assert [layer.nodes for layer in graph.layers] == [(1,), (0,)]


def test_values_that_cannot_cross_join_their_readers() -> None:
    proto = model(
        [
            node("Relu", "x", "a"),
            node("SplitToSequence", "a", "seq", axis=1),
            node("ConcatFromSequence", "seq", "c", axis=1),
            node("Exp", "c", "y"),
        ],
        shape=["N", 4],
    )
    assert names(read_graph(load_model(proto))) == [
        "Relu",
        "SplitToSequence+ConcatFromSequence",
        "Exp",
    ]


def test_a_long_chain() -> None:
    nodes = [node("Relu", f"v{i}", f"v{i + 1}") for i in range(5000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    graph = read_graph(load_model(model(nodes)))
    assert len(graph.layers) == 5000
    assert len(read_graph(load_model(model(nodes)), surviving=frozenset("xy")).layers) == 1


@st.composite
def dags(draw: st.DrawFn) -> tuple[dict[int, list[int]], list[tuple[int, int]]]:
    size = draw(st.integers(1, 8))
    pairs = [(a, b) for b in range(size) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    joined = draw(st.lists(st.sampled_from(pairs), max_size=3)) if pairs else []
    return {a: [b for c, b in edges if c == a] for a in range(size)}, joined


def reachable(edges: dict[int, list[int]], start: int) -> set[int]:
    reached, pending = set(), [start]
    while pending:
        for after in edges[pending.pop()]:
            if after not in reached:
                reached.add(after)
                pending.append(after)
    return reached


@given(dags())
def test_grouping_is_an_acyclic_partition_that_joins_no_more_than_it_must(
    case: tuple[dict[int, list[int]], list[tuple[int, int]]],
) -> None:
    edges, joined = case
    groups = grouped(range(len(edges)), edges, joined)
    assert sorted(node for group in groups for node in group) == list(range(len(edges)))
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    assert all(group_of[a] == group_of[b] for a, b in joined)
    assert all(group_of[a] <= group_of[b] for a in edges for b in edges[a])
    # Oracle: with joined pairs walked both ways, a group is what can reach itself and back.
    walk = {a: edges[a] + [b for c, b in joined if c == a] for a in edges}
    for a, b in joined:
        walk[b] = [*walk[b], a]
    for a in edges:
        for b in reachable(walk, a):
            assert (group_of[a] == group_of[b]) == (a == b or a in reachable(walk, b))


@given(dags(), st.sets(st.integers(0, 7)))
def test_cones_have_one_exit_and_close_no_cycle(
    case: tuple[dict[int, list[int]], list[tuple[int, int]]], absorbed: set[int]
) -> None:
    edges, joined = case
    order = range(len(edges))
    atoms = [frozenset(group) for group in grouped(order, edges, joined)]
    groups = [frozenset(group) for group in grouped(order, edges, joined, absorbed)]
    assert sorted(node for group in groups for node in group) == list(order)
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    assert all(group_of[a] <= group_of[b] for a in edges for b in edges[a])
    for atom in atoms:
        own = group_of[min(atom)]
        assert atom <= groups[own]
        after = {group_of[b] for a in atom for b in edges[a] if b not in atom}
        # An atom joins what is behind it if it may and that is one group; else it is the last.
        if atom <= absorbed and len(after - {own}) + (own in after) == 1:
            assert after == {own}
        else:
            assert own not in after
