"""What `make test-models` rests on: the count of operations, and the list of networks."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.front_door.door import save, value, weight
from tests.networks.counting import count, einsum_sizes
from tests.networks.networks import NETWORKS
from tests.networks.page import FULL_NETWORKS

HERE = Path(__file__).parent


def test_operations_of_a_run_are_counted(tmp_path: Path) -> None:
    """A convolution, a product in a branch that runs, one in a branch that doesn't."""

    def branch(name: str, stored: str) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["flat", stored], [name])]
        return helper.make_graph(nodes, name, [], [value(name, 1, "n")])

    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"]),
        helper.make_node("Flatten", ["c"], ["flat"]),
        helper.make_node(
            "If",
            ["wide"],
            ["y"],
            then_branch=branch("wide_y", "W100"),
            else_branch=branch("narrow_y", "W3"),
        ),
    ]
    stored = {"K": weight(4, 2, 3, 3), "W100": weight(256, 100), "W3": weight(256, 3)}
    inputs = [value("x", 1, 2, 10, 10), value("wide", dtype=TensorProto.BOOL)]
    path = tmp_path / "net.onnx"
    save(path, nodes, inputs, [value("y", 1, "n")], stored)
    x = np.ones((1, 2, 10, 10), np.float32)
    convolution = 2 * (4 * 8 * 8) * (2 * 3 * 3)
    narrow, wide = (count(path, {"x": x, "wide": np.array(flag)}) for flag in (False, True))
    assert narrow == convolution + 2 * 256 * 3
    assert wide == convolution + 2 * 256 * 100


@pytest.mark.parametrize("steps", [1, 7])
def test_operations_of_a_loop_are_counted_as_often_as_it_runs(tmp_path: Path, steps: int) -> None:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "W"], ["after"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            value("step", dtype=TensorProto.INT64),
            value("go", dtype=TensorProto.BOOL),
            value("before", 1, 8),
        ],
        [value("still", dtype=TensorProto.BOOL), value("after", 1, 8)],
    )
    path = tmp_path / "net.onnx"
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
    inputs = [value("n", dtype=TensorProto.INT64), value("x", 1, 8)]
    save(path, nodes, inputs, [value("y", 1, 8)], {"W": weight(8, 8)})
    feeds = {"n": np.array(steps), "x": np.ones((1, 8), np.float32)}
    assert count(path, feeds) == steps * 2 * 8 * 8


def test_letters_of_einsum() -> None:
    found = einsum_sizes("b...d, dk -> b...k", [(2, 3, 5, 7), (7, 11)])
    assert sorted(found.values()) == [2, 3, 5, 7, 11]


def test_each_network_is_exported_by_its_script() -> None:
    names = [network.name for network in NETWORKS]
    assert len(names) == len(set(names)) >= FULL_NETWORKS
    assert sum(network.quick for network in NETWORKS) == 8
    for network in NETWORKS:
        if network.wheel:
            assert network.draw
            assert network.member
            continue
        script = (HERE / f"export_{network.script}.py").read_text()
        exported = script.partition("\nNETWORKS: ")[2]
        assert re.search(rf'^    "{re.escape(network.name)}": ', exported, re.MULTILINE), network
        assert not network.start or network.start in names
