"""Folded blocks: a partition of the layers whose picture can be drawn in rows."""

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st
from offload.graph.model import Graph
from offload.report.blocks import fold

from tests.toolkit.graphs import graph_of, graphs


@st.composite
def with_keys(draw: st.DrawFn) -> tuple[Graph, list[int]]:
    graph = draw(graphs(14))
    keys = st.lists(st.integers(0, 1), min_size=len(graph.layers), max_size=len(graph.layers))
    return graph, draw(keys)


def between(graph: Graph, blocks: list[tuple[int, ...]]) -> "nx.DiGraph[int]":
    block_of = {layer: number for number, block in enumerate(blocks) for layer in block}
    edges = ((block_of[a], block_of[b]) for a, after in enumerate(graph.successors) for b in after)
    net = nx.DiGraph([(a, b) for a, b in edges if a != b])
    net.add_nodes_from(range(len(blocks)))
    return net


@given(with_keys(), st.integers(1, 60))
def test_blocks_hold_each_layer_once_with_one_key_and_have_no_cycle(
    drawn: tuple[Graph, list[int]], most: int
) -> None:
    graph, keys = drawn
    blocks = fold(graph, keys, most=most)
    assert sorted(layer for block in blocks for layer in block) == list(range(len(graph.layers)))
    assert all(list(block) == sorted(block) for block in blocks)
    assert all(len({keys[layer] for layer in block}) == 1 for block in blocks)
    assert nx.is_directed_acyclic_graph(between(graph, blocks))


@given(with_keys())
def test_no_chain_is_left_between_blocks(drawn: tuple[Graph, list[int]]) -> None:
    graph, keys = drawn
    blocks = fold(graph, keys, most=10**6)
    net = between(graph, blocks)
    for a, b in net.edges:
        if net.out_degree(a) == net.in_degree(b) == 1 and keys[blocks[a][0]] == keys[blocks[b][0]]:
            outputs = graph.layers[blocks[a][-1]].outputs
            assert set(outputs) & set(graph.outputs), "only a result keeps two blocks apart"


def test_a_tensor_that_is_sent_stays_between_two_blocks() -> None:
    chain = graph_of([(0, 1), (1, 2), (2, 3)], 4)
    assert fold(chain, [0] * 4) == [(0, 1, 2, 3)]
    assert fold(chain, [0] * 4, {"t1"}) == [(0, 1), (2, 3)]
    assert fold(chain, [0, 0, 1, 1]) == [(0, 1), (2, 3)]


def test_branches_stay_until_there_are_too_many_blocks() -> None:
    diamonds = [
        (3 * i + a, 3 * i + b) for i in range(50) for a, b in ((0, 1), (0, 2), (1, 3), (2, 3))
    ]
    graph = graph_of(diamonds, 151)
    assert len(fold(graph, [0] * 151, most=600)) == 151
    assert len(fold(graph, [0] * 151, most=200)) == 51, "each diamond is a block"
    assert len(fold(graph, [0] * 151, most=60)) == 13, "four stages are a block"
    halves = [0] * 75 + [1] * 76
    few = fold(graph, halves, most=1)
    assert [len(block) for block in few] == [73, 1, 1, 1, 75], "the stage that is cut stays"
