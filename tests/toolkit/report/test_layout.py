"""The layout in rows: edges go down, boxes never overlap."""

import itertools
from collections.abc import Hashable

from hypothesis import given, settings
from hypothesis import strategies as st
from offload.graph.model import Graph
from offload.report.layout import layered

from tests.toolkit.graphs import graphs


@settings(deadline=None)
@given(graphs(16), st.lists(st.integers(20, 200), min_size=16, max_size=16))
def test_edges_go_down_and_boxes_do_not_overlap(graph: Graph, widths: list[int]) -> None:
    sizes: dict[Hashable, tuple[float, float]] = {
        layer: (float(widths[layer]), 40.0) for layer in range(len(graph.layers))
    }
    edges: list[tuple[Hashable, Hashable]] = [
        (a, b) for a, after in enumerate(graph.successors) for b in after
    ]
    layout = layered(sizes, edges + edges[:1])
    assert layout.centres.keys() == sizes.keys()
    assert layout.routes.keys() == set(edges)
    for (a, b), route in layout.routes.items():
        assert (route[0], route[-1]) == (layout.centres[a], layout.centres[b])
        assert all(lower[1] > upper[1] for upper, lower in itertools.pairwise(route))
    for a, b in itertools.combinations(sizes, 2):
        (ax, ay), (bx, by) = layout.centres[a], layout.centres[b]
        apart_x = abs(ax - bx) - (sizes[a][0] + sizes[b][0]) / 2
        assert apart_x > 0 or abs(ay - by) >= 40
    for key, (x, y) in layout.centres.items():
        assert x - sizes[key][0] / 2 >= -1e-6
        assert x + sizes[key][0] / 2 <= layout.width + 1e-6
        assert y - 20 >= 0
        assert y + 20 <= layout.height + 1e-6


def test_nothing_has_no_size() -> None:
    assert layered({}, []).width == 0
