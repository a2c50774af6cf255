"""The printed algorithms reproduce, by hand, what the print says, its mistakes included."""

from collections.abc import Mapping

import pytest
from offload.errors import InputError
from offload.scheduling.instance import Instance, Job
from offload.scheduling.solve import solve

Layers = Mapping[str, tuple[float, float]]

# (compute_s, upload_s) of each layer, the edges, what tree-merge gives and the smallest makespan.
COUNTER_EXAMPLES: list[tuple[Layers, list[tuple[str, str]], float, float]] = [
    (
        {"r": (0, 0), "v": (10, 0), "b": (8, 4), "c": (1, 2), "d": (5, 100)},
        [("r", "v"), ("r", "b"), ("v", "c"), ("v", "d")],
        124.0,
        120.0,
    ),
    (
        {"r": (0, 0), "p": (10, 0), "q": (12, 12.5), "x": (1, 5), "y": (2, 10)},
        [("r", "p"), ("r", "q"), ("p", "x"), ("p", "y")],
        39.5,
        38.5,
    ),
    (
        {"r": (0, 0), "p": (1, 0), "x": (0, 1), "y": (0, 1), "q": (2, 2)},
        [("r", "p"), ("r", "q"), ("p", "x"), ("p", "y")],
        6.0,
        5.0,
    ),
]


def graph(layers: Layers, edges: list[tuple[str, str]]) -> Instance:
    index = {name: place for place, name in enumerate(layers)}
    jobs = tuple(Job(name, f, g) for name, (f, g) in layers.items())
    return Instance(jobs, tuple((index[a], index[b]) for a, b in edges))


@pytest.mark.parametrize(("layers", "edges", "printed_s", "best_s"), COUNTER_EXAMPLES)
def test_theorem_1_is_false_as_printed(
    layers: Layers,
    edges: list[tuple[str, str]],
    printed_s: float,
    best_s: float,
) -> None:
    instance = graph(layers, edges)
    assert solve(instance, "tree-merge").makespan_s == pytest.approx(printed_s)
    best = solve(instance)
    assert best.makespan_s == pytest.approx(best_s)
    assert best.status == "optimal"


def test_tree_merge_glues_the_root_to_the_head() -> None:
    """v is glued to c, its first child by Johnson's rule: (11, 2) goes after b's (8, 4)."""
    layers, edges, _, _ = COUNTER_EXAMPLES[0]
    assert solve(graph(layers, edges), "tree-merge").names == ("r", "b", "v", "c", "d")


def test_johnson_sends_first_what_is_quick_to_compute_and_long_to_send() -> None:
    layers: Layers = {"s": (1, 0), "a": (4, 1), "b1": (1, 0), "b2": (1, 5), "c": (3, 2)}
    schedule = solve(graph(layers, [("s", "a"), ("s", "b1"), ("b1", "b2"), ("s", "c")]), "johnson")
    assert schedule.names == ("s", "b1", "b2", "c", "a")
    assert schedule.makespan_s == 11.0


def test_pathwise_counts_a_shared_layer_in_every_path() -> None:
    """Of the paths p, a (2, 1) and p, b (1, 1) the first is taken by order, though b is free."""
    layers: Layers = {"r": (0, 0), "p": (1, 0), "a": (1, 1), "b": (0, 1)}
    instance = graph(layers, [("r", "p"), ("p", "a"), ("p", "b")])
    assert solve(instance, "pathwise").names == ("r", "p", "a", "b")
    assert solve(instance, "pathwise").makespan_s == 4.0
    assert solve(instance).makespan_s == 3.0


def test_levels_computes_everything_before_the_first_upload() -> None:
    """c1 (0, 1) is a sink like c2, so it waits for a (1, 0), which needs to be before c2 only."""
    instance = graph({"c1": (0, 1), "a": (1, 0), "c2": (0, 1)}, [("a", "c2")])
    assert solve(instance, "levels").names == ("a", "c1", "c2")
    assert solve(instance, "levels").makespan_s == 3.0
    assert solve(instance).makespan_s == 2.0


def test_serial_adds_everything_up() -> None:
    instance = Instance((Job("a", 1.0, 2.0), Job("b", 3.0, 4.0)), server_s=5.0, download_s=6.0)
    assert solve(instance, "serial").makespan_s == 21.0
    assert solve(instance, "fifo").makespan_s == 19.0


@pytest.mark.parametrize("solver", ["johnson", "tree-merge"])
def test_a_graph_of_another_shape_is_refused(solver: str) -> None:
    diamond = graph(
        {"a": (1, 0), "b": (1, 1), "c": (1, 1), "d": (1, 1)},
        [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")],
    )
    with pytest.raises(InputError, match=f"'{solver}' needs"):
        solve(diamond, solver)
