"""Work of single operators, against products written out by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
from offload.graph.flops import Work, node_work, uncounted_share
from onnx import helper

Shapes = Mapping[str, tuple[int, ...]]


def work(op: str, inputs: str, shapes: Shapes, domain: str = "", **attributes: Any) -> Work:
    node = helper.make_node(op, inputs.split(), ["y"], domain=domain, **attributes)
    return node_work(node, shapes.get, lambda _: None)


MICROSOFT = "com.microsoft"
EXACT = [
    # Each of 2*8*5*5 outputs is a product with 3*3*3 numbers; grouped: with 1*3*3.
    (work("Conv", "x w", {"x": (2, 3, 5, 5), "w": (8, 3, 3, 3), "y": (2, 8, 5, 5)}), 2 * 400 * 27),
    (work("Conv", "x w", {"w": (8, 1, 3, 3), "y": (2, 8, 5, 5)}, group=8), 2 * 400 * 9),
    (
        work("QLinearConv", "x s z w ws wz ys yz", {"w": (8, 3, 3, 3), "y": (1, 8, 5, 5)}),
        2 * 200 * 27,
    ),
    (work("FusedConv", "x w", {"w": (4, 3, 1, 1), "y": (1, 4, 2, 2)}, MICROSOFT), 2 * 16 * 3),
    (work("ConvTranspose", "x w", {"x": (1, 3, 4, 4), "w": (3, 8, 2, 2)}), 2 * 48 * 32),
    (work("MatMul", "a b", {"a": (5, 2, 3), "b": (3, 4), "y": (5, 2, 4)}), 2 * 40 * 3),
    (work("MatMul", "a b", {"a": (3,), "b": (3, 4), "y": (4,)}), 2 * 4 * 3),
    (work("Gemm", "a b", {"a": (3, 2), "b": (3, 4), "y": (2, 4)}, transA=1), 2 * 8 * 3),
    (
        work("FusedMatMul", "a b", {"a": (5, 3, 2), "y": (5, 2, 4)}, MICROSOFT, transA=1),
        2 * 40 * 3,
    ),
    (work("QGemm", "a s z b", {"a": (2, 3), "y": (2, 4)}, MICROSOFT), 2 * 8 * 3),
    (
        work("MatMulNBits", "a b s", {"a": (2, 3, 64), "b": (16, 2, 16)}, MICROSOFT, N=16, K=64),
        2 * 6 * 64 * 16,
    ),
    (
        work("Einsum", "a b", {"a": (2, 3, 4), "b": (2, 4, 5)}, equation="bij,bjk->bik"),
        2 * 2 * 3 * 4 * 5,
    ),
    (
        work("Einsum", "a b", {"a": (7, 3, 4), "b": (4, 5)}, equation="...ij,jk->...ik"),
        2 * 7 * 3 * 4 * 5,
    ),
    # (a b): 2*2*3*4, then with c: 2*2*4*5
    (
        work("Einsum", "a b c", {"a": (2, 3), "b": (3, 4), "c": (4, 5)}, equation="ij,jk,kl->il"),
        2 * 24 + 2 * 40,
    ),
    (
        work("LSTM", "x w r", {"x": (9, 2, 4), "w": (2, 20, 4), "r": (2, 20, 5)}),
        9 * 2 * 2 * 2 * (20 * 4 + 20 * 5),
    ),
    # 3 heads of 4: scores 6 x 10 of 4 each, then sums over 10 of 4 each.
    (
        work(
            "Attention",
            "q k v",
            {"q": (1, 3, 6, 4), "k": (1, 3, 10, 4), "v": (1, 3, 10, 4), "y": (1, 3, 6, 4)},
        ),
        2 * 3 * 6 * 10 * 4 * 2,
    ),
    (
        work(
            "Attention",
            "x w b",
            {"x": (1, 6, 8), "w": (8, 24), "y": (1, 6, 8)},
            MICROSOFT,
            num_heads=2,
        ),
        2 * 6 * 8 * 24 + 2 * 6 * 6 * 8 * 2,
    ),
    (
        work(
            "MultiHeadAttention",
            "q k v",
            {"q": (1, 6, 8), "k": (1, 10, 8), "v": (1, 10, 8), "y": (1, 6, 8)},
            MICROSOFT,
            num_heads=2,
        ),
        2 * 6 * 10 * 8 * 2,
    ),
    (
        work(
            "GroupQueryAttention",
            "q k v pk pv",
            {"q": (1, 1, 8), "pk": (1, 1, 9, 4), "y": (1, 1, 8)},
            MICROSOFT,
            num_heads=2,
            kv_num_heads=1,
        ),
        2 * 10 * 8 * 2,
    ),
    (work("MaxPool", "x", {"x": (1, 3, 8, 8), "y": (1, 3, 4, 4)}, kernel_shape=[2, 2]), 48 * 4),
    (work("Relu", "x", {"x": (2, 3), "y": (2, 3)}), 6),
    (work("ReduceMax", "x", {"x": (2, 3), "y": (2,)}), 6),
    (work("NonZero", "x", {"x": (2, 3)}), 6),
    (work("Reshape", "x s", {"x": (2, 3)}), 0),
]


@pytest.mark.parametrize(("counted", "expected"), EXACT)
def test_operators_are_counted(counted: Work, expected: float) -> None:
    assert not counted.uncounted
    assert counted.flops == expected


def test_trees_cost_their_depth() -> None:
    """Two trees of 7 nodes: 3 comparisons each for a row."""
    ids = [0] * 7 + [1] * 7
    counted = work("TreeEnsembleRegressor", "x", {"x": (5, 4)}, "ai.onnx.ml", nodes_treeids=ids)
    assert counted.flops == 5 * 2 * 3


@pytest.mark.parametrize(
    ("op", "domain", "heavy"),
    [
        ("MatMul", "", True),
        ("Relu", "", False),
        ("PagedAttention", MICROSOFT, True),
        ("FastGelu", MICROSOFT, False),
        ("Anything", "some.vendor", True),
    ],
)
def test_without_sizes_nothing_is_counted(op: str, domain: str, heavy: bool) -> None:
    counted = work(op, "x w", {}, domain)
    assert counted.flops == 0
    assert list(counted.uncounted_heavy if heavy else counted.uncounted_light) == [op]


def test_uncounted_nodes_are_assumed_to_be_average() -> None:
    matmul = work("MatMul", "a b", {"a": (10, 10), "y": (10, 10)})
    relu = work("Relu", "x", {"x": (10, 10), "y": (10, 10)})
    lost, light = work("MatMul", "a b", {}), work("Relu", "x", {})
    total = matmul + relu + light
    assert light.assumed(total) == relu.flops
    assert uncounted_share(total) == pytest.approx(100 / (2000 + 100 + 100))
    total = matmul + matmul + relu + lost
    assert lost.assumed(total) == matmul.flops
    assert uncounted_share(total) == pytest.approx(2000 / (3 * 2000 + 100))
    assert uncounted_share(lost) == 1
    assert uncounted_share(matmul) == 0


def test_a_loop_of_unknown_length_is_not_counted() -> None:
    body = work("MatMul", "a b", {"a": (10, 10), "y": (10, 10)})
    assert body.repeated(3, "Loop").flops == 3 * body.flops
    assert body.repeated(None, "Loop").uncounted_heavy == {"Loop": 1}
    assert not body.repeated(None, "Loop").flops
