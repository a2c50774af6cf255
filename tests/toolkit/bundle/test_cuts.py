from hypothesis import given
from hypothesis import strategies as st
from offload.bundle.verify import crossing_tensors, distinct_cuts, parts_of_cut
from offload.graph.model import Graph

from tests.toolkit.graphs import graphs


@given(graphs(), st.integers(2, 30))
def test_cuts_are_distinct_and_closed(graph: Graph, most: int) -> None:
    cuts = distinct_cuts(graph, most)
    assert len(set(cuts)) == len(cuts) <= most
    assert frozenset() in cuts
    assert frozenset(range(len(graph.layers))) in cuts
    assert all(graph.ancestors(device) == device for device in cuts)


@given(graphs())
def test_halves_cover_all_and_exchange_what_crosses(graph: Graph) -> None:
    nodes = sorted(node for layer in graph.layers for node in layer.nodes)
    for device in distinct_cuts(graph, 8):
        parts = parts_of_cut(graph, device)
        one, two = parts["device-0.onnx"], parts["server-0.onnx"]
        assert sorted((*one.nodes, *two.nodes)) == nodes
        assert set(two.inputs) <= set(crossing_tensors(parts)) | set(graph.inputs)
        assert set(graph.outputs) <= {*one.outputs, *two.outputs}
